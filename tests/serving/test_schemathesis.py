"""Requests that the OpenAPI document allows, and those that it does not, sent to the application over HTTP.

No answer is a failure of the server, each is one that the document describes, and nothing that it forbids is let in.
"""

import asyncio
import copy
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks
from served import LIMIT, serving

from safelight.runtime.serving.openapi_schemas import CODES

OPERATIONS = [
    ("POST", "/v1/images/generations"),
    ("POST", "/v1/images/edits"),
    ("POST", "/v1/images/requests/{request_id}/cancel"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{id}"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/"),
]
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
FILES = ("image", "image[]", "mask")
_file = io.BytesIO()
Image.new("L", (32, 32), 255).save(_file, "PNG")
PICTURE = _file.getvalue()  # and a mask of all of it; what is no picture is the business of other tests
#: what a server may say to a request that its document allows
ALLOWED_FAILURES = ("deadline_exceeded",)  # a `timeout` of less than a picture takes


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the application is served: pictures of two steps at most, and no larger than the model's own."""
    started, ended, found = threading.Event(), [], []

    async def work() -> None:
        limits = {"max_steps": 2, "num_inference_steps": 1, "max_images": 2, "max_pixels": 64 * 64}
        async with serving(**limits) as served:
            options = {"log_config": None, "access_log": False, "lifespan": "off"}
            server = uvicorn.Server(uvicorn.Config(served.app, host="127.0.0.1", port=0, **options))
            loop, stop = asyncio.get_running_loop(), asyncio.Event()
            serve = asyncio.ensure_future(server.serve())
            while not server.started:
                await asyncio.sleep(0.005)
            found.append(server.servers[0].sockets[0].getsockname()[1])
            ended.append(lambda: loop.call_soon_threadsafe(stop.set))
            started.set()
            await stop.wait()
            server.should_exit = True
            await serve
            await served.until_idle()

    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    assert started.wait(LIMIT)
    yield f"http://127.0.0.1:{found[0]}"
    ended[0]()
    thread.join(LIMIT)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def document(address: str) -> Any:
    return requests.get(f"{address}/openapi.json", timeout=LIMIT).json()


def without_binary(part: Any) -> Any:
    """The document with files as strings: some wrong requests with bytes end in schemathesis's own validator."""
    if isinstance(part, dict):
        return {name: without_binary(each) for name, each in part.items() if (name, each) != ("format", "binary")}
    return [without_binary(each) for each in part] if isinstance(part, list) else part


def check_all(
    address: str, document: Any, method: str, path: str, mode: GenerationMode, examples: int
) -> dict[int, int]:
    """Sends that many requests; how many were answered with each status."""
    if mode == GenerationMode.NEGATIVE:
        document = without_binary(document)
    operation = schemathesis.openapi.from_dict(document)[path][method]
    statuses: dict[int, int] = {}

    with requests.Session() as session:

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            if mode == GenerationMode.POSITIVE and path.endswith("edits"):
                case.body = {name: PICTURE if name in FILES else value for name, value in case.body.items()}
            response = case.call(base_url=address, session=session, timeout=LIMIT)
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
            case.validate_response(response, checks=CHECKS)
            if mode == GenerationMode.NEGATIVE:
                case.validate_response(response, checks=[checks.negative_data_rejection])
            kind = response.headers["content-type"][0]
            if response.status_code >= 400:
                error = response.json()["error"]
                assert error["code"] in CODES[response.status_code]
                assert response.status_code < 500 or error["code"] in ALLOWED_FAILURES
            elif kind.startswith("text/event-stream"):
                check_events(response.content, path, document)

        check()
    return statuses


def check_events(content: bytes, path: str, document: Any) -> None:
    """Each event of a stream is as the document describes it, and the last says that a picture is made, or why not."""
    answer = document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    names = []
    for block in content.decode().split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        if not lines:
            continue
        name, data = lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))
        assert len(lines) == 2
        schema = {**answer["x-events"][name], "components": document["components"]}
        Draft202012Validator(schema).validate(data)
        assert data["type"] == name
        names.append(name)
    assert names[-1].endswith(".completed") or names[-1] == "error"


@pytest.mark.parametrize(("method", "path"), OPERATIONS[:2], ids=lambda value: value.rpartition("/")[2])
def test_pictures(address: str, document: Any, method: str, path: str) -> None:
    assert sum(check_all(address, document, method, path, GenerationMode.POSITIVE, 8).values()) >= 8


def test_requests_that_the_document_allows_make_pictures(address: str, document: Any) -> None:
    document = copy.deepcopy(document)
    fields = document["components"]["schemas"]["GenerationRequest"]["properties"]
    fields["size"], fields["timeout"] = {"const": "auto"}, {"const": None}
    fields["output_compression"] = {"const": None}
    for name in ("partial_images", "progress"):
        fields[name] = {"const": None}
    statuses = check_all(address, document, *OPERATIONS[0], GenerationMode.POSITIVE, 10)
    assert set(statuses) == {200}


@pytest.mark.parametrize(("method", "path"), OPERATIONS[2:])
def test_the_other_routes(address: str, document: Any, method: str, path: str) -> None:
    statuses = check_all(address, document, method, path, GenerationMode.POSITIVE, 2)
    assert set(statuses) <= ({404} if "{" in path else {200})


@pytest.mark.fuzz
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("method", "path"), OPERATIONS[:2])
def test_pictures_at_length(address: str, document: Any, method: str, path: str, mode: GenerationMode) -> None:
    statuses = check_all(address, document, method, path, mode, 200)
    print(method, path, mode.value, statuses)
    assert (200 in statuses) == (mode == GenerationMode.POSITIVE)


@pytest.mark.fuzz
@pytest.mark.parametrize(("method", "path"), [each for each in OPERATIONS if "{" in each[1]])
def test_names_at_length(address: str, document: Any, method: str, path: str) -> None:
    assert set(check_all(address, document, method, path, GenerationMode.POSITIVE, 200)) <= {404}
