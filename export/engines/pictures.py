"""What pictures an engine is for: what a user asks, and what a model folder says of its own."""

import re
from dataclasses import dataclass

from safelight.runtime.model_folder import ModelFolder
from safelight.runtime.networks import read_config

TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
#: autoencoder -> the entry of its configuration that has one element for each of its levels
_LEVELS = {"AutoencoderKL": "block_out_channels", "AutoencoderTiny": "num_encoder_blocks"}
_SHAPE = re.compile(r"(\d+)x(\d+)", re.ASCII)
_BATCH = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What pictures engines are for."""

    shapes: tuple[tuple[int, int], ...] = ()  # width and height in pixels, one bucket each; the model's own when empty
    images: tuple[int, int] = (1, 1)  # fewest and most at once
    prompt_chunks: int = 1  # most, of a prompt that is longer than the text encoder

    def __post_init__(self) -> None:
        """Checks what can be checked without a model.

        Raises:
            ValueError: pictures that nobody can make.
        """
        for width, height in self.shapes:
            if min(width, height) < 1:
                raise ValueError(f"--shape must be of at least one pixel, got {width}x{height}")
        fewest, most = self.images
        if not 1 <= fewest <= most:
            raise ValueError(f"--batch must go from 1 or more to no less than that, got {fewest}-{most}")
        if self.prompt_chunks < 1:
            raise ValueError(f"--prompt-chunks must be at least 1, got {self.prompt_chunks}")


def parse_shape(text: str) -> tuple[int, int]:
    """Width and height of "512x768".

    Raises:
        ValueError: it is something else.
    """
    if not (match := _SHAPE.fullmatch(text)):
        raise ValueError(f"--shape must be a width and a height in pixels, such as 512x768, got {text!r}")
    return int(match[1]), int(match[2])


def parse_batch(text: str) -> tuple[int, int]:
    """Fewest and most of "1-4", or of "2".

    Raises:
        ValueError: it is something else.
    """
    if not (match := _BATCH.fullmatch(text)):
        raise ValueError(f"--batch must be a number of images or a range of them, such as 1-4, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def own_shape(folder: ModelFolder) -> tuple[int, int]:
    """Width and height of the pictures that a model was trained for.

    Raises:
        ValueError: its configuration does not say.
    """
    assert folder.manifest is not None
    classes = {record.class_name: network for network, record in folder.manifest.components.items()}
    unet, autoencoder = classes.keys() & {"UNet2DModel", "UNet2DConditionModel"}, classes.keys() & {"AutoencoderKL"}
    for class_name in unet or autoencoder:
        size = read_config(folder, classes[class_name], class_name)["sample_size"]
        factor = autoencoder_factor(folder) if class_name == "UNet2DConditionModel" else 1
        match size:
            case int():
                return size * factor, size * factor
            case [int(height), int(width)]:
                return width * factor, height * factor
    raise ValueError(f"{folder.path} does not say what pictures its model makes: name them, such as --shape 512x512")


def autoencoder_factor(folder: ModelFolder) -> int:
    """How many pixels of a picture one pixel of its latents is, along each side.

    Raises:
        ValueError: the folder has no autoencoder.
    """
    assert folder.manifest is not None
    for network, record in folder.manifest.components.items():
        if levels := _LEVELS.get(record.class_name):
            return int(2 ** (len(read_config(folder, network, record.class_name)[levels]) - 1))
    raise ValueError(
        f"{folder.path} has no autoencoder, which says how many latents a picture is: export it with vae_decoder"
    )


def text_length(folder: ModelFolder, network: str | None = None) -> int:
    """How many tokens a text encoder takes at once; that of the first one when no network is named.

    Raises:
        ValueError: the folder has no text encoder.
    """
    assert folder.manifest is not None
    for name, record in folder.manifest.components.items():
        if record.class_name in TEXT_ENCODERS and network in (None, name):
            return int(read_config(folder, name, record.class_name)["max_position_embeddings"])
    raise ValueError(
        f"{folder.path} has no text encoder, which says how long a prompt is for the UNet: export it with text_encoder"
    )
