"""CUDA as the engines need it: devices, memory, one kind of stream, and graphs; errors say what to do.

Everything here acts on the device that the thread has selected; see `Device.session`.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..protocol import Array

try:
    from cuda.bindings import runtime as cudart
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "engines need CUDA's Python bindings: pip install 'safelight[tensorrt]' or 'safelight[tensorrt-rtx]'"
    ) from error


class CudaError(RuntimeError):
    """CUDA cannot do what was asked."""


class CudaOutOfMemoryError(CudaError, MemoryError):
    """There is not so much GPU memory left."""


@dataclass(frozen=True, kw_only=True)
class DeviceProperties:
    """What a GPU is."""

    name: str  # "NVIDIA H100 80GB HBM3"
    compute_capability: str  # "sm90"
    memory: int  # bytes


def device_count() -> int:
    """How many GPUs there are.

    Raises:
        CudaError: there is no driver, none, or the driver is too old.
    """
    return int(_check(cudart.cudaGetDeviceCount()))


def device_properties(index: int) -> DeviceProperties:
    """What the GPU of an index is."""
    found = _check(cudart.cudaGetDeviceProperties(index))
    return DeviceProperties(
        name=found.name.rstrip(b"\0").decode(),
        compute_capability=f"sm{found.major}{found.minor}",
        memory=int(found.totalGlobalMem),
    )


def select_device(index: int) -> None:
    """Makes a GPU that of this thread."""
    _check(cudart.cudaSetDevice(index))


def free_memory() -> int:
    """Bytes that are free on this thread's GPU."""
    free, _total = _check(cudart.cudaMemGetInfo())
    return int(free)


class DeviceBuffer:
    """Memory of the GPU."""

    def __init__(self, size: int, purpose: str) -> None:
        """Allocates it.

        Args:
            size: in bytes, at least 1.
            purpose: what it is for, in the error.

        Raises:
            CudaOutOfMemoryError: there is not so much.
        """
        try:
            self.address = int(_check(cudart.cudaMalloc(size)))
        except CudaOutOfMemoryError as error:
            raise CudaOutOfMemoryError(
                f"out of GPU memory: {purpose} needs {_megabytes(size)}, {_megabytes(free_memory())} are free; "
                "a smaller picture or batch needs less, and closing other pipelines gives some back"
            ) from error
        self.size = size

    def close(self) -> None:
        """Frees it."""
        address, self.address = self.address, 0
        if address:
            _check(cudart.cudaFree(address))


class PinnedBuffer:
    """Memory of the host that the GPU copies from and to by itself."""

    def __init__(self, size: int) -> None:
        """Allocates it: bytes, at least 1."""
        self.address = int(_check(cudart.cudaHostAlloc(size, cudart.cudaHostAllocDefault)))
        self.size = size

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """The memory as an array, which dies with the buffer."""
        memory = (ctypes.c_uint8 * self.size).from_address(self.address)
        return np.ndarray(shape, dtype, buffer=memoryview(memory))

    def close(self) -> None:
        """Frees it; arrays of it must not be looked at again."""
        address, self.address = self.address, 0
        if address:
            _check(cudart.cudaFreeHost(address))


class Graph:
    """Work that was recorded, to be launched at once."""

    def __init__(self, executable: Any) -> None:
        self._executable = executable

    def launch(self, stream: "Stream") -> None:
        """Enqueues the work."""
        _check(cudart.cudaGraphLaunch(self._executable, stream.handle))

    def close(self) -> None:
        """Destroys it."""
        executable, self._executable = self._executable, None
        if executable is not None:
            _check(cudart.cudaGraphExecDestroy(executable))


class Stream:
    """A queue of work for the GPU, which no other waits for."""

    def __init__(self) -> None:
        self.handle = _check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))

    @property
    def address(self) -> int:
        """The handle as TensorRT takes it."""
        return int(self.handle)

    def copy_in(self, target: DeviceBuffer, source: PinnedBuffer) -> None:
        """Enqueues a copy to the GPU."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        _check(cudart.cudaMemcpyAsync(target.address, source.address, source.size, kind, self.handle))

    def copy_out(self, target: PinnedBuffer, source: DeviceBuffer) -> None:
        """Enqueues a copy from the GPU."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _check(cudart.cudaMemcpyAsync(target.address, source.address, target.size, kind, self.handle))

    def synchronize(self) -> None:
        """Waits for all that was enqueued.

        Raises:
            CudaError: some of it failed.
        """
        _check(cudart.cudaStreamSynchronize(self.handle))

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Records what a function enqueues, which is not run.

        Raises:
            CudaError: the work cannot be recorded; or what the function raises. The stream can be used again.
        """
        # of this thread alone: another one may be allocating on another GPU
        _check(
            cudart.cudaStreamBeginCapture(self.handle, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        )
        try:
            enqueue()
        except BaseException:
            error, graph = cudart.cudaStreamEndCapture(self.handle)
            if error == cudart.cudaError_t.cudaSuccess:
                _check(cudart.cudaGraphDestroy(graph))
            else:
                cudart.cudaGetLastError()
            raise
        graph = _check(cudart.cudaStreamEndCapture(self.handle))
        try:
            return Graph(_check(cudart.cudaGraphInstantiate(graph, 0)))
        finally:
            _check(cudart.cudaGraphDestroy(graph))

    def close(self) -> None:
        """Destroys the stream once its work is done."""
        handle, self.handle = self.handle, None
        if handle is not None:
            _check(cudart.cudaStreamDestroy(handle))


def _check(result: tuple[Any, ...]) -> Any:
    """What a call gave back besides its error: nothing, a value, or several.

    Raises:
        CudaError: the call failed.
    """
    error, *values = result
    if error != cudart.cudaError_t.cudaSuccess:
        cudart.cudaGetLastError()  # forgets the error, which TensorRT would take for its own
        raise _exception(error)
    return values[0] if len(values) == 1 else tuple(values)


def _exception(error: Any) -> CudaError:
    codes = cudart.cudaError_t
    if error == codes.cudaErrorMemoryAllocation:
        return CudaOutOfMemoryError("out of GPU memory")
    if error == codes.cudaErrorNoDevice:
        return CudaError("there is no NVIDIA GPU that CUDA can use; if CUDA_VISIBLE_DEVICES is set, it may hide it")
    if error == codes.cudaErrorInsufficientDriver:
        _, driver = cudart.cudaDriverGetVersion()
        _, runtime = cudart.cudaRuntimeGetVersion()
        if not driver:
            return CudaError("there is no NVIDIA driver on this machine: engines need an NVIDIA GPU and its driver")
        return CudaError(
            f"the NVIDIA driver is for CUDA {_version(driver)}, the installed bindings are for CUDA "
            f"{_version(runtime)}: update the driver, or pip install 'cuda-bindings<{runtime // 1000}'"
        )
    _, name = cudart.cudaGetErrorName(error)
    _, text = cudart.cudaGetErrorString(error)
    return CudaError(f"CUDA: {text.decode()} ({name.decode()})")


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
