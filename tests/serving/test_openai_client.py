"""OpenAI's own client against the server: what its users write works with another address."""

import asyncio
import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import openai
import pytest
import uvicorn
from PIL import Image

from safelight.runtime import AutoPipelineForImage2Image, AutoPipelineForInpainting, DiffusionPipeline, bundled_model
from safelight.runtime.schedulers import DDIMScheduler
from safelight.runtime.serving.app import create_app
from safelight.runtime.serving.metrics import Metrics
from safelight.runtime.serving.settings import ServerSettings

KEY = "sk-local"
PROMPT = "cat face on a blue background"
#: of 255: in a batch of another size an engine may round otherwise
TOLERANCE = 1
ENGINE = {"backend": "onnxruntime"}
STEPS = {"num_inference_steps": 3, "seed": 7}


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server on this machine, and its counts."""

    url: str
    metrics: Metrics

    def client(self, *, api_key: str = KEY, max_retries: int = 0, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=api_key, max_retries=max_retries, timeout=60, **options)

    def answered(self, status: int, *, at_least: float = 0) -> float:
        """How many answers of a status there were: an answer is counted once its client has it."""
        wait_until(lambda: self._answered(status) >= at_least)
        return self._answered(status)

    def _answered(self, status: int) -> float:
        name = "safelight_http_requests_total"
        samples = [sample for family in self.metrics.registry.collect() for sample in family.samples]
        return sum(s.value for s in samples if s.name == name and s.labels["status"] == str(status))


@contextmanager
def served(**options: Any) -> Iterator[Served]:
    """A server in a thread of this process, until it is left."""
    metrics = Metrics()
    app = create_app(ServerSettings(api_keys=(KEY,), engine=ENGINE, **options), metrics=metrics)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started and app.state.dispatcher.ready)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(url=f"http://127.0.0.1:{port}/v1", metrics=metrics)
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(max_queue=4, max_batch=2) as found:
        yield found


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with server.client() as found:
        yield found


@pytest.fixture(scope="module")
def pipeline() -> Any:
    found: Any = DiffusionPipeline.from_pretrained(bundled_model(), **ENGINE)
    found.set_progress_bar_config(disable=True)
    return found


def array(b64_json: str | None, kind: str = "PNG") -> Any:
    assert b64_json is not None
    with Image.open(io.BytesIO(base64.b64decode(b64_json))) as picture:
        assert picture.format == kind
        return np.asarray(picture.convert("RGB")).astype(int)


def assert_same(found: Any, expected: Image.Image) -> None:
    own = np.asarray(expected.convert("RGB")).astype(int)
    assert found.shape == own.shape
    assert np.abs(found - own).max() <= TOLERANCE
    assert own.std() > 1  # of nothing, every picture would be right


def file_of(picture: Image.Image, name: str) -> tuple[str, bytes, str]:
    content = io.BytesIO()
    picture.save(content, format="png")
    return name, content.getvalue(), "image/png"


def gradient() -> Image.Image:
    row = np.linspace(0, 255, 64, dtype=np.uint8)
    return Image.fromarray(
        np.stack([np.tile(row, (64, 1)), np.tile(row[:, None], (1, 64)), np.full((64, 64), 90)], -1).astype(np.uint8)
    )


def test_two_pictures(client: openai.OpenAI, pipeline: Any) -> None:
    """Equal to the pipeline's of the same seeds, made one at a time."""
    own = pipeline.scheduler
    more = {**STEPS, "guidance_scale": 4.0, "scheduler": "DDIMScheduler", "negative_prompt": "red"}
    found = client.images.generate(
        model="emoji", prompt=PROMPT, n=2, size="64x64", response_format="b64_json", extra_body=more
    )
    assert found.data is not None
    assert [picture.model_extra for picture in found.data] == [{"seed": 7}, {"seed": 8}]
    pipeline.scheduler = DDIMScheduler.from_config(own.config)
    try:
        for index, picture in enumerate(found.data):
            alone = pipeline(PROMPT, negative_prompt="red", num_inference_steps=3, guidance_scale=4.0, seed=7 + index)
            assert_same(array(picture.b64_json), alone.images[0])
    finally:
        pipeline.scheduler = own
    assert (found.output_format, found.quality, found.background) == ("png", "auto", "opaque")
    assert abs(found.created - time.time()) < 600
    assert found.usage is not None
    assert found.usage.input_tokens == found.usage.input_tokens_details.text_tokens > 4
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    assert found.model_extra is not None
    assert {"id", "seed", "warnings", "timings"} <= found.model_extra.keys()


def test_formats(client: openai.OpenAI) -> None:
    for kind in ("jpeg", "webp"):
        found = client.images.generate(
            prompt=PROMPT,
            output_format=kind,
            output_compression=50,
            extra_body=STEPS,  # type: ignore[call-overload]
        )
        assert array(found.data[0].b64_json, kind.upper()).shape == (64, 64, 3)


def test_a_stream_with_previews(client: openai.OpenAI, pipeline: Any) -> None:
    with client.images.generate(
        prompt=PROMPT, stream=True, partial_images=2, extra_body={"num_inference_steps": 6, "seed": 0}
    ) as stream:
        events = list(stream)
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    first, second, last = events
    assert isinstance(first, openai.types.ImageGenPartialImageEvent)
    assert isinstance(second, openai.types.ImageGenPartialImageEvent)
    assert isinstance(last, openai.types.ImageGenCompletedEvent)
    assert (first.partial_image_index, second.partial_image_index) == (0, 1)
    final = pipeline(PROMPT, num_inference_steps=6, seed=0).images[0]
    assert_same(array(last.b64_json), final)
    assert last.usage.output_tokens == 1
    distances = [np.abs(array(event.b64_json) - np.asarray(final)).mean() for event in (first, second)]
    assert distances[0] > distances[1] > 0


def test_a_picture_changed(client: openai.OpenAI, pipeline: Any) -> None:
    found = client.images.edit(image=file_of(gradient(), "a.png"), prompt=PROMPT, extra_body={**STEPS, "strength": 0.7})
    edits: Any = AutoPipelineForImage2Image.from_pipe(pipeline)
    edits.set_progress_bar_config(disable=True)
    assert found.data is not None
    alone = edits(PROMPT, gradient(), num_inference_steps=3, strength=0.7, seed=7)
    assert_same(array(found.data[0].b64_json), alone.images[0])
    listed = client.images.edit(
        image=[file_of(gradient(), "a.png")], prompt=PROMPT, extra_body={**STEPS, "strength": 0.7}
    )
    assert listed.data is not None
    assert listed.data[0].b64_json == found.data[0].b64_json


def test_a_part_of_a_picture_made_anew(client: openai.OpenAI, pipeline: Any) -> None:
    """OpenAI's mask: what is transparent is made anew, and the rest is kept to the pixel."""
    alpha = np.full((64, 64), 255, np.uint8)
    alpha[:, 32:] = 0
    mask = Image.fromarray(np.dstack([np.zeros((64, 64, 3), np.uint8), alpha]))
    found = client.images.edit(
        image=file_of(gradient(), "a.png"), mask=file_of(mask, "m.png"), prompt=PROMPT, extra_body=STEPS
    )
    inpaints: Any = AutoPipelineForInpainting.from_pipe(pipeline)
    inpaints.set_progress_bar_config(disable=True)
    alone = inpaints(PROMPT, gradient(), Image.fromarray(255 - alpha), num_inference_steps=3, strength=1.0, seed=7)
    assert found.data is not None
    expected = np.asarray(alone.images[0]).copy()
    expected[:, :32] = np.asarray(gradient())[:, :32]
    assert_same(array(found.data[0].b64_json), Image.fromarray(expected))


def test_an_edit_s_stream(client: openai.OpenAI) -> None:
    with client.images.edit(
        image=file_of(gradient(), "a.png"), prompt=PROMPT, stream=True, partial_images=1, extra_body=STEPS
    ) as stream:
        events = list(stream)
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert isinstance(events[1], openai.types.ImageEditCompletedEvent)
    assert array(events[1].b64_json).shape == (64, 64, 3)


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("emoji", "model", "safelight")
    assert client.models.retrieve("emoji") == model
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("another")
    assert raised.value.code == "model_not_found"


def test_what_cannot_be_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="64") as raised:
        client.images.generate(prompt=PROMPT, size="63x64")  # type: ignore[call-overload]
    error = raised.value
    assert (error.param, error.code, error.type) == ("size", "invalid_size", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as raised:
        client.images.generate(prompt=PROMPT, extra_body={"sede": 1})
    assert (raised.value.param, raised.value.code) == ("sede", "unknown_field")
    with pytest.raises(openai.BadRequestError) as raised:
        client.images.edit(image=("a.png", b"no picture", "image/png"), prompt=PROMPT)
    assert (raised.value.param, raised.value.code) == ("image", "invalid_image")
    with pytest.raises(openai.NotFoundError) as missing:
        client.images.generate(prompt=PROMPT, model="dall-e-3")
    assert missing.value.code == "model_not_found"


def test_a_wrong_key(server: Served) -> None:
    with server.client(api_key="sk-wrong") as stranger, pytest.raises(openai.AuthenticationError) as raised:
        stranger.images.generate(prompt=PROMPT)
    assert raised.value.code == "invalid_api_key"
    assert raised.value.response.headers["x-request-id"]


def test_a_full_queue_is_asked_again_when_it_says(server: Served) -> None:
    """Ten pictures, where six have room: at once when there are no retries, and after Retry-After otherwise."""
    before = server.answered(429)
    with server.client() as client, pytest.raises(openai.RateLimitError) as raised:
        client.images.generate(prompt=PROMPT, n=10)
    assert raised.value.code == "queue_full"
    assert int(raised.value.response.headers["retry-after"]) >= 1
    assert server.answered(429, at_least=before + 1) == before + 1
    with server.client(max_retries=1) as client, pytest.raises(openai.RateLimitError):
        client.images.generate(prompt=PROMPT, n=10)
    assert server.answered(429, at_least=before + 3) == before + 3


def test_what_would_fail_again_is_not_asked_again(server: Served) -> None:
    """The client tries errors of 500 and more again, unless `x-should-retry` says that it is of no use."""
    before = server.answered(504)
    more = {"num_inference_steps": 200, "timeout": 0.01}
    with server.client(max_retries=2) as client, pytest.raises(openai.InternalServerError) as raised:
        client.images.generate(prompt=PROMPT, extra_body=more)
    assert raised.value.code == "deadline_exceeded"
    assert raised.value.response.headers["x-should-retry"] == "false"
    assert server.answered(504, at_least=before + 1) == before + 1


def test_an_error_after_a_stream_began(client: openai.OpenAI) -> None:
    more = {"num_inference_steps": 200, "timeout": 0.3, "progress": True}
    with (
        client.images.generate(prompt=PROMPT, stream=True, extra_body=more) as stream,
        pytest.raises(openai.APIError, match="timeout") as raised,
    ):
        list(stream)
    assert raised.value.code == "deadline_exceeded"


def test_the_request_s_id(client: openai.OpenAI) -> None:
    raw = client.images.with_raw_response.generate(
        prompt=PROMPT, extra_body=STEPS, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    found = raw.parse()
    assert found._request_id == "mine-1"
    assert found.model_extra is not None
    assert found.model_extra["id"] == "mine-1"
    with pytest.raises(openai.BadRequestError) as raised:
        client.images.generate(prompt=PROMPT, n=0)
    assert raised.value.request_id


def test_many_at_once_from_the_asynchronous_client(server: Served, pipeline: Any) -> None:
    """Each gets its own picture."""

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=server.url, api_key=KEY, max_retries=5, timeout=60) as client:
            return await asyncio.gather(
                *(
                    client.images.generate(prompt=PROMPT, extra_body={"num_inference_steps": 3, "seed": seed})
                    for seed in range(6)
                )
            )

    for seed, found in enumerate(asyncio.run(ask())):
        assert_same(array(found.data[0].b64_json), pipeline(PROMPT, num_inference_steps=3, seed=seed).images[0])
