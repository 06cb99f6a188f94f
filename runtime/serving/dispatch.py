"""The queue before the worker: who is let in, who is next, what becomes of each picture."""

import asyncio
import heapq
import itertools
import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from . import logs
from .errors import ApiError
from .image_request import ImageRequest, Priority
from .jobs import Event, Job, Progress, Task
from .messages import Cancel, Closed, Failed, Made, Message, OpenFailed, Preview, Ran, Ready, Start, Step
from .metrics import Metrics
from .model_card import ModelCard
from .settings import ServerSettings
from .worker_process import RunningWorker, StartWorker, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

#: seconds that a request is taken to have come earlier or later: it waits less or more, and not for ever
_HANDICAP: dict[Priority, float] = {"high": -30.0, "normal": 0.0, "low": 30.0}
#: likewise, for each further picture of a request: others' first pictures come before
_HANDICAP_OF_FURTHER = 5.0
#: seconds before a worker that ended is started again: at once, then later and later
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0, 30.0
#: of the mean of the seconds that a picture takes: the part of the newest
_NEWEST = 0.1
_LONGEST_RETRY = 600.0
_RESTART_RETRY = 2.0


class Dispatcher:
    """Lets requests in, gives their pictures to the worker, and sees to it that there is one."""

    def __init__(self, settings: ServerSettings, metrics: Metrics, start_worker: StartWorker = WorkerProcess) -> None:
        self.settings = settings
        self._start_worker = start_worker
        self.metrics = metrics
        self.card: ModelCard | None = None
        self.draining = False
        #: called with a sentence when the model cannot be opened at all
        self.on_fatal: Callable[[str], None] = lambda _: None
        self._worker: RunningWorker | None = None
        self._open = False
        self._closing = False
        self._numbers = itertools.count()
        self._heap: list[Task] = []
        self._running: dict[int, Task] = {}
        self._jobs: dict[str, Job] = {}
        self._waiting = 0
        self._seconds: float | None = None  # that a picture takes in its slot
        self._pause = _FIRST_PAUSE
        self._restart: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    # what the application asks

    @property
    def ready(self) -> bool:
        """Whether pictures can be made now."""
        return self._open and not self.draining

    @property
    def waiting(self) -> int:
        """Pictures in the queue."""
        return self._waiting

    @property
    def running(self) -> int:
        """Pictures in the worker, those among them that are not wanted any more."""
        return len(self._running)

    @property
    def worker_pid(self) -> int | None:
        """The worker's process."""
        return None if self._worker is None else self._worker.pid

    def start(self) -> None:
        """Starts the worker, from a coroutine."""
        self._open = False
        self._restart = None
        self._worker = self._start_worker(self.settings, self._on_message, self._on_end)
        logs.event("worker_started", pid=self._worker.pid)

    def known_card(self) -> ModelCard:
        """What the model can make.

        Raises:
            ApiError: 503, nobody knows yet.
        """
        if self.card is None:
            raise ApiError(503, "the model is being opened", code="not_ready", retry_after=_RESTART_RETRY)
        return self.card

    def submit(self, request: ImageRequest, request_id: str) -> Job:
        """Lets a request in.

        Raises:
            ApiError: 429 when the queue is full, 503 when the server is about to end, or the worker is not there and
                the queue is full; 409 when a request of that id is under way.
        """
        if self.draining:
            raise ApiError(503, "the server is about to end", code="shutting_down", retry_after=_RESTART_RETRY)
        if request_id in self._jobs:
            raise ApiError(409, "a request of this x-request-id is under way", code="duplicate_request_id")
        room = self.settings.max_queue + self.settings.max_batch - self._waiting - len(self._running)
        if request.n > room:
            for _ in range(request.n):
                self.metrics.picture_finished("rejected")
            raise ApiError(
                429,
                f"the queue is full: {self._waiting} pictures wait, and {self.settings.max_queue} may",
                code="queue_full",
                retry_after=self._until_room(),
            )
        loop = asyncio.get_running_loop()
        now = loop.time()
        job = Job(id=request_id, request=request, arrived=now)
        for index in range(request.n):
            rank = now + _HANDICAP[request.priority] + index * _HANDICAP_OF_FURTHER
            task = Task(number=next(self._numbers), job=job, index=index, rank=rank)
            job.tasks.append(task)
            heapq.heappush(self._heap, task)
        self._jobs[request_id] = job
        self._waiting += request.n
        self._idle.clear()
        if request.timeout is not None:
            job.deadline = loop.call_later(request.timeout, self._expire, job)
        self._fill()
        self._tell_positions(job)
        return job

    def cancel(self, job: Job | str, *, reason: str = "cancelled by its client") -> bool:
        """Ends a request: what waits is never started, what runs ends at its next step.

        Returns:
            Whether there was anything to end.
        """
        found = self._jobs.get(job) if isinstance(job, str) else job
        if found is None or found.over:
            return False
        self._end(found, ApiError(409, f"the request was {reason}", code="cancelled"), "cancelled")
        return True

    async def probe(self) -> None:
        """Makes a picture of one step.

        Raises:
            ApiError: it could not be made.
        """
        card = self.known_card()
        if not card.generations:
            if not self.ready:
                raise ApiError(503, "the worker is not there", code="engine_restarting", retry_after=_RESTART_RETRY)
            return
        request = ImageRequest(
            prompt="",
            negative_prompt=None,
            n=1,
            width=card.width,
            height=card.height,
            num_inference_steps=1,
            guidance_scale=1.0,
            seed=0,
            scheduler=None,
            output_format="png",
            output_compression=None,
            stream=False,
            partial_images=0,
            progress=False,
            priority="high",
            timeout=None,
        )
        job = self.submit(request, f"probe-{next(self._numbers)}")
        try:
            (made,) = await job.pictures()
        finally:
            self.cancel(job)
        if not made.content:
            raise ApiError(500, "the probe's picture is empty", code="internal_error")

    async def drain(self, timeout: float) -> bool:
        """Lets nobody in any more, and waits until nothing waits or runs.

        Returns:
            Whether all came to their end in that time; what did not is told so.
        """
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            self.abandon()
            return False
        return True

    def abandon(self) -> None:
        """Ends everything that waits or runs, and says so to its clients."""
        for job in list(self._jobs.values()):
            error = ApiError(503, "the server ended before", code="shutting_down", retry_after=_RESTART_RETRY)
            self._end(job, error, "failed")

    async def close(self) -> None:
        """Ends the worker."""
        self._closing = True
        if self._restart is not None:
            self._restart.cancel()
        if self._worker is not None:
            await self._worker.close()

    # what the worker says

    def _on_message(self, message: Message) -> None:
        match message:
            case Ready():
                self.card, self._open, self._pause = message.card, True, _FIRST_PAUSE
                logs.event("worker_ready", model=message.card.id, backend=message.card.backend)
                self._fill()
            case OpenFailed():
                self._on_open_failed(message.message)
            case Ran():
                self.metrics.network_ran(message.network, message.calls, message.rows, message.seconds)
            case Step():
                progress = Progress(state="running", position=0, step=message.step, steps=message.steps)
                self._tell(message.task, progress)
            case Preview():
                self._tell(message.task, message)
            case Made():
                self._on_made(message)
            case Failed():
                self._on_failed(message)
            case Closed():
                self._free(message.task)

    def _on_open_failed(self, message: str) -> None:
        logs.event("model_not_opened", level=logging.ERROR, reason=message)
        if self.card is None:
            self._closing = True
            self.on_fatal(message)

    def _on_made(self, message: Made) -> None:
        task = self._free(message.task)
        if task is None or task.over:
            return
        now = asyncio.get_running_loop().time()
        assert task.started is not None
        taken = now - task.started
        self._seconds = taken if self._seconds is None else (1 - _NEWEST) * self._seconds + _NEWEST * taken
        timings = {"queue": task.started - task.job.arrived, **message.timings, "total": now - task.job.arrived}
        for stage, seconds in timings.items():
            self.metrics.stage_seconds(stage, seconds)
        self.metrics.picture_finished("ok")
        self._over(task)
        task.job.tell(replace(message, timings=timings))

    def _on_failed(self, message: Failed) -> None:
        task = self._free(message.task)
        if task is not None:
            own = (
                message.error.status >= 500
            )  # the server's fault, and not the client's, whose words stay out of the log
            level, cause = (logging.ERROR, message.cause) if own else (logging.INFO, None)
            logs.event("picture_failed", level=level, request=task.job.id, code=message.error.code, cause=cause)
            self._end(task.job, message.error, "failed")

    def _on_end(self, status: int) -> None:
        """The worker's process has ended: what it was at fails, and another one is started."""
        self._open = False
        lost, self._running = list(self._running.values()), {}
        self._worker = None
        if self._closing:
            self._settle()
            return
        logs.event("worker_ended", level=logging.ERROR, status=status, lost=len(lost))
        self.metrics.worker_restarted()
        for task in lost:
            message = "the process that made the picture has ended; another one is started"
            error = ApiError(503, message, code="engine_restarting", retry_after=_RESTART_RETRY)
            self._end(task.job, error, "failed")
        self._settle()
        self._restart = asyncio.get_running_loop().call_later(self._pause, self.start)
        self._pause = min(_LONGEST_PAUSE, max(1.0, 2 * self._pause))

    # the queue

    def _fill(self) -> None:
        """Gives the worker what waits, as long as it has a place."""
        now = asyncio.get_running_loop().time()
        while self._open and self._heap and len(self._running) < self.settings.max_batch:
            task = heapq.heappop(self._heap)
            if task.over:
                continue
            self._waiting -= 1
            task.started = now
            self._running[task.number] = task
            assert self._worker is not None
            self._worker.send(Start(task=task.number, request=task.job.request, index=task.index))
            if task.job.request.progress:
                task.job.tell(Progress(state="running", position=0, step=0, steps=0))
        self._settle()

    def _free(self, number: int) -> Task | None:
        """The task whose place is free again, which the next one gets."""
        task = self._running.pop(number, None)
        self._fill()
        return task

    def _end(self, job: Job, error: ApiError, outcome: str) -> None:
        """Ends what is left of a job."""
        left = [task for task in job.tasks if not task.over]
        for task in left:
            if task.number in self._running and self._worker is not None:
                self._worker.send(Cancel(task=task.number))
            elif task.started is None:
                self._waiting -= 1
            self.metrics.picture_finished(outcome)
            self._over(task)
        if left:
            job.tell(error)
        self._settle()

    def _expire(self, job: Job) -> None:
        if not job.over:
            message = f"the request was not done within its timeout of {job.request.timeout:g} seconds"
            self._end(job, ApiError(504, message, code="deadline_exceeded"), "expired")

    def _over(self, task: Task) -> None:
        task.over = True
        if task.job.over and self._jobs.get(task.job.id) is task.job:
            del self._jobs[task.job.id]
            if task.job.deadline is not None:
                task.job.deadline.cancel()  # which would keep the job until then

    def _settle(self) -> None:
        """Says how much there is, and whether there is anything."""
        if len(self._heap) > 2 * self._waiting + 16:  # most of it is over
            self._heap = [task for task in self._heap if not task.over]
            heapq.heapify(self._heap)
        self.metrics.queue(self._waiting, len(self._running))
        if self._waiting == 0 and not self._running:
            self._idle.set()

    def _tell(self, number: int, event: Event) -> None:
        task = self._running.get(number)
        if task is not None and not task.over:
            task.job.tell(event)

    def _tell_positions(self, job: Job) -> None:
        if job.request.progress and job.tasks[0].started is None:
            ahead = sum(1 for task in self._heap if not task.over and task < job.tasks[0])
            job.tell(Progress(state="queued", position=ahead, step=0, steps=0))

    def _until_room(self) -> float:
        """Seconds until a place in the queue is free, as the last pictures took them."""
        rounds = math.ceil(max(1, self._waiting) / self.settings.max_batch)
        return min(_LONGEST_RETRY, (self._seconds or 1.0) * rounds)
