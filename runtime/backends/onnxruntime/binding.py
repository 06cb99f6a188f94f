"""A session on a device: fixed memory for each set of shapes, one copy in, one copy out, and CUDA graphs.

A CUDA graph reads and writes the addresses that it was captured with, so each set of shapes (a bucket) has memory of
its own, and a graph of its own. The first run of a bucket tells the shapes of the outputs, and lets the engine choose
its kernels; the second is captured; those after it are replayed.
"""

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import onnxruntime as ort

from ..protocol import Array
from ..recently_used import RecentlyUsed
from .session import Place, is_capture_refused, is_out_of_memory, reason, shapes

logger = logging.getLogger(__name__)

#: buckets that a network keeps: the guided pair and a single image at a few sizes
MOST_BUCKETS = 8

OpenSession = Callable[[Place], Any]


class Bucket:
    """The memory of one set of shapes, and the CUDA graph that runs in it."""

    def __init__(
        self, session: Any, place: Place, number: int, arrays: Mapping[str, Array], outputs: Sequence[str]
    ) -> None:
        """Allocates the memory of the inputs.

        Args:
            session: runs it.
            place: where; its `memory` is not None.
            number: of the graph; the one after it is free too.
            arrays: inputs of the bucket's shapes and dtypes.
            outputs: the names of those that are wanted.
        """
        assert place.memory is not None
        self._session, self._capture, self._number, self._outputs = session, place.capture, number, list(outputs)
        self._memory = place.memory
        self._binding = session.io_binding()
        self._inputs = {name: self._memory.allocate(array) for name, array in arrays.items()}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            self._binding.bind_output(name, self._memory.kind, self._memory.index)  # which allocates it
        self._complete = False  # whether the outputs have memory of their own too

    @property
    def is_captured(self) -> bool:
        """Whether the next run is captured, or replayed."""
        return self._complete and self._capture is not None

    def run(self, arrays: Mapping[str, Array]) -> list[Array]:
        """Copies the inputs in, runs, and gives copies of the outputs."""
        for name, value in self._inputs.items():
            value.update_inplace(arrays[name])
        self._session.run_with_iobinding(self._binding, self._run_options())
        results: list[Array] = self._binding.copy_outputs_to_cpu()
        if not self._complete:
            self._binding.clear_binding_outputs()
            for name, result in zip(self._outputs, results, strict=True):
                self._binding.bind_ortvalue_output(name, self._memory.allocate(result))
            self._complete = True
        return results

    def close(self) -> None:
        """Gives graph and memory back."""
        session, self._session, self._binding, self._inputs = self._session, None, None, {}
        if self.is_captured:
            with contextlib.suppress(Exception):  # one whose capture failed there is none of
                session.release_captured_graph(self._number)

    def _run_options(self) -> Any:
        options = ort.RunOptions()
        if self._capture is not None:
            uncaptured = self._capture.uncaptured or str(self._number + 1)  # a graph of a single run is never replayed
            options.add_run_config_entry(self._capture.run_option, str(self._number) if self._complete else uncaptured)
        return options


class DeviceSession:
    """A session whose arrays are bound. One call at a time: others wait for its memory."""

    def __init__(self, name: str, open_session: OpenSession, place: Place) -> None:
        """Opens the session.

        Args:
            name: of the network, for messages.
            open_session: opens it, in the place given.
            place: where; its `memory` is not None.

        Raises:
            ValueError: it cannot be opened, with CUDA graphs or without.
        """
        self._name, self._open_session, self._place = name, open_session, place
        self._numbers = itertools.count(1, 2)  # 0 is ONNX Runtime's own graph
        self._buckets: RecentlyUsed[Bucket] = RecentlyUsed(MOST_BUCKETS)
        self._lock = threading.Lock()
        self.session: Any = self._open()  # None after the memory was used up, until the next call

    def run(self, outputs: Sequence[str], arrays: Mapping[str, Array]) -> list[Array]:
        """Runs the session; the results are the caller's.

        Raises:
            MemoryError: the device's memory is used up; what this session had of it was given back.
            Exception: whatever ONNX Runtime raises.
        """
        with self._lock:
            if self.session is None:
                self.session = self._open()
            captured = False
            try:
                bucket = self._bucket(outputs, arrays)
                captured = bucket.is_captured
                return bucket.run(arrays)
            except Exception as error:
                used_up = is_out_of_memory(error)
                if not used_up and not captured:
                    self._buckets.drop(_key(outputs, arrays))
                    raise
                error.__traceback__ = None  # whose frames would keep the session and its memory
                self._forget()
                if used_up:
                    raise MemoryError(
                        f"{self._name}: the memory of {self._place.device} is used up, on {shapes(arrays)}: "
                        f"{reason(error)}; a smaller size or batch needs less, and so do fewer open pipelines"
                    ) from error
                self._without_capture(error)
            # a stream that failed while it was captured is of no use any more
            self.session = self._open()
            return self._bucket(outputs, arrays).run(arrays)

    def close(self) -> None:
        """Gives the session and its memory back."""
        with self._lock:
            self._forget()

    def _bucket(self, outputs: Sequence[str], arrays: Mapping[str, Array]) -> Bucket:
        def make() -> Bucket:
            return Bucket(self.session, self._place, next(self._numbers), arrays, outputs)

        return self._buckets.get(_key(outputs, arrays), make)

    def _open(self) -> Any:
        try:
            return self._open_session(self._place)
        except ValueError as error:
            if self._place.capture is None or not is_capture_refused(error):
                raise
            self._without_capture(error)
        return self._open_session(self._place)

    def _without_capture(self, error: Exception) -> None:
        self._place = self._place.without_capture()
        logger.warning("%s runs without CUDA graphs: %s", self._name, reason(error))

    def _forget(self) -> None:
        for bucket in self._buckets:
            bucket.close()
        self._buckets = RecentlyUsed(MOST_BUCKETS)
        self.session = None


def _key(outputs: Sequence[str], arrays: Mapping[str, Array]) -> Hashable:
    """What makes a bucket: the outputs that are wanted, and the shapes of the inputs, whose dtypes never change."""
    return tuple(outputs), tuple((name, array.shape) for name, array in arrays.items())
