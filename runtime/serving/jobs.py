"""A request that was let in, and its pictures on their way."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from .errors import ApiError
from .image_request import ImageRequest
from .messages import Made, Preview


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a picture is."""

    state: str  # "queued" or "running"
    position: int  # pictures that come before; 0 when it runs
    step: int
    steps: int


Event = Progress | Preview | Made


@dataclass(eq=False, kw_only=True)
class Task:
    """One picture of a job."""

    number: int
    job: "Job"
    index: int
    rank: float  # who has less comes first
    started: float | None = None  # by the loop's clock
    over: bool = False  # whether nobody waits for it any more

    def __lt__(self, other: "Task") -> bool:
        return (self.rank, self.number) < (other.rank, other.number)


@dataclass(eq=False, kw_only=True)
class Job:
    """A request that was let in: `async for event in job` until all of its pictures are made."""

    id: str
    request: ImageRequest
    arrived: float  # by the loop's clock
    tasks: list[Task] = field(default_factory=list)
    deadline: asyncio.TimerHandle | None = None
    _events: "asyncio.Queue[Event | ApiError]" = field(default_factory=asyncio.Queue)
    _made: int = 0

    async def __aiter__(self) -> AsyncIterator[Event]:
        """What happens to its pictures.

        Raises:
            ApiError: it comes to no good end.
        """
        while self._made < self.request.n:
            event = await self._events.get()
            if isinstance(event, ApiError):
                raise event
            if isinstance(event, Made):
                self._made += 1
            yield event

    def tell(self, event: Event | ApiError) -> None:
        """Tells who waits for it what has happened; an error is the last thing."""
        self._events.put_nowait(event)

    async def pictures(self) -> list[Made]:
        """All of its pictures, by their seeds.

        Raises:
            ApiError: one of them cannot be made.
        """
        found = [event async for event in self if isinstance(event, Made)]
        return sorted(found, key=lambda made: made.seed)

    @property
    def over(self) -> bool:
        """Whether none of its pictures waits or is being made."""
        return all(task.over for task in self.tasks)
