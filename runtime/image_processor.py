"""From pictures to the arrays that vision transformers see, as a folder's `preprocessor_config.json` says."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np

from .backends import Array
from .image_input import ImageInput, check_picture, converted
from .text_files import read_json_object

if TYPE_CHECKING:
    from PIL.Image import Image


CONFIG = "preprocessor_config.json"

_BICUBIC = 3  # as Pillow counts its filters
_FILTERS = range(6)


@dataclass(frozen=True, kw_only=True)
class ImageProcessor(ABC):
    """Resizes, rescales and normalizes pictures; equal to transformers 5.23's classes with their Pillow backend.

    That is what diffusers uses unless torchvision is there, which rounds the bicubic filter otherwise: by two of 255
    levels at most in pictures, by nine in noise.

    Attributes:
        classes: transformers' names of the class, of all its versions.
        not_implemented: keys of a configuration that must be false, or left out.
        do_resize: whether pictures are resized.
        resample: Pillow's number of a filter: 3 is bicubic.
        do_rescale: whether values are multiplied by `rescale_factor`.
        rescale_factor: takes 0 to 255 to 0 to 1.
        do_normalize: whether `image_mean` is taken from the channels, which are then divided by `image_std`.
        image_mean: of red, green and blue, after the rescaling.
        image_std: the same.
    """

    classes: ClassVar[tuple[str, ...]]
    not_implemented: ClassVar[tuple[str, ...]]

    do_resize: bool = True
    resample: int = _BICUBIC
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.resample not in _FILTERS:
            raise ValueError(f"resample must be one of {list(_FILTERS)}, got {self.resample}")
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
            if config.get(key) is not None and config[key] not in cls.classes:
                raise ValueError(f"{key} must be one of {', '.join(cls.classes)}, got {config[key]!r}")
        for key in cls.not_implemented:
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
                in [0, 255]; or several of either. Pictures are made RGB first, where some of transformers' classes take
                RGB only. An array is cut to 8 bits before it is resized. Floats in [0, 1] are too, but then come out as
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
        pixels = self._cropped(pixels)
        if self.do_rescale:
            pixels = (pixels.astype(np.float64) * self.rescale_factor).astype(np.float32)
        pixels = pixels.astype(np.float32, copy=False)
        if self.do_normalize:
            pixels = (pixels - np.array(self.image_mean, np.float32)) / np.array(self.image_std, np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    @abstractmethod
    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        """What a picture of a height and width is resized to."""

    def _cropped(self, pixels: Array) -> Array:
        """The part of a resized picture, (height, width, 3), that the network sees."""
        return pixels


@dataclass(frozen=True, kw_only=True)
class DPTImageProcessor(ImageProcessor):
    """Makes the input of a depth estimator.

    Attributes:
        size: (height, width) to resize to.
        keep_aspect_ratio: whether both sides change by one factor, the one that changes them less.
        ensure_multiple_of: what the sides of a resized picture are rounded to.
    """

    classes = ("DPTImageProcessor", "DPTImageProcessorFast", "DPTImageProcessorPil", "DPTFeatureExtractor")
    not_implemented = ("do_center_crop", "do_pad")

    size: tuple[int, int] = (384, 384)
    keep_aspect_ratio: bool = False
    ensure_multiple_of: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ensure_multiple_of < 1 or min(self.size) < 1:
            raise ValueError(
                f"size and ensure_multiple_of must be positive, got {self.size} and {self.ensure_multiple_of}"
            )

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


@dataclass(frozen=True, kw_only=True)
class CLIPImageProcessor(ImageProcessor):
    """Makes the input of CLIP's vision model, of which a safety checker has one.

    Attributes:
        size: (height, width) to resize to; or one number, to which the shorter side is resized, and the longer one in
            proportion.
        do_center_crop: whether the middle of the resized picture is cut out.
        crop_size: (height, width) of it.
    """

    classes = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")
    not_implemented = ("do_pad",)

    size: tuple[int, ...] = (224,)
    do_center_crop: bool = True
    crop_size: tuple[int, ...] = (224, 224)
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) not in (1, 2) or len(self.crop_size) != 2 or min(*self.size, *self.crop_size) < 1:
            raise ValueError(
                "size must be one positive number or two, and crop_size two, "
                f"got {list(self.size)} and {list(self.crop_size)}"
            )

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        if len(self.size) == 2:
            return self.size[0], self.size[1]
        (side,) = self.size
        return (int(side * height / width), side) if width <= height else (side, int(side * width / height))

    def _cropped(self, pixels: Array) -> Array:
        if not self.do_center_crop:
            return pixels
        height, width = self.crop_size
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        if min(top, left) < 0:
            raise ValueError(
                f"an image that is resized to {pixels.shape[0]} x {pixels.shape[1]} is too small "
                f"for a crop of {height} x {width}"
            )
        return pixels[top : top + height, left : left + width]


#: the class named in model_index.json -> how its configuration is read
IMAGE_PROCESSORS: Mapping[str, type[ImageProcessor]] = {
    name: processor for processor in (DPTImageProcessor, CLIPImageProcessor) for name in processor.classes
}


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
    if isinstance(default, tuple):
        if isinstance(value, Mapping) and key in ("size", "crop_size"):
            value = _sides(key, value, len(default))
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value] * len(default)
        return tuple(_field(key, each, default[0]) for each in values)
    kinds = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(default, bool):
        raise ValueError(f"{key} must be of type {type(default).__name__}, got {value!r}")
    return value


def _sides(key: str, size: Mapping[str, Any], count: int) -> list[Any]:
    """A size that has names, as a list: height and width, or where it may be one number, the shorter side."""
    if set(size) == {"height", "width"}:
        return [size["height"], size["width"]]
    if count == 1 and set(size) == {"shortest_edge"}:
        return [size["shortest_edge"]]
    expected = "height and width" if count == 2 else "shortest_edge, or height and width"
    raise ValueError(f"{key} must have {expected}, got {dict(size)}")
