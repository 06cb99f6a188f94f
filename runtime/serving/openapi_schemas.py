"""JSON schemas of what clients and server say to each other; the limits are those of `image_request`."""

from typing import Any

from ..schedulers import every_scheduler
from .image_request import (
    EDIT_FIELDS,
    GENERATION_FIELDS,
    GUIDANCE,
    MOST_CHARACTERS,
    MOST_PREVIEWS,
    MOST_SECONDS,
    MOST_SEED,
    OUTPUT_FORMATS,
    PRIORITIES,
    WITHOUT_EFFECT,
)
from .model_card import ModelCard
from .settings import ServerSettings
from .uploads import FORMATS

Schema = dict[str, Any]

#: status -> the codes of its errors
CODES: dict[int, tuple[str, ...]] = {
    400: (
        "invalid_json",
        "invalid_type",
        "invalid_value",
        "out_of_range",
        "missing_field",
        "unknown_field",
        "string_too_long",
        "invalid_size",
        "invalid_image",
        "image_too_large",
        "invalid_mask_size",
        "image_url",
        "invalid_form",
    ),
    401: ("invalid_api_key",),
    403: ("foreign_host", "foreign_origin"),
    404: ("model_not_found", "not_found"),
    405: ("method_not_allowed",),
    408: ("body_timeout",),
    409: ("cancelled", "duplicate_request_id"),
    413: ("body_too_large",),
    415: ("unsupported_media_type",),
    429: ("queue_full",),
    500: ("numerical_error", "internal_error"),
    503: ("not_ready", "shutting_down", "engine_restarting", "out_of_memory"),
    504: ("deadline_exceeded",),
}
#: what events are called: those of new pictures, and those of edits
STREAMS = ("image_generation", "image_edit")

_NO_NUL = r"^[^\u0000]*$"


def schemas(card: ModelCard | None, settings: ServerSettings) -> dict[str, Schema]:
    """Every body by its name; what only the model says is left open while there is no card."""
    found = {
        "GenerationRequest": _generation_request(card, settings),
        "EditRequest": _edit_request(card, settings),
        "Images": _images(),
        "Model": _model(card),
        "Models": _object({"object": _one_of("list"), "data": {"type": "array", "items": _ref("Model")}}),
        "Cancelled": _object({"id": _text("The request's."), "cancelled": {"const": True}}),
        "Live": _object({"status": _one_of("live")}),
        "Ready": {**_object({"status": _one_of("ready")}), "additionalProperties": True},
        "Error": _error(),
        "ErrorEvent": _object({"type": _one_of("error"), "error": _error_fields()}),
    }
    for stream in STREAMS:
        name = "".join(word.capitalize() for word in stream.split("_"))
        found[f"{name}PartialImage"] = _partial_image(f"{stream}.partial_image")
        found[f"{name}Completed"] = _completed(f"{stream}.completed")
        found[f"{name}Progress"] = _progress(f"{stream}.progress")
    return found


def events(stream: str) -> dict[str, Schema]:
    """The events of a stream, each with the schema of its data."""
    name = "".join(word.capitalize() for word in stream.split("_"))
    return {
        f"{stream}.partial_image": _ref(f"{name}PartialImage"),
        f"{stream}.progress": _ref(f"{name}Progress"),
        f"{stream}.completed": _ref(f"{name}Completed"),
        "error": _ref("ErrorEvent"),
    }


def _fields(card: ModelCard | None, settings: ServerSettings) -> dict[str, Schema]:
    """Every field of a request by its name."""
    seen: dict[str, Schema] = {
        "prompt": _text("What the picture shows.", maxLength=MOST_CHARACTERS, pattern=_NO_NUL),
        "negative_prompt": _text("What it does not show.", maxLength=MOST_CHARACTERS, pattern=_NO_NUL),
        "model": _text("The model that is served."),
        "n": _integer("How many pictures.", 1, settings.max_images, default=1),
        "size": _text(_size_text(card), pattern=r"^(auto|[0-9]{1,9}x[0-9]{1,9})$", default="auto"),
        "response_format": _one_of("b64_json", default="b64_json", description="Pictures come in the answer."),
        "output_format": _one_of(*OUTPUT_FORMATS, default="png", description="The pictures' file format."),
        "output_compression": _integer("The quality of JPEG and WebP; PNG takes none.", 0, 100),
        "stream": _truth("Whether the answer is a stream of events."),
        "partial_images": _integer(
            "How many previews a stream shows of each picture; needs `stream`.", 0, MOST_PREVIEWS, default=0
        ),
        "user": _text("Whatever the client likes; it is not kept.", pattern=_NO_NUL),
        "num_inference_steps": _integer("How many steps the denoising takes.", 1, settings.max_steps),
        "guidance_scale": _number("How closely to follow the prompt.", *GUIDANCE),
        "seed": _integer(
            "Of the first picture, the next has the next; the same request with it makes the same pictures. Chosen by "
            "the server, and told, where it is not given.",
            0,
            MOST_SEED,
        ),
        "scheduler": _one_of(
            *(card.schedulers if card else every_scheduler()),
            description="How the steps are taken; the model's own if not given.",
        ),
        "priority": _one_of(*PRIORITIES, default="normal", description="Who is before whom in the queue."),
        "timeout": _number("Seconds after which the request is given up: 504.", 0, MOST_SECONDS),
        "progress": _truth("Whether a stream tells of each step; needs `stream`."),
        "strength": {
            "type": "number",
            "description": "How much of the image is made anew: at 1 all of it.",
            "exclusiveMinimum": 0,
            "maximum": 1,
        },
    }
    for name, values in WITHOUT_EFFECT.items():
        seen[name] = _one_of(*values, description="OpenAI's; has no effect here.")
    if card is not None:
        seen["model"] |= {"enum": [card.id], "default": card.id}
        for name in ("num_inference_steps", "guidance_scale", "scheduler"):
            seen[name]["default"] = getattr(card, name)
    return seen


def _size_text(card: ModelCard | None) -> str:
    if card is None:
        return "WIDTHxHEIGHT in pixels, or auto: the model's own; of an edit the image's."
    compiled = f"The engine was compiled for {' and '.join(map(str, card.buckets))}. " if card.buckets else ""
    return (
        f"WIDTHxHEIGHT in pixels: multiples of {card.factor}, {card.width_range[0]} to {card.width_range[1]} wide, "
        f"{card.height_range[0]} to {card.height_range[1]} high, at most {card.most_pixels} pixels. "
        f"{compiled}Or auto: {card.width}x{card.height}; of an edit the image's."
    )


def _generation_request(card: ModelCard | None, settings: ServerSettings) -> Schema:
    fields = _fields(card, settings)
    return _object(
        {name: fields[name] if name == "prompt" else _or_null(fields[name]) for name in GENERATION_FIELDS},
        required=("prompt",),
    )


def _edit_request(card: ModelCard | None, settings: ServerSettings) -> Schema:
    fields = _fields(card, settings)
    if card is not None:
        fields["strength"]["default"] = card.strength
        fields["strength"]["description"] += f" {card.strength:g} if not given, with a mask 1."
    formats = " or ".join(FORMATS)
    files = {
        "image": _file(f"The picture to start from: {formats}, not animated."),
        "image[]": _file("The same under another name; exactly one of the two."),
        "mask": _file(
            f"What to make anew: {formats} of the image's size. Where it is transparent or, if it is nowhere "
            "transparent, where it is white."
        ),
    }
    found = _object(files | {name: fields[name] for name in EDIT_FIELDS}, required=("prompt",))
    return {**found, "oneOf": [{"required": ["image"]}, {"required": ["image[]"]}]}


def _images() -> Schema:
    seconds = {
        name: {"type": "number", "minimum": 0}
        for name in ("queue", "text", "image", "denoise", "decode", "encode", "total")
    }
    picture = _object({"b64_json": _base64(), "seed": _integer("Of this picture.", 0, MOST_SEED)})
    return _object(
        {
            "created": _created(),
            "data": {"type": "array", "items": picture, "minItems": 1},
            **_look(),
            "usage": _usage(),
            **_made(),
            "timings": {
                **_object(seconds, required=("queue", "total")),
                "additionalProperties": {"type": "number", "minimum": 0},  # a pipeline may have further stages
                "description": "Seconds by stage; of several pictures the longest of each.",
            },
        }
    )


def _partial_image(event: str) -> Schema:
    index = _integer("Of the previews of this picture.", 0, MOST_PREVIEWS)
    return _event(event, {"b64_json": _base64(), "partial_image_index": index, "created_at": _created(), **_look()})


def _completed(event: str) -> Schema:
    timings = _images()["properties"]["timings"]
    return _event(
        event,
        {"b64_json": _base64(), "created_at": _created(), **_look(), "usage": _usage(), **_made(), "timings": timings},
    )


def _progress(event: str) -> Schema:
    found = _event(
        event,
        {
            "state": _one_of("queued", "running"),
            "step": {"type": "integer", "minimum": 0},
            "steps": {"type": "integer", "minimum": 0},
            "position": {
                "type": "integer",
                "description": "Pictures that come before it.",
                "minimum": 0,
            },
        },
    )
    return {**found, "required": ["type", "state"]}


def _look() -> dict[str, Schema]:
    return {
        "output_format": _one_of(*OUTPUT_FORMATS),
        "size": _text("WIDTHxHEIGHT in pixels.", pattern=r"^[0-9]+x[0-9]+$"),
        "quality": _one_of("auto"),
        "background": _one_of("opaque"),
    }


def _made() -> dict[str, Schema]:
    return {
        "id": _text("The request's."),
        "seed": _integer("Of the first picture.", 0, MOST_SEED),
        "warnings": {"type": "array", "items": {"type": "string"}},
    }


def _usage() -> Schema:
    count = {"type": "integer", "minimum": 0}
    return _object(
        {
            "input_tokens": count,
            "output_tokens": count,
            "total_tokens": count,
            "input_tokens_details": _object({"text_tokens": count, "image_tokens": count}),
        }
    )


def _model(card: ModelCard | None) -> Schema:
    found = _object(
        {
            "id": _text("Its name in requests."),
            "object": _one_of("model"),
            "created": _created(),
            "owned_by": {"type": "string"},
        }
    )
    if card is not None:
        found["examples"] = [{"id": card.id, "object": "model", "created": card.created, "owned_by": "safelight"}]
    return {**found, "additionalProperties": True, "description": "And what it can make: sides, steps, defaults."}


def _error() -> Schema:
    return _object({"error": _error_fields()})


def _error_fields() -> Schema:
    codes = [code for each in CODES.values() for code in each]
    return _object(
        {
            "message": _text("For a person."),
            "type": {"type": "string"},
            "param": {"type": ["string", "null"], "description": "The field that is wrong."},
            "code": {"type": "string", "enum": codes, "description": "For programs."},
        }
    )


def _event(event: str, properties: dict[str, Schema]) -> Schema:
    return {**_object({"type": _one_of(event), **properties}), "additionalProperties": True}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: dict[str, Schema], *, required: tuple[str, ...] | None = None) -> Schema:
    names = list(properties) if required is None else list(required)
    found: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return found | {"required": names} if names else found


def _text(description: str, **more: object) -> Schema:
    return {"type": "string", "description": description, **more}


def _integer(description: str, least: int, most: int, **more: object) -> Schema:
    return {"type": "integer", "description": description, "minimum": least, "maximum": most, **more}


def _number(description: str, least: float, most: float) -> Schema:
    return {"type": "number", "description": description, "minimum": least, "maximum": most}


def _truth(description: str) -> Schema:
    return {"type": "boolean", "description": description, "default": False}


def _one_of(*values: str, **more: object) -> Schema:
    return {"type": "string", "enum": list(values), **more}


def _file(description: str) -> Schema:
    return {
        "type": "string",
        "format": "binary",
        "contentMediaType": "application/octet-stream",
        "description": description,
    }


def _base64() -> Schema:
    return {"type": "string", "contentEncoding": "base64", "description": "The file."}


def _created() -> Schema:
    return {"type": "integer", "minimum": 0, "description": "Seconds since 1970."}


def _or_null(schema: Schema) -> Schema:
    """The same, or null, which is as good as not given."""
    found = {**schema, "type": [schema["type"], "null"]}
    if "enum" in schema:
        found["enum"] = [*schema["enum"], None]
    return found
