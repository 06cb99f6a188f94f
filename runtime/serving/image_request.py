"""What a client asks for, checked field by field: nothing is clamped, nothing unknown is passed over."""

import difflib
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..backends import Array
from .errors import ApiError
from .model_card import ModelCard
from .settings import ServerSettings

OutputFormat = Literal["png", "jpeg", "webp"]
Priority = Literal["high", "normal", "low"]

MOST_CHARACTERS = 32_000  # of a prompt
MOST_PREVIEWS = 3
GUIDANCE = (0.0, 100.0)
OUTPUT_FORMATS = ("png", "jpeg", "webp")
PRIORITIES = ("high", "normal", "low")
MOST_SEED = 2**64 - 1  # as torch takes it
MOST_SECONDS = 86_400.0  # that a client may give a request

#: OpenAI's fields that change nothing here, with the values that ask for nothing
WITHOUT_EFFECT: dict[str, tuple[str, ...]] = {
    "background": ("auto", "opaque"),
    "input_fidelity": ("low", "high"),
    "moderation": ("auto", "low"),
    "quality": ("auto", "low", "medium", "high", "standard", "hd"),
    "style": ("vivid", "natural"),
}
#: those of them whose value is worth a word when it is given
_TOLD = ("input_fidelity", "quality", "style")
COMMON_FIELDS = (
    "prompt",
    "model",
    "n",
    "size",
    "response_format",
    "output_format",
    "output_compression",
    "stream",
    "partial_images",
    "user",
    *WITHOUT_EFFECT,
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "seed",
    "scheduler",
    "priority",
    "timeout",
    "progress",
)
GENERATION_FIELDS = COMMON_FIELDS
EDIT_FIELDS = (*COMMON_FIELDS, "strength")  # besides the files

_EXACT = 2**53  # up to which a float tells integers apart
_SIZE = re.compile(r"(\d{1,9})x(\d{1,9})", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,400}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|[+-]?inf(inity)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """Pictures that a client asks for."""

    prompt: str
    negative_prompt: str | None
    n: int
    width: int  # in pixels
    height: int
    num_inference_steps: int
    guidance_scale: float
    seed: int  # of the first picture; the next has the next
    scheduler: str | None  # a class name; the model's own when None
    strength: float | None = None  # of an edit
    image: Array | None = None  # (height, width, 3) of uint8, of an edit
    mask: Array | None = None  # (height, width) of uint8: what is 255 is made anew
    output_format: OutputFormat
    output_compression: int | None  # 0 to 100, of JPEG and WebP
    stream: bool
    partial_images: int
    progress: bool  # whether a stream tells of each step
    priority: Priority
    timeout: float | None  # seconds until the last picture; None: as long as it takes
    warnings: tuple[str, ...] = ()


def read_request(
    fields: Mapping[str, Any],
    card: ModelCard,
    settings: ServerSettings,
    *,
    image: Array | None = None,
    mask: Array | None = None,
    text: bool = False,
) -> ImageRequest:
    """The request that a client's fields make.

    Args:
        fields: of the JSON object, or the form.
        card: of the model.
        settings: the server's limits.
        image: of an edit, (height, width, 3) of uint8.
        mask: of the image's size, (height, width) of uint8.
        text: whether the values are a form's: numbers and truth values are text.

    Raises:
        ApiError: 400, with the field; or 404, of a model that is not served.
    """
    return _Reader(fields, card, settings, text).request(image, mask)


class _Reader:
    """Reads one request's fields."""

    def __init__(self, fields: Mapping[str, Any], card: ModelCard, settings: ServerSettings, text: bool) -> None:
        self._given = tuple(fields)
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._card = card
        self._settings = settings
        self._text = text
        self._warnings: list[str] = []

    def request(self, image: Array | None, mask: Array | None) -> ImageRequest:
        card, settings = self._card, self._settings
        self._refuse_unknown(GENERATION_FIELDS if image is None else EDIT_FIELDS)
        self._check_model()
        self._check_without_effect()
        self._choice("response_format", ("b64_json",), "b64_json")
        self._string("user", "")
        n = self._integer("n", 1, 1, settings.max_images)
        stream = self._truth("stream")
        output_format = self._choice("output_format", OUTPUT_FORMATS, "png")
        compression = self._integer("output_compression", None, 0, 100)
        if compression is not None and output_format == "png":
            raise ApiError.invalid("output_compression is for jpeg and webp", param="output_compression")
        partial_images = self._integer("partial_images", 0, 0, MOST_PREVIEWS)
        for name, given in (("partial_images", bool(partial_images)), ("progress", self._truth("progress"))):
            if given and not stream:
                raise ApiError.invalid(f"{name} needs stream: true", param=name)
        width, height = self._size(image)
        seed = self._integer("seed", None, 0, MOST_SEED)
        if seed is None:
            seed = secrets.randbits(32)
        if seed + n - 1 > MOST_SEED:
            raise ApiError.invalid(f"seed + n - 1 must be at most {MOST_SEED}", param="seed")
        found = ImageRequest(
            prompt=self._prompt("prompt"),
            negative_prompt=self._prompt("negative_prompt") if "negative_prompt" in self._fields else None,
            n=n,
            width=width,
            height=height,
            num_inference_steps=self._integer("num_inference_steps", card.num_inference_steps, 1, settings.max_steps),
            guidance_scale=self._number("guidance_scale", card.guidance_scale, *GUIDANCE),
            seed=seed,
            scheduler=self._scheduler(),
            output_format=output_format,
            output_compression=compression,
            stream=stream,
            partial_images=partial_images,
            progress=self._truth("progress"),
            priority=self._choice("priority", PRIORITIES, "normal"),
            timeout=self._number("timeout", None, 0.0, MOST_SECONDS),
            warnings=tuple(self._warnings),
        )
        if image is None:
            return found
        return replace(found, strength=self._strength(masked=mask is not None), image=image, mask=mask)

    def _refuse_unknown(self, known: tuple[str, ...]) -> None:
        for name in self._given:
            if name not in known:
                shown = name if name.isprintable() and 0 < len(name) <= 64 else ascii(name[:64])
                raise ApiError.invalid(
                    f"there is no field {shown}: {_hint(name, known)}", param=shown, code="unknown_field"
                )

    def _check_model(self) -> None:
        name = self._string("model", self._card.id)
        if name != self._card.id:
            raise unknown_model(name, self._card)

    def _check_without_effect(self) -> None:
        for name, values in WITHOUT_EFFECT.items():
            if name in self._fields:
                self._choice(name, values, values[0])
                if name in _TOLD and self._fields[name] != "auto":
                    self._warnings.append(f"{name} has no effect on this model")

    def _prompt(self, name: str) -> str:
        if name not in self._fields:
            raise ApiError.invalid(f"{name} is missing", param=name, code="missing_field")
        prompt = self._string(name, "")
        if len(prompt) > MOST_CHARACTERS:
            raise ApiError.invalid(
                f"{name} must have at most {MOST_CHARACTERS} characters, got {len(prompt)}",
                param=name,
                code="string_too_long",
            )
        return prompt

    def _size(self, image: Array | None) -> tuple[int, int]:
        card = self._card
        text = self._string("size", "auto")
        if text == "auto":
            width, height = (card.width, card.height) if image is None else (image.shape[1], image.shape[0])
        elif match := _SIZE.fullmatch(text):
            width, height = int(match[1]), int(match[2])
        else:
            raise ApiError.invalid(
                f"size must be auto, or WIDTHxHEIGHT such as {card.width}x{card.height}",
                param="size",
                code="invalid_size",
            )
        check_sides(width, height, card)
        return width, height

    def _scheduler(self) -> str | None:
        name = self._string("scheduler", "")
        known = self._card.schedulers
        if not name or name in known:
            return name or None
        raise ApiError.invalid(f"there is no such scheduler: {_hint(name, known)}", param="scheduler")

    def _strength(self, *, masked: bool) -> float:
        strength: float = self._number("strength", 1.0 if masked else self._card.strength, 0.0, 1.0)
        if strength == 0:
            raise ApiError.invalid("strength must be above 0: at 0 the image stays as it is", param="strength")
        return strength

    def _string(self, name: str, default: str) -> str:
        value = self._fields.get(name, default)
        if not isinstance(value, str):
            raise ApiError.invalid(f"{name} must be a string", param=name, code="invalid_type")
        if "\x00" in value:
            raise ApiError.invalid(f"{name} must have no NUL character", param=name)
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ApiError.invalid(f"{name} has half of a surrogate pair, which is no character", param=name)
        return value

    def _choice(self, name: str, values: tuple[str, ...], default: str) -> Any:
        value = self._string(name, default)
        if value not in values:
            raise ApiError.invalid(f"{name} must be {' or '.join(values)}", param=name)
        return value

    def _truth(self, name: str) -> bool:
        value = self._fields.get(name, False)
        if self._text and value in ("true", "True", "1", "false", "False", "0"):
            return value in ("true", "True", "1")
        if not isinstance(value, bool):
            raise ApiError.invalid(f"{name} must be true or false", param=name, code="invalid_type")
        return value

    def _integer(self, name: str, default: Any, least: int, most: int) -> Any:
        if name not in self._fields:
            return default
        value = self._fields[name]
        if self._text and isinstance(value, str) and _INTEGER.fullmatch(value):
            value = int(value)
        if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
            value = int(value)  # JSON has one kind of numbers
        if isinstance(value, bool) or not isinstance(value, int):
            raise ApiError.invalid(f"{name} must be an integer", param=name, code="invalid_type")
        if not least <= value <= most:
            raise ApiError.invalid(f"{name} must lie between {least} and {most}", param=name, code="out_of_range")
        return value

    def _number(self, name: str, default: Any, least: float, most: float) -> Any:
        if name not in self._fields:
            return default
        value = self._fields[name]
        if self._text and isinstance(value, str) and _NUMBER.fullmatch(value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ApiError.invalid(f"{name} must be a number", param=name, code="invalid_type")
        if isinstance(value, float) and not math.isfinite(value):
            raise ApiError.invalid(f"{name} must be finite", param=name, code="out_of_range")
        if not least <= value <= most:
            raise ApiError.invalid(f"{name} must lie between {least:g} and {most:g}", param=name, code="out_of_range")
        return float(value)


def _hint(name: str, known: tuple[str, ...]) -> str:
    """What may have been meant by a name that is not known: one that has it in it, or is written like it."""
    near = [each for each in known if len(name) > 3 and name in each]
    near = near or difflib.get_close_matches(name[:64], known, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def check_sides(width: int, height: int, card: ModelCard) -> None:
    """Refuses a picture that the model cannot make.

    Raises:
        ApiError: 400 `invalid_size`; the message names the nearest that it can, or the range.
    """
    for name, side, (least, most) in (("width", width, card.width_range), ("height", height, card.height_range)):
        if not least <= side <= most:
            nearest = _nearest(width, height, card)
            raise _invalid_size(f"{name} must lie between {least} and {most} pixels, got {side}; nearest is {nearest}")
    if card.buckets and not any(bucket.holds(width, height) for bucket in card.buckets):
        compiled = " and ".join(map(str, card.buckets))
        raise _invalid_size(f"the engine was compiled for {compiled}, got {width}x{height}")
    if width % card.factor or height % card.factor:
        nearest = _nearest(width, height, card)
        raise _invalid_size(f"sides must be multiples of {card.factor}, got {width}x{height}; nearest is {nearest}")
    if width * height > card.most_pixels:
        nearest = _nearest(width, height, card)
        raise _invalid_size(
            f"a picture may have {card.most_pixels} pixels, {width}x{height} are {width * height}; nearest is {nearest}"
        )


def unknown_model(name: str, card: ModelCard) -> ApiError:
    """The answer to who asks for another model: 404."""
    shown = name if name.isprintable() and len(name) <= 128 else ascii(name[:128])
    return ApiError(404, f"the model {shown} is not served here: {card.id} is", code="model_not_found", param="model")


def _nearest(width: int, height: int, card: ModelCard) -> str:
    """A size that the model can make, of about the same proportions."""
    factor = card.factor
    (least_width, most_width), (least_height, most_height) = (
        (-(-least // factor) * factor, most // factor * factor) for least, most in (card.width_range, card.height_range)
    )
    wide = min(max(round(width / factor) * factor, least_width), most_width)
    high = min(max(round(height / factor) * factor, least_height), most_height)
    if wide * high > card.most_pixels:
        shrunk = math.sqrt(card.most_pixels / (wide * high))
        wide, high = (int(side * shrunk) // factor * factor for side in (wide, high))
        if wide < least_width:
            wide, high = least_width, card.most_pixels // least_width // factor * factor
        elif high < least_height:
            wide, high = card.most_pixels // least_height // factor * factor, least_height
    return f"{wide}x{high}"


def _invalid_size(message: str) -> ApiError:
    return ApiError.invalid(message, param="size", code="invalid_size")
