"""The OpenAPI 3.1 document of the server's routes, made from what the code checks requests with."""

import copy
from importlib.metadata import version
from typing import Any

from .errors import ApiError
from .model_card import ModelCard
from .openapi_page import page
from .openapi_schemas import CODES, Schema, events, schemas
from .page import routes as page_routes
from .settings import ServerSettings

__all__ = ["document", "page"]

_TITLE = "safelight"
_ABOUT = (
    "Pictures from prompts, over OpenAI's image API. Fields that OpenAI does not have are ours; nothing is clamped, "
    "and a field that is not known is refused. Every answer has an x-request-id."
)
_MEANINGS = {
    400: "The request is wrong; `param` names the field.",
    401: "A key is needed, and there is none or another.",
    403: "The Host is not one of the server's, or the Origin is another site's.",
    404: "There is nothing of that name.",
    408: "The body took too long.",
    409: "Cancelled by its client; or another request of that x-request-id is under way.",
    413: "The body is too large.",
    415: "The body is of another kind.",
    429: "The queue is full.",
    500: "The picture could not be made.",
    503: "The model is not open at the moment.",
    504: "Not done within its `timeout`.",
}
#: statuses that say when to ask again
_RETRIED = (429, 503)
_PICTURES = (400, 404, 408, 409, 413, 415, 429, 503, 504)
#: of the page's files, by the ends of their names
_TYPES = {"css": "text/css", "js": "text/javascript"}
_JSON, _STREAM, _FORM = "application/json", "text/event-stream", "multipart/form-data"


def document(card: ModelCard | None, settings: ServerSettings) -> dict[str, Any]:
    """The document, as JSON has it.

    Args:
        card: of the model; None while it is being opened, when what only the model says is left out.
        settings: the server's limits.
    """
    components: dict[str, Any] = {"schemas": schemas(card, settings)}
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": _TITLE,
            "version": version("safelight"),
            "summary": "An image server.",
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "images", "description": "Pictures are made."},
            {"name": "models", "description": "What is served."},
            {"name": "server", "description": "How the server is, and what it can do."},
        ],
        "paths": _paths(settings),
        "components": components,
    }
    if settings.api_keys:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "The key."},
            "basic": {"type": "http", "scheme": "basic", "description": "Any name, and the key as password."},
        }
        found["security"] = [{"bearer": []}, {"basic": []}]
    return copy.deepcopy(found)  # no part of it is in two places


def _paths(settings: ServerSettings) -> dict[str, Any]:
    locked = bool(settings.api_keys)
    found: dict[str, Any] = {
        "/v1/images/generations": {"post": _generations(locked)},
        "/v1/images/edits": {"post": _edits(locked)},
        "/v1/images/requests/{request_id}/cancel": {"post": _cancel(locked)},
        "/v1/models": {"get": _get("models", "listModels", "The model that is served.", "Models", locked, (503,))},
        "/v1/models/{id}": {"get": _model(locked)},
        "/health/live": {"get": _live()},
        "/health/ready": {"get": _get("server", "isReady", "Whether pictures can be made.", "Ready", locked, (503,))},
        "/metrics": {"get": _text("readMetrics", "What was counted, for Prometheus.", "text/plain", locked)},
        "/openapi.json": {"get": _document(locked)},
        "/docs": {"get": _text("readDocs", "This document, for people.", "text/html", locked)},
    }
    if settings.page:
        found |= {route.path: {"get": _page_file(route.path, locked)} for route in page_routes()}
    return found


def _generations(locked: bool) -> Schema:
    examples = {
        "plain": {"summary": "One picture", "value": {"prompt": "a red apple on a white background"}},
        "stream": {
            "summary": "Two pictures that can be made again, previewed while they are made",
            "value": {"prompt": "pizza", "n": 2, "seed": 7, "stream": True, "partial_images": 2, "progress": True},
        },
    }
    body = {"required": True, "content": {_JSON: {"schema": _ref("GenerationRequest"), "examples": examples}}}
    return _pictures("createImage", "Makes pictures from a prompt.", "image_generation", body, locked)


def _edits(locked: bool) -> Schema:
    types = "image/png, image/jpeg, image/webp"
    encoding = {name: {"contentType": types} for name in ("image", "image[]", "mask")}
    body = {"required": True, "content": {_FORM: {"schema": _ref("EditRequest"), "encoding": encoding}}}
    return _pictures(
        "createImageEdit", "Makes a picture anew: all of it, or what a mask says.", "image_edit", body, locked
    )


def _pictures(name: str, summary: str, stream: str, body: Schema, locked: bool) -> Schema:
    example = f'event: {stream}.completed\ndata: {{"type": "{stream}.completed", "b64_json": "iVBORw0K", ...}}\n\n'
    made = {
        "description": "The pictures; with `stream` one event for each, and those that were asked for before.",
        "headers": _headers(),
        "content": {
            _JSON: {"schema": _ref("Images")},
            _STREAM: {"example": example, "x-events": events(stream)},
        },
    }
    return {
        "operationId": name,
        "tags": ["images"],
        "summary": summary,
        "parameters": [_REQUEST_ID],
        "requestBody": body,
        "responses": {"200": made, **_errors(_PICTURES, locked)},
    }


def _cancel(locked: bool) -> Schema:
    found = _get("images", "cancelImage", "Ends a request that waits or runs.", "Cancelled", locked, (404,))
    return {**found, "parameters": [_in_path("request_id", "The x-request-id of the request, or the `id` it got.")]}


def _model(locked: bool) -> Schema:
    found = _get("models", "readModel", "One model.", "Model", locked, (404, 503))
    return {**found, "parameters": [_in_path("id", "The model's name.")]}


def _live() -> Schema:
    return {**_get("server", "isLive", "Whether the server answers; needs no key.", "Live", False, ()), "security": []}


def _document(locked: bool) -> Schema:
    content = {_JSON: {"schema": {"type": "object"}}}
    return _operation("server", "readDocument", "This document.", content, locked, ())


def _page_file(path: str, locked: bool) -> Schema:
    """The page at `/`, and what it loads."""
    name, _, end = path[1:].partition(".")
    summary = "Of the page." if name else "The page where people make pictures."
    found = _text(f"readPage{name.capitalize()}{end.capitalize()}", summary, _TYPES.get(end, "text/html"), locked)
    found["responses"]["304"] = {"description": "It is as the client has it.", "headers": _headers()}
    return found


def _get(tag: str, name: str, summary: str, schema: str, locked: bool, statuses: tuple[int, ...]) -> Schema:
    return _operation(tag, name, summary, {_JSON: {"schema": _ref(schema)}}, locked, statuses)


def _text(name: str, summary: str, content_type: str, locked: bool) -> Schema:
    return _operation("server", name, summary, {content_type: {"schema": {"type": "string"}}}, locked, ())


def _operation(tag: str, name: str, summary: str, content: Schema, locked: bool, statuses: tuple[int, ...]) -> Schema:
    answer = {"description": summary, "headers": _headers(), "content": content}
    responses = {"200": answer, **_errors(statuses, locked)}
    return {"operationId": name, "tags": [tag], "summary": summary, "responses": responses}


def _errors(statuses: tuple[int, ...], locked: bool) -> Schema:
    """The answers that are errors: those of every route besides."""
    found = {}
    for status in sorted({*statuses, 403, 500, *((401,) if locked else ())}):
        example = {
            "error": {
                "message": "...",
                "type": ApiError(status, "", code="").kind,
                "param": None,
                "code": CODES[status][0],
            }
        }
        found[str(status)] = {
            "description": f"{_MEANINGS[status]} Code: {', '.join(CODES[status])}.",
            "headers": _headers(status),
            "content": {_JSON: {"schema": _ref("Error"), "example": example}},
        }
    return found


def _headers(status: int = 200) -> Schema:
    found: Schema = {"x-request-id": {"schema": {"type": "string"}, "description": "The client's, or the server's."}}
    if status in _RETRIED:
        found["retry-after"] = {"schema": {"type": "integer"}, "description": "Seconds until it is worth asking again."}
    if status == 401:
        found["www-authenticate"] = {"schema": {"type": "string"}, "description": "So that a browser asks for the key."}
    return found


def _in_path(name: str, description: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}


_REQUEST_ID: Schema = {
    "name": "x-request-id",
    "in": "header",
    "required": False,
    "description": "A name for the request, to cancel it by: up to 128 of A-Z, a-z, 0-9, '.', '_', '-'. Another is "
    "passed over.",
    "schema": {"type": "string"},
}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
