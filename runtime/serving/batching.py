"""Step-level batching: the networks' calls of all pictures that are being made run together where their shapes agree.

Each picture is made by the pipeline that makes it alone, in a thread of its own. What the pipeline calls as a network
is a `SharedNetwork`: a call waits until every picture that takes part waits for a network, the border of a step, and is
then run with those others that fit, as one batch. So pictures of different prompts, seeds, schedulers, guidance and
steps share a call, join at any step and leave at any step, and no pipeline knows of it.

Small networks gain little by a second thread, and much by a second batch beside the first: with several streams, each
runs a batch of its own, and the rows of one call are spread over those that are idle.

The results are those of the same rows in the same batch, bit for bit; in batches of another size an engine may round
otherwise.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from ..backends import Array, Network, TensorSpec


class Cancelled(Exception):  # noqa: N818  # it is no error
    """The picture is not wanted any more."""


class NumericalError(ArithmeticError):
    """A network gave NaN or infinity."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One run of a network."""

    network: str
    calls: int  # pictures that shared it
    rows: int  # of the batch
    seconds: float


class Seat:
    """A picture's place among those that are being made."""

    def __init__(self) -> None:
        self.cancelled = False


@dataclass(eq=False)
class _Whole:
    """A picture's call of a network, of which each part is a `_Call`."""

    left: int  # parts that are not done


@dataclass(eq=False)
class _Call:
    """A call of a network that waits for its turn."""

    whole: _Whole

    network: "SharedNetwork"
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...]
    seat: Seat
    key: tuple[Any, ...]  # calls of equal keys can be one batch
    rows: int | None  # of its batch; None where it can be no part of another
    number: int
    done: threading.Event = field(default_factory=threading.Event)
    found: dict[str, Array] | None = None
    error: BaseException | None = None

    def result(self) -> dict[str, Array]:
        self.done.wait()
        if self.error is not None:
            raise self.error
        assert self.found is not None
        return self.found


_seat: ContextVar[Seat | None] = ContextVar("seat", default=None)


class Batcher:
    """Runs the calls of pictures that take part, in threads of its own, the oldest first."""

    def __init__(
        self, *, streams: int = 1, fixed_sizes: bool = False, ran: Callable[[Ran], None] = lambda _: None
    ) -> None:
        """Starts the threads.

        Args:
            streams: batches that run at a time; the networks have to be such as can be called from several threads.
            fixed_sizes: whether the engine compiles a network for each size of a batch: batches are then made of calls
                of equal rows, as many as a power of two.
            ran: told of every run, in a thread of the batcher.
        """
        self._streams = streams
        self._fixed_sizes = fixed_sizes
        self._ran = ran
        self._changed = threading.Condition()
        self._waiting: list[_Call] = []
        self._taking_part = 0
        self._calling = 0  # of those that take part
        self._idle = streams
        self._closed = False
        self._numbers = itertools.count()
        self._threads = [
            threading.Thread(target=self._work, name=f"networks {number}", daemon=True) for number in range(streams)
        ]
        for thread in self._threads:
            thread.start()

    def shared(self, name: str, network: Network, *, most: int) -> "SharedNetwork":
        """A network whose calls are run together.

        Args:
            name: for `Ran`.
            network: what runs.
            most: calls in one batch.
        """
        return SharedNetwork(self, name, network, most)

    @contextmanager
    def seated(self, seat: Seat) -> Iterator[None]:
        """While a picture is made in this thread: the others' next calls wait for its next call, and for its end."""
        token = _seat.set(seat)
        self._take_part(1)
        try:
            yield
        finally:
            self._take_part(-1)
            _seat.reset(token)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """While a seated thread does what the others need not wait for."""
        self._take_part(-1)
        try:
            yield
        finally:
            self._take_part(1)

    def cancel(self, seat: Seat) -> None:
        """Ends a picture: its call that waits, or else its next one, raises `Cancelled`."""
        with self._changed:
            seat.cancelled = True
            for call in [call for call in self._waiting if call.seat is seat]:
                self._waiting.remove(call)
                self._finish(call, error=Cancelled())
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the threads, after the runs that are under way; calls that wait raise `Cancelled`."""
        with self._changed:
            self._closed = True
            for call in self._waiting:
                self._finish(call, error=Cancelled())
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def call(self, network: "SharedNetwork", inputs: Mapping[str, Array], outputs: Sequence[str] | None) -> Any:
        """The outputs of a network; see `Network`. Outside of `seated` it is run at once."""
        wanted = tuple(outputs) if outputs is not None else tuple(spec.name for spec in network.outputs)
        seat = _seat.get()
        if seat is None:
            return network.network(inputs, wanted)
        rows, key = _joinable(network, inputs, wanted)
        if self._fixed_sizes:
            key = (*key, rows)
        parts = _parts(network, inputs, rows, self._streams)
        whole = _Whole(len(parts))
        calls = [_Call(whole, network, part, wanted, seat, key, count, next(self._numbers)) for part, count in parts]
        with self._changed:
            if seat.cancelled or self._closed:
                raise Cancelled
            self._waiting += calls
            self._calling += 1
            self._changed.notify_all()
        for call in calls:
            call.done.wait()
        found = [call.result() for call in calls]
        if seat.cancelled:
            raise Cancelled
        return (
            found[0] if len(found) == 1 else {name: np.concatenate([each[name] for each in found]) for name in wanted}
        )

    def _take_part(self, change: int) -> None:
        with self._changed:
            self._taking_part += change
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or (self._waiting and self._calling >= self._taking_part))
                if self._closed:
                    return
                group = self._next_group()
                self._idle -= 1
            self._run(group)
            with self._changed:
                self._idle += 1
                self._changed.notify_all()

    def _next_group(self) -> list[_Call]:
        """The call that has waited longest, and those that fit to it; a share of them, where other streams are idle."""
        self._waiting.sort(key=lambda call: call.number)
        first = self._waiting[0]
        group = [call for call in self._waiting if call.key == first.key] if first.rows is not None else [first]
        others = len({call.key for call in self._waiting}) - 1
        share = -(-len(group) // max(1, self._idle - others))
        group = group[: min(share, first.network.limit(first.key))]
        if self._fixed_sizes:
            group = group[: 1 << (len(group).bit_length() - 1)]
        for call in group:
            self._waiting.remove(call)
        return group

    def _run(self, group: list[_Call]) -> None:
        started = perf_counter()
        try:
            found = _run_together(group)
        except Exception as error:  # whatever an engine raises is the pictures', not this thread's
            if len(group) == 1:
                self._finish(group[0], error=error)
            else:
                self._run_each(group)
            return
        network = group[0].network
        self._ran(
            Ran(
                network=network.name,
                calls=len({id(call.seat) for call in group}),
                rows=sum(call.rows or 1 for call in group),
                seconds=perf_counter() - started,
            )
        )
        for call, outputs in zip(group, found, strict=True):
            self._finish(call, outputs)

    def _finish(self, call: _Call, found: dict[str, Array] | None = None, error: BaseException | None = None) -> None:
        """Gives a part of a call what it waits for; a picture whose parts are all done does not wait any more."""
        with self._changed:
            call.found, call.error = found, error
            call.whole.left -= 1
            if call.whole.left == 0:
                self._calling -= 1
            call.done.set()

    def _run_each(self, group: list[_Call]) -> None:
        """Runs calls alone that failed together: who is at fault fails; if nobody is, the batch was too large."""
        failed = False
        for call in group:
            self._run([call])
            failed = failed or call.error is not None
        if not failed:
            group[0].network.lower_limit(group[0].key, len(group) // 2)


class SharedNetwork:
    """A network whose calls run together with those of other pictures."""

    def __init__(self, batcher: Batcher, name: str, network: Network, most: int) -> None:
        self.name, self.network = name, network
        self._batcher = batcher
        self._most = most
        self._limits: dict[tuple[Any, ...], int] = {}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs in graph order."""
        return self.network.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs in graph order."""
        return self.network.outputs

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the network; see `Network`.

        Raises:
            Cancelled: the picture is not wanted any more.
            NumericalError: an output has NaN or infinity.
        """
        found: dict[str, Array] = self._batcher.call(self, inputs, outputs)
        for name, array in found.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise NumericalError(f"{self.name} gave values that are not finite in {name}")
        return found

    def limit(self, key: tuple[Any, ...]) -> int:
        """How many calls may be one batch."""
        return self._limits.get(key, self._most)

    def lower_limit(self, key: tuple[Any, ...], most: int) -> None:
        """Batches of such calls turned out too large for the engine, or its memory."""
        self._limits[key] = max(1, most)

    def close(self) -> None:
        """Gives the engine's memory back."""
        self.network.close()


def _joinable(
    network: SharedNetwork, inputs: Mapping[str, Array], outputs: tuple[str, ...]
) -> tuple[int | None, tuple[Any, ...]]:
    """The rows of a call's batch, None where it has no such thing, and what other calls have to agree in."""
    ranks = {spec.name: spec.shape for spec in network.inputs}
    rows: set[int] = set()
    key: list[Any] = [id(network), outputs]
    for name in sorted(inputs):
        array, shape = np.asarray(inputs[name]), ranks.get(name)
        if shape is None or array.ndim != len(shape):
            return None, (id(network), object())  # which the network is going to refuse
        if not shape:
            key.append((name, array.dtype.str, array.item()))
            continue
        if isinstance(shape[0], int):
            return None, (id(network), object())
        rows.add(len(array))
        key.append((name, array.dtype.str, array.shape[1:]))
    return (rows.pop() if len(rows) == 1 else None), tuple(key)


def _parts(
    network: SharedNetwork, inputs: Mapping[str, Array], rows: int | None, most: int
) -> list[tuple[Mapping[str, Array], int | None]]:
    """A call's inputs in so many parts at most, each with rows of its own, and how many these are."""
    count = min(rows or 1, most)
    if count == 1:
        return [(inputs, rows)]
    scalars = {spec.name for spec in network.inputs if not spec.shape}
    ends = [round((rows or 1) * part / count) for part in range(count + 1)]
    return [
        ({name: array if name in scalars else array[first:end] for name, array in inputs.items()}, end - first)
        for first, end in itertools.pairwise(ends)
    ]


def _run_together(group: list[_Call]) -> list[dict[str, Array]]:
    """The outputs of each call, of one run of their network."""
    first = group[0]
    if len(group) == 1:
        return [first.network.network(first.inputs, first.outputs)]
    scalars = {spec.name for spec in first.network.inputs if not spec.shape}
    joined = {
        name: array if name in scalars else np.concatenate([call.inputs[name] for call in group])
        for name, array in first.inputs.items()
    }
    found = first.network.network(joined, first.outputs)
    ends = list(itertools.accumulate(call.rows or 0 for call in group))
    if any(len(array) != ends[-1] for array in found.values()):
        raise ValueError(f"{first.network.name} gives outputs that are not one per row of its batch")
    parts = {name: np.split(array, ends[:-1]) for name, array in found.items()}
    return [{name: parts[name][index] for name in parts} for index in range(len(group))]
