"""A GPU as this process uses it: what all engines on it share."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from .cuda import DeviceBuffer, DeviceProperties, Stream, device_count, device_properties, select_device


class Arena:
    """Memory for the activations of one engine at a time. It grows, and moves when it does."""

    def __init__(self) -> None:
        self._buffer: DeviceBuffer | None = None

    def reserve(self, size: int, purpose: str) -> DeviceBuffer:
        """The memory, of at least this size in bytes; another buffer than before where that was too small.

        Raises:
            CudaOutOfMemoryError: there is not so much. The arena is empty then.
        """
        if self._buffer is None or self._buffer.size < size:
            self.close()  # first: both together may be more than there is
            self._buffer = DeviceBuffer(max(size, 1), purpose)
        return self._buffer

    def close(self) -> None:
        """Frees the memory."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.close()


class Device:
    """One GPU: its lock, its stream, and the arena of its engines. It lives as long as an engine is open on it."""

    _open: ClassVar[dict[int, "Device"]] = {}
    #: may be taken again: a garbage collector that runs within it closes what nobody holds
    _opening: ClassVar[Any] = threading.RLock()

    def __init__(self, index: int, properties: DeviceProperties) -> None:
        self.index = index
        self.properties = properties
        self.arena = Arena()
        self._lock = threading.Lock()
        self._users = 0
        self._stream: Stream | None = None
        #: what is to be freed by whoever has the lock next: a garbage collector may run in the middle of a capture
        self._leaving: deque[Callable[[], None]] = deque()

    @classmethod
    def acquire(cls, name: str) -> "Device":
        """The GPU of a name, "cuda" or "cuda:1", for one user more; see `leave`.

        Raises:
            ValueError: another device, or a GPU that is not there.
            CudaError: there is no GPU, or its driver is too old.
        """
        index = device_index(name)
        count = device_count()
        if index >= count:
            known = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
            raise ValueError(f"device {name!r} is not there: this machine has {known}")
        properties = device_properties(index)
        with cls._opening:
            device = cls._open.get(index) or cls(index, properties)
            device._users += 1
            cls._open[index] = device
        return device

    @property
    def stream(self) -> Stream:
        """The stream of all work on this GPU; within a session."""
        if self._stream is None:
            self._stream = Stream()
        return self._stream

    @contextmanager
    def session(self) -> Iterator[None]:
        """The GPU for this thread alone."""
        try:
            with self._lock:
                select_device(self.index)
                yield
        finally:
            self._free_what_leaves()

    def leave(self, free: Callable[[], None]) -> None:
        """One user less: what it holds is freed now, or by whoever has the GPU at this moment, afterwards."""
        self._leaving.append(free)
        self._free_what_leaves()

    def _free_what_leaves(self) -> None:
        while self._leaving and self._lock.acquire(blocking=False):
            try:
                select_device(self.index)
                while self._leaving:
                    try:
                        self._leaving.popleft()()
                    finally:
                        self._one_user_less()
            finally:
                self._lock.release()

    def _one_user_less(self) -> None:
        with self._opening:
            self._users -= 1
            if self._users:
                return
            del self._open[self.index]
        self.arena.close()
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def device_index(name: str) -> int:
    """The number in "cuda:1", 0 in "cuda".

    Raises:
        ValueError: another device.
    """
    kind, _, index = name.partition(":")
    if kind != "cuda" or (":" in name and not index.isdecimal()):
        raise ValueError(f"engines run on an NVIDIA GPU: device must be 'cuda' or 'cuda:N', got {name!r}")
    return int(index or 0)


def describe_devices() -> list[str]:
    """Every GPU in words.

    Raises:
        CudaError: there is none, or its driver is too old.
    """
    found = map(device_properties, range(device_count()))
    return [f"{gpu.name} ({gpu.compute_capability}, {gpu.memory / 1e9:.0f} GB)" for gpu in found]
