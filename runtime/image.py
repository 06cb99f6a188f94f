"""From the decoded sample to pictures and files."""

import io
import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import png_metadata
from .png_metadata import TRAINED_ALGORITHMIC_MEDIA, Json, read_parameters

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["encode_png", "image_grid", "read_parameters", "save_png", "to_pil", "to_unit_interval"]

Array = np.ndarray[Any, np.dtype[Any]]

_MODES = {1: "L", 3: "RGB"}  # by channels


def to_unit_interval(sample: Array) -> Array:
    """The images of a decoded sample: (batch, height, width, channels), float32 in [0, 1].

    Args:
        sample: (batch, channels, height, width), float, in [-1, 1]; what lies outside is clipped. Channels are 3, or 1.

    Raises:
        ValueError: the shape is another one, or the sample holds NaN or infinity, as half precision gives where it
            overflows (the VAE of Stable Diffusion XL does).
    """
    if sample.ndim != 4 or sample.shape[1] not in _MODES:
        raise ValueError(f"sample must be (batch, 3, height, width), got {sample.shape}")
    bad = sample.size - np.count_nonzero(np.isfinite(sample))
    if bad:
        raise ValueError(
            f"the decoded sample holds {bad} values of {sample.size} that are not finite: "
            "a network overflowed; run the VAE in float32"
        )
    unit = np.clip(sample.astype(np.float32) / 2 + 0.5, 0, 1)
    return np.ascontiguousarray(unit.transpose(0, 2, 3, 1))  # (batch, height, width, channels)


def to_pil(images: Array) -> "list[Image]":
    """Pictures of 8 bits a channel.

    Args:
        images: (batch, height, width, 3 or 1), or one image without the batch; float in [0, 1].

    Raises:
        ValueError: another shape, or values outside [0, 1].
    """
    from PIL import Image

    batch = images[None] if images.ndim == 3 else images
    if batch.ndim != 4 or batch.shape[-1] not in _MODES:
        raise ValueError(f"images must be (batch, height, width, 3), got {images.shape}")
    if batch.size and not (batch.min() >= 0 and batch.max() <= 1):
        raise ValueError(f"images must lie in [0, 1], got values from {batch.min()} to {batch.max()}")
    pixels = (batch * 255).round().astype(np.uint8)
    return [Image.fromarray(each.squeeze(-1) if each.shape[-1] == 1 else each) for each in pixels]


def image_grid(images: "Sequence[Image]", columns: int | None = None) -> "Image":
    """One picture of all, row by row; cells that are left over are black.

    Args:
        images: At least one; all of one size.
        columns: Images in a row; about as many as there are rows when None.

    Raises:
        ValueError: no images, sizes that differ, or `columns` less than 1.
    """
    from PIL import Image

    if not images:
        raise ValueError("a grid needs at least one image")
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise ValueError(f"the images of a grid must be of one size, got {sorted(sizes)}")
    if columns is None:
        columns = math.ceil(math.sqrt(len(images)))
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    width, height = images[0].size
    grid = Image.new(images[0].mode, (columns * width, math.ceil(len(images) / columns) * height))
    for index, image in enumerate(images):
        grid.paste(image, (index % columns * width, index // columns * height))
    return grid


def encode_png(
    image: "Image",
    parameters: Mapping[str, Json],
    *,
    digital_source_type: str = TRAINED_ALGORITHMIC_MEDIA,
) -> bytes:
    """A PNG that tells how it was made; see `save_png`.

    Raises:
        ValueError: the parameters have no JSON form (NaN, a lone surrogate).
        TypeError: a parameter is of a type that JSON does not have.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(png_metadata.JSON_KEYWORD, png_metadata.parameters_json(parameters))
    info.add_text(png_metadata.TEXT_KEYWORD, png_metadata.parameters_text(parameters, image.size))
    info.add_itxt(png_metadata.XMP_KEYWORD, png_metadata.xmp_packet(digital_source_type))
    file = io.BytesIO()
    image.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def save_png(
    image: "Image",
    path: str | Path,
    parameters: Mapping[str, Json],
    *,
    digital_source_type: str = TRAINED_ALGORITHMIC_MEDIA,
) -> None:
    """Writes a PNG that tells how it was made; the file appears whole or not at all.

    The file carries the parameters as JSON (text chunk `safelight`, see `read_parameters`), the same for people and
    other tools in the notation of AUTOMATIC1111 (`parameters`), and XMP that marks it as made by a trained model.

    Args:
        image: The picture.
        path: Ends in `.png`; its folder exists. An existing file is replaced.
        parameters: The arguments of the call, by their names: `prompt`, `negative_prompt`, `num_inference_steps`,
            `guidance_scale`, `seed`, `scheduler`, `model` and others; JSON values or NumPy scalars.
        digital_source_type: IPTC's term for the origin; an inpainted photograph is
            `.../compositeWithTrainedAlgorithmicMedia`.

    Raises:
        ValueError: the path does not end in `.png`, or the parameters have no JSON form (NaN, a lone surrogate).
        TypeError: a parameter is of a type that JSON does not have.
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path must end in .png, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into")
    content = encode_png(image, parameters, digital_source_type=digital_source_type)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
