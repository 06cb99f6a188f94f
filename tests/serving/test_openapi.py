"""The OpenAPI document: valid, complete, and saying what the code does."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from served import card
from starlette.routing import Route

from safelight.runtime.serving import image_request, uploads
from safelight.runtime.serving.app import create_app
from safelight.runtime.serving.errors import ApiError
from safelight.runtime.serving.image_request import (
    EDIT_FIELDS,
    GENERATION_FIELDS,
    MOST_CHARACTERS,
    MOST_SEED,
    WITHOUT_EFFECT,
    read_request,
)
from safelight.runtime.serving.model_card import ModelCard
from safelight.runtime.serving.openapi import document, page
from safelight.runtime.serving.openapi_schemas import CODES
from safelight.runtime.serving.page import routes as page_routes
from safelight.runtime.serving.settings import ServerSettings

CARD = card(id="emoji <b>", num_inference_steps=15)
SETTINGS = ServerSettings(max_images=3, max_steps=20)
ROUTES = {
    ("post", "/v1/images/generations"): {200, 400, 403, 404, 408, 409, 413, 415, 429, 500, 503, 504},
    ("post", "/v1/images/edits"): {200, 400, 403, 404, 408, 409, 413, 415, 429, 500, 503, 504},
    ("post", "/v1/images/requests/{request_id}/cancel"): {200, 403, 404, 500},
    ("get", "/v1/models"): {200, 403, 500, 503},
    ("get", "/v1/models/{id}"): {200, 403, 404, 500, 503},
    ("get", "/health/live"): {200, 403, 500},
    ("get", "/health/ready"): {200, 403, 500, 503},
    ("get", "/metrics"): {200, 403, 500},
    ("get", "/openapi.json"): {200, 403, 500},
    ("get", "/docs"): {200, 403, 500},
}
PAGE = {("get", route.path): {200, 304, 403, 500} for route in page_routes()}
IMAGE = np.zeros((64, 64, 3), np.uint8)


def schema(name: str, card: ModelCard | None = CARD) -> dict[str, Any]:
    """A schema with its references in place."""
    components = document(card, SETTINGS)["components"]

    def resolved(value: Any) -> Any:
        if isinstance(value, list):
            return [resolved(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return resolved(components["schemas"][value["$ref"].rsplit("/", 1)[-1]])
        return {name: resolved(each) for name, each in value.items()}

    found: dict[str, Any] = resolved(components["schemas"][name])
    return found


@pytest.mark.parametrize("card", [CARD, None], ids=["open", "being-opened"])
@pytest.mark.parametrize("keys", [(), ("secret",)], ids=["open-to-all", "with-a-key"])
@pytest.mark.parametrize("with_page", [True, False])
def test_the_document_is_valid(card: ModelCard | None, keys: tuple[str, ...], with_page: bool) -> None:
    found = document(card, replace(SETTINGS, api_keys=keys, page=with_page))
    OpenAPIV31SpecValidator(json.loads(json.dumps(found, allow_nan=False))).validate()
    for each in found["components"]["schemas"].values():
        Draft202012Validator.check_schema(each)
    assert "secret" not in json.dumps(found)


def test_every_route_is_there_with_every_status() -> None:
    found = document(CARD, SETTINGS)["paths"]
    described = {
        (method, path): {int(status) for status in operation["responses"]}
        for path, methods in found.items()
        for method, operation in methods.items()
    }
    assert described == ROUTES | PAGE
    assert {("get", "/"), ("get", "/app.js"), ("get", "/style.css")} <= set(PAGE)


def test_the_routes_are_the_applications() -> None:
    described = {(method, path) for path, methods in document(CARD, SETTINGS)["paths"].items() for method in methods}
    served = {
        (method.lower(), route.path.replace(":path}", "}"))
        for route in create_app(SETTINGS).routes
        if isinstance(route, Route)
        for method in (route.methods or ())
        if method != "HEAD"
    }
    assert described == served


def test_a_key_is_asked_for_where_there_is_one() -> None:
    found = document(CARD, replace(SETTINGS, api_keys=("k",)))
    assert {each["scheme"] for each in found["components"]["securitySchemes"].values()} == {"bearer", "basic"}
    for path, methods in found["paths"].items():
        for operation in methods.values():
            assert ("401" in operation["responses"]) == (path != "/health/live")
    assert found["paths"]["/health/live"]["get"]["security"] == []
    assert "securitySchemes" not in document(CARD, SETTINGS)["components"]


def test_without_the_page_its_routes_are_not_there() -> None:
    found = document(CARD, replace(SETTINGS, page=False))["paths"]
    assert {(method, path) for path, methods in found.items() for method in methods} == set(ROUTES)


def test_the_fields_are_those_of_requests() -> None:
    assert tuple(schema("GenerationRequest")["properties"]) == GENERATION_FIELDS
    assert tuple(schema("EditRequest")["properties"]) == ("image", "image[]", "mask", *EDIT_FIELDS)


def test_everything_is_described() -> None:
    for name in ("GenerationRequest", "EditRequest"):
        assert all(each.get("description") for each in schema(name)["properties"].values())


def outside(described: dict[str, Any]) -> Iterator[object]:
    """Values that a field's schema does not allow, next to those that it does."""
    if "minimum" in described:
        yield described["minimum"] - 1
    if "exclusiveMinimum" in described:
        yield described["exclusiveMinimum"]
    if "maximum" in described:
        yield described["maximum"] + 1
    if "maxLength" in described:
        yield "x" * (described["maxLength"] + 1)
    if "pattern" in described:
        yield "\x00"
    if "enum" in described:
        yield "none of them"
    yield {}


def inside(described: dict[str, Any]) -> Iterator[object]:
    for name in ("minimum", "maximum", "default"):
        if name in described:
            yield described[name]
    if "maxLength" in described:
        yield "x" * described["maxLength"]
    yield from described.get("enum", ())
    if "null" in described["type"]:
        yield None


#: what else a request needs to say for a field to be allowed
COMPANIONS: dict[str, dict[str, Any]] = {
    "partial_images": {"stream": True},
    "progress": {"stream": True},
    "output_compression": {"output_format": "jpeg"},
}


@pytest.mark.parametrize("name", EDIT_FIELDS)
def test_a_schemas_limits_are_those_that_requests_are_checked_with(name: str) -> None:
    described = schema("GenerationRequest")["properties"].get(name) or schema("EditRequest")["properties"][name]
    image = IMAGE if name == "strength" else None
    others = {"prompt": "", **COMPANIONS.get(name, {})}
    taken = list(inside(described))
    for value in taken:
        assert Draft202012Validator(described).is_valid(value)
        read_request(others | {name: value}, CARD, SETTINGS, image=image)
    refused = list(outside(described))
    for value in refused:
        assert not Draft202012Validator(described).is_valid(value)
        with pytest.raises(ApiError):
            read_request(others | {name: value}, CARD, SETTINGS, image=image)
    assert taken or name in ("prompt", "user")
    assert len(refused) >= 1


def test_defaults_are_what_is_taken_where_nothing_is_given() -> None:
    found = read_request({"prompt": ""}, CARD, SETTINGS, image=IMAGE)
    for name, described in schema("EditRequest")["properties"].items():
        if "default" in described and name not in ("model", "size", "response_format", "scheduler"):
            assert getattr(found, name) == described["default"], name
    defaults = {
        name: each["default"] for name, each in schema("EditRequest")["properties"].items() if "default" in each
    }
    assert defaults["model"] == CARD.id
    assert (defaults["num_inference_steps"], defaults["strength"], defaults["scheduler"]) == (15, 0.8, "PNDMScheduler")
    assert "default" not in schema("EditRequest", None)["properties"]["num_inference_steps"]


def test_the_numbers_are_there() -> None:
    fields = schema("GenerationRequest")["properties"]
    assert fields["n"]["maximum"] == 3
    assert fields["num_inference_steps"]["maximum"] == 20
    assert fields["seed"]["maximum"] == MOST_SEED
    assert fields["prompt"]["maxLength"] == MOST_CHARACTERS
    assert set(fields["scheduler"]["enum"]) == {*CARD.schedulers, None}
    assert fields["quality"]["enum"] == [*WITHOUT_EFFECT["quality"], None]
    assert fields["model"]["enum"] == [CARD.id, None]
    for word in ("multiples of 8", "8 to 256 wide", "8 to 512 high", "16384 pixels"):
        assert word in fields["size"]["description"]


def test_examples_are_requests() -> None:
    content = document(CARD, SETTINGS)["paths"]["/v1/images/generations"]["post"]["requestBody"]["content"]
    examples = [each["value"] for each in content["application/json"]["examples"].values()]
    assert len(examples) >= 2
    for each in examples:
        Draft202012Validator(schema("GenerationRequest")).validate(each)
        assert read_request(each, CARD, SETTINGS).n == each.get("n", 1)


def test_every_code_of_the_code_is_named() -> None:
    folder = Path(image_request.__file__).parent
    raised = {
        code
        for file in (Path(image_request.__file__), Path(uploads.__file__))
        for code in re.findall(r'code="(\w+)"', file.read_text())
    }
    known = {code for codes in CODES.values() for code in codes}
    assert len(raised) > 8
    assert raised <= known
    elsewhere = {
        code
        for file in folder.glob("*.py")
        for code in re.findall(r'ApiError\([^)]*?code="(\w+)"', file.read_text(), re.DOTALL)
    }
    assert elsewhere <= known


def test_an_error_is_as_it_is_described() -> None:
    validator = Draft202012Validator(schema("Error"))
    for status, codes in CODES.items():
        for code in codes:
            validator.validate(ApiError(status, "x", code=code, param=None).body())
    assert not validator.is_valid(ApiError(400, "x", code="another").body())
    Draft202012Validator(schema("ErrorEvent")).validate(
        {"type": "error", **ApiError(500, "x", code="internal_error").body()}
    )


def test_a_stream_names_its_events() -> None:
    for path, stream in (("generations", "image_generation"), ("edits", "image_edit")):
        content = document(CARD, SETTINGS)["paths"][f"/v1/images/{path}"]["post"]["responses"]["200"]["content"]
        named = content["text/event-stream"]["x-events"]
        assert set(named) == {*(f"{stream}.{kind}" for kind in ("partial_image", "progress", "completed")), "error"}
        for event, reference in named.items():
            assert schema(reference["$ref"].rsplit("/", 1)[-1])["properties"]["type"]["enum"] == [event]


# the page


class Outline(HTMLParser):
    """What a page has in it; every tag is closed in its order."""

    VOID = ("meta", "br", "!doctype")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def close(self) -> None:
        super().close()
        assert not self._open


def outline(card: ModelCard | None = CARD) -> Outline:
    found = Outline()
    found.feed(page(document(card, replace(SETTINGS, api_keys=("k",)))))
    found.close()
    return found


@pytest.mark.parametrize("card", [CARD, None], ids=["open", "being-opened"])
def test_the_page_has_no_script_and_nothing_from_elsewhere(card: ModelCard | None) -> None:
    found = outline(card)
    assert not {"script", "img", "link", "iframe", "object", "b"} & set(found.tags)
    for name, value in found.attributes:
        assert not name.startswith("on")
        if name in ("href", "src"):
            assert (value or "").startswith("#")
    assert "url(" not in "".join(found.text)


def test_the_pages_links_lead_somewhere() -> None:
    found = outline()
    names = {value for name, value in found.attributes if name == "id"}
    links = {(value or "")[1:] for name, value in found.attributes if name == "href"}
    assert links <= names
    assert len(links) > 15


def test_the_page_names_every_route_field_and_status() -> None:
    text = "".join(outline().text)
    for method, path in ROUTES | PAGE:
        assert path in text
        assert method.upper() in text
    for word in (*EDIT_FIELDS, "emoji <b>", "queue_full", "text/event-stream", "image_edit.partial_image", "bearer"):
        assert word in text
