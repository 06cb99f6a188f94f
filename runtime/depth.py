"""Depth to image: from pictures to what a depth estimator sees, and from its depth to a channel beside the latents."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from .backends import Array
from .image_input import ImageInput, check_picture, converted
from .model_folder import read_json_object

if TYPE_CHECKING:
    from PIL.Image import Image

CONFIG = "preprocessor_config.json"

_CLASSES = ("DPTImageProcessor", "DPTImageProcessorFast", "DPTImageProcessorPil", "DPTFeatureExtractor")
_BICUBIC = 3  # as Pillow counts its filters
_FILTERS = range(6)
_NOT_IMPLEMENTED = ("do_center_crop", "do_pad")
_ROUNDING = 1e-6  # what the interpolation makes of values that are all the same differs by less, relative to them
_KEYS_A = -0.75  # torch's choice of the one parameter of Keys' kernel


@dataclass(frozen=True, kw_only=True)
class DPTImageProcessor:
    """Makes the input of a depth estimator; equal to transformers 5.23's class of this name, with its Pillow backend.

    That is what diffusers uses unless torchvision is there, which rounds the bicubic filter otherwise: by two of 255
    levels at most in pictures, by nine in noise. Configurations of `DPTFeatureExtractor` are taken as well.

    Attributes:
        do_resize: whether pictures are resized.
        size: (height, width) to resize to.
        resample: Pillow's number of a filter: 3 is bicubic.
        keep_aspect_ratio: whether both sides change by one factor, the one that changes them less.
        ensure_multiple_of: what the sides of a resized picture are rounded to.
        do_rescale: whether values are multiplied by `rescale_factor`.
        rescale_factor: takes 0 to 255 to 0 to 1.
        do_normalize: whether `image_mean` is taken from the channels, which are then divided by `image_std`.
        image_mean: of red, green and blue, after the rescaling.
        image_std: the same.
    """

    do_resize: bool = True
    size: tuple[int, int] = (384, 384)
    resample: int = _BICUBIC
    keep_aspect_ratio: bool = False
    ensure_multiple_of: int = 1
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.resample not in _FILTERS:
            raise ValueError(f"resample must be one of {list(_FILTERS)}, got {self.resample}")
        if self.ensure_multiple_of < 1 or min(self.size) < 1:
            raise ValueError(
                f"size and ensure_multiple_of must be positive, got {self.size} and {self.ensure_multiple_of}"
            )
        if len(self.image_mean) != 3 or len(self.image_std) != 3 or not all(self.image_std):
            raise ValueError(
                "image_mean and image_std must have one number for red, green and blue, the latter not 0, "
                f"got {list(self.image_mean)} and {list(self.image_std)}"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The processor that a `preprocessor_config.json` describes; keys of no effect are passed over.

        Raises:
            ValueError: another class's configuration, a value of the wrong kind, or what is not implemented.
        """
        for key in ("image_processor_type", "feature_extractor_type"):
            if config.get(key) is not None and config[key] not in _CLASSES:
                raise ValueError(f"{key} must be one of {', '.join(_CLASSES)}, got {config[key]!r}")
        for key in _NOT_IMPLEMENTED:
            if config.get(key):
                raise ValueError(f"{key} = {config[key]!r} is not implemented")
        fields = {field.name: field.default for field in dataclasses.fields(cls)}
        given = {key: config[key] for key in fields if config.get(key) is not None}
        return cls(**{key: _field(key, value, fields[key]) for key, value in given.items()})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The processor of a `feature_extractor/` folder.

        Raises:
            FileNotFoundError: the folder has no `preprocessor_config.json`.
            ValueError: the file is no JSON object, or `from_config` refuses it.
        """
        path = Path(folder) / CONFIG
        config = read_json_object(path)
        try:
            return cls.from_config(config)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def __call__(self, images: ImageInput) -> dict[str, Array]:
        """Prepares pictures.

        Args:
            images: a picture of 8 bits a channel; an array (height, width, 3) or (batch, height, width, 3) with values
                in [0, 255]; or several of either. Pictures are made RGB first, where transformers takes RGB only.
                An array is cut to 8 bits before it is resized. Floats in [0, 1] are too, but then come out as
                transformers gives them: rescaled twice, nearly black. Turn them into 8 bits before.

        Returns:
            `pixel_values`: (batch, 3, height, width), float32.

        Raises:
            TypeError: what is neither picture nor array.
            ValueError: no image, a shape or values that are no picture's, or pictures that come out in several sizes.
        """
        is_batch = isinstance(images, Sequence) or (isinstance(images, np.ndarray) and images.ndim == 4)
        several: Iterable[Any] = cast("Iterable[Any]", images) if is_batch else [images]
        prepared = [self._prepare(_pixels(image)) for image in several]
        if len(sizes := {each.shape[1:] for each in prepared}) != 1:
            found = f"they come out as {sorted(sizes)}" if sizes else "there are none"
            raise ValueError(f"images must have one size in a batch, {found}")
        return {"pixel_values": np.stack(prepared)}

    def _prepare(self, pixels: Array) -> Array:
        """Maps (height, width, 3) to (3, height, width), float32."""
        if self.do_resize:
            height, width = self._resized_size(pixels.shape[0], pixels.shape[1])
            pixels = _resize(pixels, height, width, self.resample)
        if self.do_rescale:
            pixels = (pixels.astype(np.float64) * self.rescale_factor).astype(np.float32)
        pixels = pixels.astype(np.float32, copy=False)
        if self.do_normalize:
            pixels = (pixels - np.array(self.image_mean, np.float32)) / np.array(self.image_std, np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        factors = [self.size[0] / height, self.size[1] / width]
        if self.keep_aspect_ratio:
            height_factor, width_factor = factors
            factors = [width_factor if abs(1 - width_factor) < abs(1 - height_factor) else height_factor] * 2
        multiple = self.ensure_multiple_of
        sides = [
            round(factor * side / multiple) * multiple for factor, side in zip(factors, (height, width), strict=True)
        ]
        if min(sides) < 1:
            raise ValueError(f"an image of {height} x {width} would be resized to {sides[0]} x {sides[1]}")
        return sides[0], sides[1]


def depth_map_to_latents(depth: Array, height: int, width: int) -> Array:
    """The depth as the UNet of depth to image takes it: (batch, 1, height, width), float32, each image in [-1, 1].

    What `StableDiffusionDepth2ImgPipeline.prepare_depth_map` of diffusers does after the estimator: bicubic
    interpolation, then each image's least value becomes -1 and its greatest 1.

    Args:
        depth: (batch, rows, columns), of any scale.
        height: of the latents.
        width: of the latents.

    Raises:
        ValueError: another shape, no values or some that are not finite, or an image that is equally deep everywhere,
            which diffusers turns into NaN.
    """
    if depth.ndim != 3 or not depth.size:
        raise ValueError(f"depth must be (batch, height, width), got {depth.shape}")
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} and {width}")
    if not np.isfinite(depth).all():
        raise ValueError("depth must be finite, got NaN or infinity")
    depth = depth.astype(np.float32, copy=False)
    resized = _interpolate(_interpolate(depth, width).swapaxes(1, 2), height).swapaxes(1, 2)
    least, greatest = resized.min(axis=(1, 2), keepdims=True), resized.max(axis=(1, 2), keepdims=True)
    if not (greatest - least > _ROUNDING * np.abs(resized).max(axis=(1, 2), keepdims=True)).all():
        raise ValueError("depth must vary within each image, got one that is equally deep everywhere")
    scaled = 2 * (resized - least) / (greatest - least) - 1
    return np.ascontiguousarray(scaled[:, None])


def _interpolate(values: Array, length: int) -> Array:
    """Cubic convolution along the last axis, of Keys 1981 (doi:10.1109/TASSP.1981.1163711), with edges repeated.

    Positions are float32 as in `torch.nn.functional.interpolate(mode="bicubic")`: pixels have their centres at 0.5.
    """
    size = values.shape[-1]
    half = np.float32(0.5)
    position = np.float32(size) / np.float32(length) * (np.arange(length, dtype=np.float32) + half) - half
    before = np.floor(position)
    result = np.zeros((*values.shape[:-1], length), np.float32)
    for offset in (-1, 0, 1, 2):
        distance = np.abs(position - (before + np.float32(offset)))
        source = np.clip(before.astype(np.int64) + offset, 0, size - 1)
        result += values[..., source] * _keys_kernel(distance)
    return result


def _keys_kernel(distance: Array) -> Array:
    """Keys 1981, equation 15, of distances in [0, 2]."""
    a = np.float32(_KEYS_A)
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, far)


def _pixels(image: "Image | Array") -> Array:
    """A picture's values, (height, width, 3)."""
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[-1] != 3 or not image.size:
            raise ValueError(f"an image must be (height, width, 3), got {image.shape}")
        if image.dtype.kind not in "fiu" or not np.isfinite(image).all():
            raise ValueError(f"an image must hold finite numbers, got {image.dtype}")
        return image
    if not hasattr(image, "convert"):
        raise TypeError(f"an image must be a PIL image or an array, got {type(image).__name__}")
    check_picture(image, "an image")
    return np.asarray(converted(image, "RGB"))


def _resize(pixels: Array, height: int, width: int, resample: int) -> Array:
    """The picture in another size: uint8, or float32 in [0, 1] if it came so."""
    from PIL import Image

    is_unit = False
    if pixels.dtype != np.uint8:
        is_whole = np.allclose(pixels, pixels.astype(np.int64))
        is_unit = not is_whole and bool(pixels.max() <= 1)
        if pixels.min() < 0 or pixels.max() > 255 or not (is_whole or is_unit):
            raise ValueError(
                "an array must hold whole numbers in [0, 255], or floats in [0, 1], "
                f"got values from {pixels.min()} to {pixels.max()}"
            )
        scaled = (pixels.astype(np.float64) * 255).astype(np.float32) if is_unit else pixels
        pixels = scaled.astype(np.uint8)
    resized = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling(resample)))
    return (resized.astype(np.float64) * (1 / 255)).astype(np.float32) if is_unit else resized


def _field(key: str, value: Any, default: Any) -> Any:
    """A JSON value as the kind of value that a field holds."""
    if key == "size" and isinstance(value, Mapping):
        if set(value) != {"height", "width"}:
            raise ValueError(f"size must have height and width, got {dict(value)}")
        value = [value["height"], value["width"]]
    if isinstance(default, tuple):
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value] * len(default)
        return tuple(_field(key, each, default[0]) for each in values)
    kinds = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
        raise ValueError(f"{key} must be of type {type(default).__name__}, got {value!r}")
    return value
