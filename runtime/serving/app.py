"""The application: OpenAI's image routes over a dispatcher, for any ASGI server."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from . import openapi, page, tracing
from .answers import EventStream, events, images_response, model_object, unless_gone
from .dispatch import Dispatcher
from .errors import ApiError
from .gate import LIVENESS, Gate
from .image_request import ImageRequest, read_request, unknown_model
from .metrics import Metrics
from .settings import ServerSettings
from .uploads import read_image, read_mask
from .worker_process import StartWorker, WorkerProcess

#: parts of a form, besides the pictures, and bytes of one that is text
_MOST_FIELDS = 64
_MOST_FILES = 4
_MOST_TEXT = 1_000_000
_IMAGE, _IMAGES, _MASK = "image", "image[]", "mask"


def create_app(
    settings: ServerSettings, *, metrics: Metrics | None = None, start_worker: StartWorker = WorkerProcess
) -> Starlette:
    """The application; its lifespan starts the worker, and ends it.

    Args:
        settings: the server's.
        metrics: where it counts; its own when None.
        start_worker: what makes the pictures.
    """
    counted = metrics or Metrics()
    dispatcher = Dispatcher(settings, counted, start_worker)
    routes = Routes(settings, dispatcher, counted)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        dispatcher.start()
        yield
        await dispatcher.drain(settings.drain_timeout)
        await dispatcher.close()

    app = _Gated(routes=routes.table(), lifespan=lifespan, gate=(settings, counted))
    app.state.dispatcher = dispatcher
    app.state.settings = settings
    return app


class _Gated(Starlette):
    """Starlette with the gate around all of it: what its own layers raise is answered there too."""

    def __init__(self, *, gate: tuple[ServerSettings, Metrics], **options: Any) -> None:
        super().__init__(**options)
        self._gate = gate

    def build_middleware_stack(self) -> ASGIApp:
        return Gate(self.router, *self._gate)


class Routes:
    """What each route does."""

    def __init__(self, settings: ServerSettings, dispatcher: Dispatcher, metrics: Metrics) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._metrics = metrics

    def table(self) -> list[Route]:
        """All routes."""
        own = [
            Route("/v1/images/generations", self.generations, methods=["POST"]),
            Route("/v1/images/edits", self.edits, methods=["POST"]),
            Route("/v1/images/requests/{request_id}/cancel", self.cancel, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{id:path}", self.model, methods=["GET"]),
            Route(LIVENESS, self.live, methods=["GET"]),
            Route("/health/ready", self.readiness, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/openapi.json", self.document, methods=["GET"]),
            Route("/docs", self.docs, methods=["GET"]),
        ]
        return [*own, *(page.routes() if self._settings.page else ())]

    async def generations(self, request: Request) -> Any:
        """Pictures from a prompt."""
        _check_type(request, "application/json")
        fields = _json_object(await request.body())
        card = self._dispatcher.known_card()
        if not card.generations:
            raise ApiError.invalid(
                f"{card.id} changes pictures, and makes none from noise: /v1/images/edits", param="model"
            )
        return await self._answer(request, read_request(fields, card, self._settings), "image_generation")

    async def edits(self, request: Request) -> Any:
        """Pictures from a picture, all of it or what a mask says."""
        _check_type(request, "multipart/form-data")
        try:
            limits = {"max_files": _MOST_FILES, "max_fields": _MOST_FIELDS, "max_part_size": _MOST_TEXT}
            async with request.form(**limits) as form:
                fields, image_bytes, mask_bytes = await _parts(form)
        except HTTPException as error:
            raise ApiError.invalid(f"the form cannot be read: {error.detail}", code="invalid_form") from error
        card = self._dispatcher.known_card()
        image = await asyncio.to_thread(read_image, image_bytes)
        mask = None
        if mask_bytes is not None:
            size = {"width": image.shape[1], "height": image.shape[0]}
            mask = await asyncio.to_thread(read_mask, mask_bytes, **size)
        if mask is None and not card.edits:
            raise ApiError.invalid(f"{card.id} changes what a mask says: give one", param=_MASK)
        if mask is not None and not card.masks:
            raise ApiError.invalid(f"{card.id} takes no mask", param=_MASK)
        asked = read_request(fields, card, self._settings, image=image, mask=mask, text=True)
        return await self._answer(request, asked, "image_edit")

    async def cancel(self, request: Request) -> Response:
        """Ends a request that waits or runs."""
        request_id = request.path_params["request_id"]
        if not self._dispatcher.cancel(request_id):
            raise ApiError(404, "no request of that id waits or runs", code="not_found", param="request_id")
        return JSONResponse({"id": request_id, "cancelled": True})

    async def models(self, _: Request) -> Response:
        """The model, in a list."""
        return JSONResponse({"object": "list", "data": [model_object(self._dispatcher.known_card())]})

    async def model(self, request: Request) -> Response:
        """The model, by its name."""
        card = self._dispatcher.known_card()
        if request.path_params["id"] != card.id:
            raise unknown_model(request.path_params["id"], card)
        return JSONResponse(model_object(card))

    async def live(self, _: Request) -> Response:
        """Whether the server answers."""
        return JSONResponse({"status": "live"})

    async def readiness(self, _: Request) -> Response:
        """Whether pictures can be made now."""
        found = self._dispatcher
        if found.draining:
            raise ApiError(503, "the server is about to end", code="shutting_down", retry_after=1.0)
        if not found.ready:
            message = "the model is being opened" if found.card is None else "the worker is started again"
            raise ApiError(503, message, code="not_ready", retry_after=1.0)
        return JSONResponse({"status": "ready", "waiting": found.waiting, "running": found.running})

    async def metrics(self, _: Request) -> Response:
        """What was counted, for Prometheus."""
        content, kind = self._metrics.exposition()
        return Response(content, headers={"content-type": kind})

    async def document(self, _: Request) -> Response:
        """The OpenAPI document."""
        return JSONResponse(openapi.document(self._dispatcher.card, self._settings))

    async def docs(self, _: Request) -> Response:
        """The same, for people."""
        return HTMLResponse(openapi.page(openapi.document(self._dispatcher.card, self._settings)))

    async def _answer(self, request: Request, asked: ImageRequest, name: str) -> Any:
        """Lets a request in, and answers when its pictures are made, or as they are."""
        with tracing.span(name, pictures=asked.n, steps=asked.num_inference_steps):
            job = self._dispatcher.submit(asked, request.state.request_id)
            if asked.stream:
                return _Streamed(self._dispatcher, job, name)
            try:
                made = await unless_gone(job.pictures(), request.receive)
            finally:
                self._dispatcher.cancel(job, reason="left by its client")
            return JSONResponse(images_response(job, made))


class _Streamed(EventStream):
    """A job's events; the job ends with who listens."""

    def __init__(self, dispatcher: Dispatcher, job: Any, name: str) -> None:
        super().__init__(events(job, name))
        self._dispatcher = dispatcher
        self._job = job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._dispatcher.cancel(self._job, reason="left by its client")


def _check_type(request: Request, expected: str) -> None:
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found != expected:
        raise ApiError(415, f"the body must be {expected}", code="unsupported_media_type")


def _json_object(body: bytes) -> Mapping[str, Any]:
    """The fields of a JSON body.

    Raises:
        ApiError: 400, it is no JSON object.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError.invalid("the body is no JSON", code="invalid_json") from error
    if not isinstance(found, dict):
        raise ApiError.invalid("the body must be a JSON object", code="invalid_json")
    return found


async def _parts(form: FormData) -> tuple[dict[str, Any], bytes, bytes | None]:
    """A form's fields, and the bytes of image and mask.

    Raises:
        ApiError: 400, there is no picture or more than one, or a field is given twice or of the wrong kind.
    """
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    for name, value in form.multi_items():
        own = _IMAGE if name == _IMAGES else name
        if own in fields or own in files:
            what = "one picture can be changed at a time" if own == _IMAGE else f"{own[:64]} is given twice"
            raise ApiError.invalid(what, param=own[:64])
        if isinstance(value, UploadFile):
            if own not in (_IMAGE, _MASK):
                raise ApiError.invalid("only image and mask are files", param=own[:64], code="unknown_field")
            files[own] = await value.read()
        elif own in (_IMAGE, _MASK):
            message = f"{own} must be a file: the server fetches no pictures"
            raise ApiError.invalid(message, param=own, code="image_url")
        else:
            fields[own] = value
    if _IMAGE not in files:
        raise ApiError.invalid("image is missing", param=_IMAGE, code="missing_field")
    return fields, files[_IMAGE], files.get(_MASK)
