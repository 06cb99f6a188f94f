"""The worker: the process that has the model open and makes the pictures.

`python -m safelight.runtime.serving.worker FD`: reads orders from the connection of that file descriptor, and writes
what becomes of them. It ends when the connection does.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

from . import logs
from .batching import Batcher, Cancelled, NumericalError, Seat
from .errors import ApiError
from .making import (
    CleanLatents,
    Steps,
    arguments_of,
    cut_off,
    encoded,
    finished,
    parameters_of,
    pipeline_for,
    preview_steps,
    previewed,
    prompt_tokens,
)
from .messages import Cancel, Close, Closed, Failed, Made, Message, OpenFailed, Preview, Ready, Start, Step
from .opening import Streams, card_of, has_fixed_sizes, open_pipeline, share_networks
from .settings import ServerSettings

#: seconds after which memory that was used up may be free again
_MEMORY_RETRY = 5.0


class Worker:
    """Makes pictures, several at a time."""

    def __init__(self, connection: Connection, settings: ServerSettings) -> None:
        """Opens the model.

        Raises:
            Exception: whatever keeps the model from being opened.
        """
        self._connection = connection
        self._sending = threading.Lock()
        streams = Streams.of(settings)
        self.pipeline = open_pipeline(settings, streams)
        self.card = card_of(self.pipeline, settings)
        self.batcher = Batcher(streams=streams.count, fixed_sizes=has_fixed_sizes(self.pipeline), ran=self.send)
        share_networks(self.pipeline, self.batcher, settings.max_batch)
        self._seats: dict[int, Seat] = {}
        self._threads = ThreadPoolExecutor(settings.max_batch, thread_name_prefix="picture")

    def run(self) -> None:
        """Takes orders until there are no more, and ends what runs.

        Raises:
            EOFError: the server is gone; or another OSError.
        """
        self.send(Ready(card=self.card))
        while not isinstance(order := self._connection.recv(), Close):
            if isinstance(order, Start):
                self._seats[order.task] = Seat()
                self._threads.submit(self._make, order, self._seats[order.task])
            elif isinstance(order, Cancel) and (seat := self._seats.get(order.task)) is not None:
                self.batcher.cancel(seat)
        self._threads.shutdown()
        self.batcher.close()

    def send(self, message: Message) -> None:
        """Tells the server; one that is gone hears nothing, which `run` finds out."""
        with self._sending, contextlib.suppress(OSError):
            self._connection.send(message)

    def _make(self, order: Start, seat: Seat) -> None:
        """Makes one picture; nothing that goes wrong with it leaves this."""
        message: Message
        try:
            message = _Making(self, order, seat).made()
        except Cancelled:
            message = Closed(task=order.task)
        except BaseException as error:
            message = Failed(task=order.task, error=answer_to(error), cause=cause_of(error))
        del self._seats[order.task]
        self.send(message)


class _Making:
    """One picture that is being made."""

    def __init__(self, worker: Worker, order: Start, seat: Seat) -> None:
        self._worker, self._order, self._seat = worker, order, seat
        self._steps = Steps(self._on_step)
        self._previews = 0  # that were sent
        self._clean: CleanLatents | None = None

    def made(self) -> Made:
        """The picture.

        Raises:
            Cancelled: it is not wanted any more.
            Exception: whatever the pipeline or an engine raises.
        """
        order, base, batcher = self._order, self._worker.pipeline, self._worker.batcher
        request = order.request
        started = perf_counter()
        warnings = cut_off(request, base)
        pipeline = pipeline_for(request, base)
        arguments = arguments_of(request, order.index)
        pipeline.progress_bar = self._steps.bar
        self._clean = CleanLatents(pipeline.scheduler) if request.partial_images else None
        with batcher.seated(self._seat):
            output = pipeline(**arguments, callback_on_step_end=self._after_step)
        denoised = perf_counter()
        scheduler = type(pipeline.scheduler).__name__
        parameters = parameters_of(request, order.index, model=self._worker.card.id, scheduler=scheduler)
        content = encoded(finished(output.images[0], request), request, parameters)
        ended = perf_counter()
        if any(getattr(output, "nsfw_content_detected", None) or ()):
            warnings.append("the picture is black, because the safety checker takes it for not safe for work")
        return Made(
            task=order.task,
            content=content,
            seed=request.seed + order.index,
            tokens=prompt_tokens(request, base),
            warnings=tuple(warnings),
            timings={**output.timings, "encode": ended - denoised, "total": ended - started},
        )

    def _on_step(self, done: int, total: int) -> None:
        if self._order.request.progress:
            self._worker.send(Step(task=self._order.task, step=done, steps=total))

    def _after_step(self, pipeline: Any, _step: int, _timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's callback: ends what was cancelled, and shows previews."""
        if self._seat.cancelled:
            raise Cancelled
        request = self._order.request
        if self._steps.done in preview_steps(self._steps.total, request.partial_images):
            clean = None if self._clean is None else self._clean.latents
            picture = previewed(pipeline, tensors["latents"] if clean is None else clean)
            with self._worker.batcher.apart():
                content = encoded(picture, request)
                self._worker.send(Preview(task=self._order.task, index=self._previews, content=content))
            self._previews += 1
        return {}


def answer_to(error: BaseException) -> ApiError:
    """What a client is told of a picture that could not be made; no engine's words, which may name files."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, NumericalError):
        return ApiError(500, f"{error}: another seed, scheduler or guidance_scale may not", code="numerical_error")
    if isinstance(error, MemoryError):
        message = "the memory is used up: a smaller picture needs less"
        return ApiError(503, message, code="out_of_memory", retry_after=_MEMORY_RETRY)
    if isinstance(error, ValueError | TypeError):
        return ApiError.invalid(str(error))
    return ApiError(500, "the picture could not be made; the server's log says why", code="internal_error")


def cause_of(error: BaseException) -> str:
    """What the log says of an error: an engine's words; of others, which may quote a prompt, where they come from."""
    kind = type(error).__name__
    if isinstance(error, RuntimeError | MemoryError | ArithmeticError | OSError):
        return f"{kind}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{kind} in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else kind


def main(descriptor: int) -> None:
    """The process: opens the model that the first message names, and makes pictures until the connection ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the server decides when this process ends
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(descriptor)
    settings: ServerSettings = connection.recv()
    logs.configure(settings.log_file)
    try:
        worker = Worker(connection, settings)
    except Exception as error:
        connection.send(OpenFailed(message=str(error) or type(error).__name__))
        return
    logging.getLogger("safelight.runtime").setLevel(logging.ERROR)  # warnings of pictures tell of prompts
    try:
        worker.run()
    except (EOFError, OSError):
        os._exit(1)  # the server is gone


if __name__ == "__main__":
    main(int(sys.argv[1]))
