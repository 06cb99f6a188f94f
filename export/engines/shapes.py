"""From pictures to the shapes of a network's inputs: what an engine has to hold, said before any is built."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from safelight.runtime.engines import Profile, ShapeRange
from safelight.runtime.latents import check_size
from safelight.runtime.manifest import ComponentRecord, TensorRecord
from safelight.runtime.model_folder import ModelFolder
from safelight.runtime.networks import read_config

from .pictures import TEXT_ENCODERS, Pictures, autoencoder_factor, own_shape, text_length

#: of a tensor, which TensorRT counts in 32 bits
LARGEST_TENSOR = 2**31 - 1
#: networks whose inputs are as large for any picture
_BLIND = (*TEXT_ENCODERS, "DPTForDepthEstimation", "StableDiffusionSafetyChecker")
#: input -> what its dimensions are, where more than the first is
_AXES: Mapping[str, tuple[str | None, ...]] = MappingProxyType(
    {
        "sample": ("batch", None, "height", "width"),
        "latent_sample": ("batch", None, "latent_height", "latent_width"),
        "input_ids": ("batch", "sequence_length"),
        "encoder_hidden_states": ("batch", "sequence_length"),
    }
)


@dataclass(frozen=True)
class Range:
    """The sizes that one dimension may have."""

    smallest: int
    usual: int
    largest: int

    @classmethod
    def fixed(cls, size: int) -> "Range":
        """One size."""
        return cls(size, size, size)

    def __str__(self) -> str:
        return str(self.smallest) if self.smallest == self.largest else f"{self.smallest} to {self.largest}"


def profiles_of(folder: ModelFolder, network: str, pictures: Pictures) -> tuple[Profile, ...]:
    """The optimization profiles of a network: one for each bucket of shapes that it can tell apart.

    Args:
        folder: with a manifest.
        network: of the manifest.
        pictures: what the engine is for.

    Raises:
        ValueError: the network cannot take such pictures, or the folder does not say what it needs; names the nearest
            that it can, or the input.
    """
    assert folder.manifest is not None
    record = folder.manifest.components[network]
    if record.class_name in _BLIND:
        return (_profile(network, record, _blind_dimensions(folder, network, pictures), _images(pictures)),)
    profiles = {}
    for width, height in pictures.shapes or (own_shape(folder),):
        label = f"{width}x{height}, {_images(pictures)}"
        if pictures.prompt_chunks > 1 and record.class_name == "UNet2DConditionModel":
            label += f", prompts of 1 to {pictures.prompt_chunks} chunks"
        dimensions = _dimensions(folder, network, pictures, width, height)
        profiles[label] = _profile(network, record, dimensions, label)
    return tuple(profiles.values())


def _images(pictures: Pictures) -> str:
    return f"{Range(pictures.images[0], pictures.images[0], pictures.images[1])} image{'s' * (pictures.images[1] > 1)}"


def _blind_dimensions(folder: ModelFolder, network: str, pictures: Pictures) -> dict[str, Range]:
    """The sizes of the free dimensions of a network that does not see how large a picture is."""
    assert folder.manifest is not None
    fewest, most = pictures.images
    if folder.manifest.components[network].class_name not in TEXT_ENCODERS:
        return {"batch": Range(1, fewest, most)}
    # prompts and negative prompts, each in chunks, one after the other or at once
    prompts = Range(1, fewest, 2 * most * pictures.prompt_chunks)
    return {"batch": prompts, "sequence_length": Range.fixed(text_length(folder, network))}


def _dimensions(folder: ModelFolder, network: str, pictures: Pictures, width: int, height: int) -> dict[str, Range]:
    """The sizes of the free dimensions of a network, by the names that the manifest gives to them."""
    assert folder.manifest is not None
    class_name = folder.manifest.components[network].class_name
    fewest, most = pictures.images
    if class_name == "UNet2DModel":
        halvings = len(read_config(folder, network, class_name)["block_out_channels"]) - 1
        _check_sizes(width, height, 2**halvings)
        return {"batch": Range(fewest, fewest, most), "height": Range.fixed(height), "width": Range.fixed(width)}
    factor = autoencoder_factor(folder)
    _check_sizes(width, height, factor)
    if class_name == "UNet2DConditionModel":
        length = text_length(folder)
        branches = 3 if folder.class_name == "StableDiffusionInstructPix2PixPipeline" else 2  # of guidance, at most
        return {
            "batch": Range(fewest, 2 * fewest, branches * most),
            "height": Range.fixed(height // factor),
            "width": Range.fixed(width // factor),
            "sequence_length": Range(length, length, length * pictures.prompt_chunks),
        }
    # one picture that is encoded may be what several begin with
    return {
        "batch": Range(fewest if network.endswith("_decoder") else 1, fewest, most),
        "height": Range.fixed(height),
        "width": Range.fixed(width),
        "latent_height": Range.fixed(height // factor),
        "latent_width": Range.fixed(width // factor),
    }


def _check_sizes(width: int, height: int, factor: int) -> None:
    check_size("width", width, factor)
    check_size("height", height, factor)


def _profile(network: str, record: ComponentRecord, dimensions: Mapping[str, Range], label: str) -> Profile:
    """The profile of one bucket."""
    for tensor in record.inputs:
        _check_input(network, tensor, dimensions)
    for tensor in (*record.inputs, *record.outputs):
        _check_elements(network, tensor, dimensions)
    shapes = {
        tensor.name: ShapeRange(
            smallest=_sizes(tensor, dimensions, "smallest"),
            usual=_sizes(tensor, dimensions, "usual"),
            largest=_sizes(tensor, dimensions, "largest"),
        )
        for tensor in record.inputs
        if any(isinstance(dimension, str) for dimension in tensor.shape)
    }
    return Profile(label=label, shapes=shapes)


def _check_input(network: str, tensor: TensorRecord, dimensions: Mapping[str, Range]) -> None:
    """Refuses an input that cannot have all of the sizes, or that has a dimension of an unknown meaning."""
    axes = _AXES.get(tensor.name, ("batch",))
    for dimension in tensor.shape:
        if isinstance(dimension, str) and dimension not in dimensions:
            raise ValueError(f"{network} has an input {tensor.name} with the free dimension {dimension!r}: unknown")
    for dimension, name in zip(tensor.shape, axes, strict=False):  # what is beyond is the network's own
        if isinstance(dimension, int) and name is not None and dimensions[name] != Range.fixed(dimension):
            raise ValueError(
                f"{network} takes {tensor.name} of the shape {tuple(tensor.shape)} alone, and its {name} would have to "
                f"be {dimensions[name]}: build for what it takes, or export the model again with free shapes"
            )


def _check_elements(network: str, tensor: TensorRecord, dimensions: Mapping[str, Range]) -> None:
    """Refuses a tensor with more elements than TensorRT counts."""
    shape = _sizes(tensor, dimensions, "largest")
    if (elements := math.prod(shape)) > LARGEST_TENSOR:
        raise ValueError(
            f"{network} would have a {tensor.name} of the shape {shape}, which is {elements} elements, and TensorRT "
            f"takes {LARGEST_TENSOR} at most: build for smaller pictures, or for fewer at once"
        )


def _sizes(tensor: TensorRecord, dimensions: Mapping[str, Range], which: str) -> tuple[int, ...]:
    """The tensor's shape, where its free dimensions are at one end of their range, or usual."""
    return tuple(d if isinstance(d, int) else int(getattr(dimensions[d], which)) for d in tensor.shape)
