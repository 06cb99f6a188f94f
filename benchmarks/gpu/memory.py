"""How much of the GPU's memory is in use: the most that there was while something ran."""

import shutil
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

#: bytes in use; None where nothing says
Used = Callable[[], int | None]

_INTERVAL = 0.05  # seconds between two looks through NVML; nvidia-smi itself takes longer


def gpu_memory_reader(index: int = 0) -> Used:
    """What says how many bytes of a GPU's memory are in use: NVML, else nvidia-smi, else nothing.

    Args:
        index: of the GPU.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        handle: Any = pynvml.nvmlDeviceGetHandleByIndex(index)
    except Exception:  # not installed, or no driver: its errors share no base class with others
        return (lambda: _by_smi(index)) if shutil.which("nvidia-smi") else (lambda: None)
    return lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)


def _by_smi(index: int) -> int | None:
    command = ["nvidia-smi", f"--id={index}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    text = result.stdout.strip()
    return int(text) * 2**20 if text.isdigit() else None


class PeakMemory:
    """A block, and by how much the GPU's memory grew within it at most: `peak`, in bytes, None where nothing says.

    What other programs take meanwhile counts too.
    """

    def __init__(self, used: Used) -> None:
        self._used = used
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before = used()
        self._most = self._before

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def peak(self) -> int | None:
        """The most so far, less what was in use before."""
        if self._before is None or self._most is None:
            return None
        return self._most - self._before

    def _watch(self) -> None:
        while self._before is not None and not self._ended.wait(_INTERVAL):
            if (used := self._used()) is not None:
                self._most = max(self._most or 0, used)
