"""What clients get: OpenAI's objects, with ours beside them."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable
from dataclasses import asdict
from time import time
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from .errors import ApiError
from .image_request import ImageRequest
from .jobs import Event, Job, Progress
from .messages import Made, Preview
from .model_card import ModelCard

Found = TypeVar("Found")

#: seconds of silence after which a stream shows that it is alive
_SILENCE = 15.0


def model_object(card: ModelCard) -> dict[str, Any]:
    """A model of `/v1/models`."""
    return {**asdict(card), "object": "model", "owned_by": "safelight"}


def images_response(job: Job, made: list[Made]) -> dict[str, Any]:
    """The answer with all pictures."""
    request = job.request
    return {
        "created": int(time()),
        "data": [{"b64_json": _text(each.content), "seed": each.seed} for each in made],
        **_appearance(request),
        "usage": _usage(request, made),
        **_ours(job, made),
    }


async def events(job: Job, name: str) -> AsyncIterator[bytes]:
    """The server-sent events of a job.

    Args:
        job: whose pictures they are about.
        name: "image_generation" or "image_edit".
    """
    created = int(time())
    try:
        async for event in job:
            yield _sent(_event(job, name, event, created))
    except ApiError as error:
        yield _sent({"type": "error", **error.body()})


class EventStream:
    """An answer of server-sent events, for as long as the client listens."""

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # as ASGI has it
        """Sends the events, and ends when there are no more, or nobody listens."""
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.ensure_future(_gone(receive))
        coming = asyncio.ensure_future(_next(self._events))
        try:
            while True:
                await asyncio.wait({gone, coming}, timeout=_SILENCE, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                if not coming.done():
                    await send({"type": "http.response.body", "body": b": still here\n\n", "more_body": True})
                    continue
                event = coming.result()
                if event is None:
                    break
                await send({"type": "http.response.body", "body": event, "more_body": True})
                coming = asyncio.ensure_future(_next(self._events))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            gone.cancel()
            coming.cancel()


async def unless_gone(awaited: Awaitable[Found], receive: Receive) -> Found:
    """What is awaited.

    Raises:
        ConnectionResetError: the client has gone before.
    """
    gone, coming = asyncio.ensure_future(_gone(receive)), asyncio.ensure_future(awaited)
    try:
        await asyncio.wait({gone, coming}, return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            raise ConnectionResetError("the client has gone")
        return coming.result()
    finally:
        gone.cancel()
        coming.cancel()


async def _gone(receive: Receive) -> None:
    """Waits until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _next(events: AsyncIterator[bytes]) -> bytes | None:
    return await anext(events, None)


def _event(job: Job, name: str, event: Event, created: int) -> dict[str, Any]:
    request = job.request
    if isinstance(event, Progress):
        own = {"state": event.state, "position": event.position, "step": event.step, "steps": event.steps}
        return {"type": f"{name}.progress", **own, "id": job.id}
    about = {"b64_json": _text(event.content), "created_at": created, **_appearance(request)}
    if isinstance(event, Preview):
        return {"type": f"{name}.partial_image", "partial_image_index": event.index, **about}
    return {"type": f"{name}.completed", **about, "usage": _usage(request, [event]), **_ours(job, [event])}


def _ours(job: Job, made: list[Made]) -> dict[str, Any]:
    warnings = [*job.request.warnings, *(warning for each in made for warning in each.warnings)]
    return {
        "id": job.id,
        "seed": made[0].seed,
        "warnings": list(dict.fromkeys(warnings)),
        "timings": _longest_timings(made),
    }


def _appearance(request: ImageRequest) -> dict[str, Any]:
    return {
        "output_format": request.output_format,
        "size": f"{request.width}x{request.height}",
        "quality": "auto",
        "background": "opaque",
    }


def _usage(request: ImageRequest, made: list[Made]) -> dict[str, Any]:
    """Tokens: of the prompt, and one for each picture that was given or made, for want of a better unit."""
    text, pictures = made[0].tokens, int(request.image is not None) + int(request.mask is not None)
    return {
        "input_tokens": text + pictures,
        "output_tokens": len(made),
        "total_tokens": text + pictures + len(made),
        "input_tokens_details": {"text_tokens": text, "image_tokens": pictures},
    }


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _sent(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def _longest_timings(made: list[Made]) -> dict[str, float]:
    """Of several pictures the longest of each stage, in seconds."""
    longest: dict[str, float] = {}
    for each in made:
        for name, seconds in each.timings.items():
            longest[name] = max(seconds, longest.get(name, 0.0))
    return longest
