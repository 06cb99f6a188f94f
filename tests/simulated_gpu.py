"""A strict GPU without a GPU: stands in for `cuda.bindings.runtime` and for the runtime half of both TensorRTs.

Its memory is the host's, filled with garbage and with canaries around each allocation. A stream runs nothing before it
is synchronized, so that a forgotten synchronize, or a buffer that is used again too early, gives garbage. A graph
replays what was recorded, with the addresses of then. What a real GPU would take for granted is an error here: memory
that was freed, the wrong device, a call that must not be captured, an error that nobody has read.

A plan of it is JSON that names an ONNX graph, which ONNX Runtime runs on the CPU.
"""

import ctypes
import enum
import hashlib
import json
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from cuda.bindings import runtime as real

Operation = Callable[[], None]
_CANARY, _ALIGNMENT = 256, 256
_FRESH, _FREED, _SCRATCH, _GUARD = 0xA5, 0xDD, 0x77, 0xC3
SUCCESS = real.cudaError_t.cudaSuccess


class MisuseError(AssertionError):
    """Something that on a real GPU is undefined behaviour."""


@dataclass(eq=False)
class Allocation:
    """Memory of a device, or pinned memory of the host, for which `device` is None."""

    device: int | None
    size: int
    freed: bool = False
    memory: np.ndarray[Any, Any] = field(init=False)
    offset: int = field(init=False)

    def __post_init__(self) -> None:
        self.memory = np.full(self.size + 2 * _CANARY + _ALIGNMENT, _GUARD, np.uint8)
        self.offset = _CANARY + -(self.memory.ctypes.data + _CANARY) % _ALIGNMENT
        self.view[:] = _FRESH

    @property
    def address(self) -> int:
        return int(self.memory.ctypes.data) + self.offset

    @property
    def view(self) -> np.ndarray[Any, Any]:
        return self.memory[self.offset : self.offset + self.size]

    def free(self) -> None:
        around = np.concatenate([self.memory[: self.offset], self.memory[self.offset + self.size :]])
        if (around != _GUARD).any():
            raise MisuseError(f"something was written beside {self.size} bytes")
        self.view[:] = _FREED
        self.freed = True


class Stream:
    """A queue that runs when it is synchronized."""

    def __init__(self, device: int, address: int) -> None:
        self.device, self.address = device, address
        self.queue: list[Operation] = []
        self.capture: list[Operation] | None = None
        self.invalidated = False
        self.destroyed = False

    def __int__(self) -> int:
        return self.address

    def add(self, operation: Operation) -> None:
        (self.queue if self.capture is None else self.capture).append(operation)


@dataclass(eq=False)
class Recorded:
    """A graph, or its executable."""

    device: int
    operations: list[Operation]
    destroyed: bool = False


class SimulatedCuda:
    """What `cuda.bindings.runtime` has, of the calls that the runtime makes; enums are the real ones.

    Args:
        capabilities: of the devices, such as (9, 0).
        memory: bytes that each has.
    """

    cudaError_t = real.cudaError_t  # noqa: N815
    cudaMemcpyKind = real.cudaMemcpyKind  # noqa: N815
    cudaStreamCaptureMode = real.cudaStreamCaptureMode  # noqa: N815
    cudaStreamNonBlocking = real.cudaStreamNonBlocking  # noqa: N815
    cudaHostAllocDefault = real.cudaHostAllocDefault  # noqa: N815
    cudaGetErrorName = staticmethod(real.cudaGetErrorName)  # noqa: N815
    cudaGetErrorString = staticmethod(real.cudaGetErrorString)  # noqa: N815

    def __init__(self, capabilities: Sequence[tuple[int, int]] = ((9, 0),), memory: int = 1 << 30) -> None:
        self.capabilities, self.memory = capabilities, memory
        self.driver, self.runtime = 13050, 13050
        self.allocations: dict[int, Allocation] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: list[Recorded] = []
        self.counts: Counter[str] = Counter()
        self.refuse_capture = False
        self._thread = threading.local()

    @property
    def device(self) -> int:
        return getattr(self._thread, "device", 0)

    @property
    def leaks(self) -> list[str]:
        """What was not freed."""
        found = [f"{a.size} bytes of device {a.device}" for a in self.allocations.values() if not a.freed]
        found += ["a stream" for stream in self.streams.values() if not stream.destroyed]
        return found + ["a graph" for graph in self.graphs if not graph.destroyed]

    def used(self, device: int = 0) -> int:
        return sum(a.size for a in self.allocations.values() if a.device == device and not a.freed)

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:  # noqa: N802
        if self.driver < self.runtime // 1000 * 1000:
            return self._error(self.cudaError_t.cudaErrorInsufficientDriver), None
        if not self.capabilities:
            return self._error(self.cudaError_t.cudaErrorNoDevice), None
        return SUCCESS, len(self.capabilities)

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:  # noqa: N802
        return SUCCESS, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:  # noqa: N802
        return SUCCESS, self.runtime

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:  # noqa: N802
        major, minor = self.capabilities[device]
        name = f"Simulated {device}".encode()
        return SUCCESS, SimpleNamespace(name=name, major=major, minor=minor, totalGlobalMem=self.memory)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:  # noqa: N802
        if not 0 <= device < len(self.capabilities):
            return (self._error(self.cudaError_t.cudaErrorInvalidDevice),)
        self._thread.device = device
        return (SUCCESS,)

    def cudaGetLastError(self) -> tuple[Any, ...]:  # noqa: N802
        error, self._thread.error = self.pending_error, SUCCESS
        return (error,)

    @property
    def pending_error(self) -> Any:
        return getattr(self._thread, "error", SUCCESS)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:  # noqa: N802
        return SUCCESS, self.memory - self.used(self.device), self.memory

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:  # noqa: N802
        self._not_while_capturing("cudaMalloc")
        if self.used(self.device) + size > self.memory:
            return self._error(self.cudaError_t.cudaErrorMemoryAllocation), None
        self.counts["device allocations"] += 1
        return SUCCESS, self._allocate(self.device, size)

    def cudaFree(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        self._not_while_capturing("cudaFree")
        allocation = self.at(address, 1)
        if allocation.device != self.device:
            raise MisuseError(f"memory of device {allocation.device} is freed on device {self.device}")
        self._free(address)
        return (SUCCESS,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:  # noqa: N802
        assert flags == self.cudaHostAllocDefault
        self._not_while_capturing("cudaHostAlloc")
        self.counts["pinned allocations"] += 1
        return SUCCESS, self._allocate(None, size)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        self._not_while_capturing("cudaFreeHost")
        if self.at(address, 1).device is not None:
            raise MisuseError("memory of a device is freed as the host's")
        self._free(address)
        return (SUCCESS,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        stream = Stream(self.device, 0x5000 + len(self.streams))
        self.streams[stream.address] = stream
        return SUCCESS, stream

    def cudaStreamDestroy(self, stream: Stream) -> tuple[Any, ...]:  # noqa: N802
        if self.stream(stream).queue:
            raise MisuseError("a stream is destroyed that has work left")
        stream.destroyed = True
        return (SUCCESS,)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Any, ...]:  # noqa: N802
        found = self.stream(stream)
        if found.capture is not None:
            found.invalidated = True
            return (self._error(self.cudaError_t.cudaErrorStreamCaptureUnsupported),)
        self.counts["synchronizes"] += 1
        queue, found.queue = found.queue, []
        for operation in queue:
            operation()
        return (SUCCESS,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: Stream) -> tuple[Any, ...]:  # noqa: N802
        inward = kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice
        assert inward or kind == self.cudaMemcpyKind.cudaMemcpyDeviceToHost
        ours = self.stream(stream).device
        expected = (ours, None) if inward else (None, ours)
        if (found := (self.at(dst, count).device, self.at(src, count).device)) != expected:
            raise MisuseError(f"a copy is from {found[1]} to {found[0]}, it must be to or from pinned memory")
        self.counts["copies in" if inward else "copies out"] += 1
        self.stream(stream).add(lambda: self._copy(dst, src, count))
        return (SUCCESS,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: Any) -> tuple[Any, ...]:  # noqa: N802
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        found = self.stream(stream)
        found.capture, found.invalidated = [], False
        self._thread.capturing = found
        return (SUCCESS,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Any, ...]:  # noqa: N802
        found = self.stream(stream)
        operations, found.capture = found.capture, None
        self._thread.capturing = None
        assert operations is not None
        if found.invalidated or self.refuse_capture:
            return self._error(self.cudaError_t.cudaErrorStreamCaptureInvalidated), None
        self.counts["captures"] += 1
        return SUCCESS, self._recorded(found.device, operations)

    def cudaGraphInstantiate(self, graph: Recorded, flags: int) -> tuple[Any, ...]:  # noqa: N802
        assert flags == 0
        return SUCCESS, self._recorded(graph.device, list(graph.operations))

    def cudaGraphLaunch(self, executable: Recorded, stream: Stream) -> tuple[Any, ...]:  # noqa: N802
        if executable.destroyed or executable.device != self.stream(stream).device:
            raise MisuseError("a graph is launched that was destroyed, or is of another device")
        self.counts["launches"] += 1
        for operation in executable.operations:
            self.stream(stream).add(operation)
        return (SUCCESS,)

    def cudaGraphDestroy(self, graph: Recorded) -> tuple[Any, ...]:  # noqa: N802
        return self._destroy(graph)

    def cudaGraphExecDestroy(self, executable: Recorded) -> tuple[Any, ...]:  # noqa: N802
        return self._destroy(executable)

    def stream(self, stream: "Stream | int") -> Stream:
        found = self.streams[int(stream)]
        if found.destroyed or found.device != self.device:
            raise MisuseError(f"a stream of device {found.device} is used on device {self.device}, or was destroyed")
        return found

    def at(self, address: int, size: int) -> Allocation:
        """The allocation in which some memory lies."""
        for allocation in self.allocations.values():
            if allocation.address <= address and address + size <= allocation.address + allocation.size:
                if allocation.freed:
                    raise MisuseError(f"{size} bytes are used that were freed")
                return allocation
        raise MisuseError(f"{size} bytes at {address:#x} are no memory")

    def bytes_at(self, address: int, size: int) -> np.ndarray[Any, Any]:
        start = address - self.at(address, size).address
        return self.at(address, size).view[start : start + size]

    def _copy(self, target: int, source: int, size: int) -> None:
        self.bytes_at(target, size)[:] = self.bytes_at(source, size)

    def _allocate(self, device: int | None, size: int) -> int:
        if size < 1:
            raise MisuseError(f"{size} bytes are allocated")
        allocation = Allocation(device, size)
        self.allocations[allocation.address] = allocation  # kept when it is freed: its address must not come again
        return allocation.address

    def _free(self, address: int) -> None:
        if self.at(address, 1).address != address:
            raise MisuseError("memory is freed from its middle")
        self.allocations[address].free()

    def _recorded(self, device: int, operations: list[Operation]) -> Recorded:
        self.graphs.append(Recorded(device, operations))
        return self.graphs[-1]

    def _destroy(self, graph: Recorded) -> tuple[Any, ...]:
        if graph.destroyed:
            raise MisuseError("a graph is destroyed twice")
        graph.destroyed, graph.operations = True, []
        return (SUCCESS,)

    def _not_while_capturing(self, call: str) -> None:
        if getattr(self._thread, "capturing", None) is not None:
            raise MisuseError(f"{call} while a graph is captured")

    def _error(self, error: Any) -> Any:
        self._thread.error = error
        return error


class _Named(enum.Enum):
    """An enum of TensorRT's."""


DataType = _Named("DataType", ["FLOAT", "HALF", "BF16", "INT64", "INT32", "BOOL"])
TensorIOMode = _Named("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
TensorLocation = _Named("TensorLocation", ["DEVICE", "HOST"])
Strategy = _Named("ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"])
GraphStrategy = _Named("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
Specialization = _Named("DynamicShapesKernelSpecializationStrategy", ["LAZY", "EAGER", "NONE"])
EngineValidity = _Named("EngineValidity", ["VALID", "SUBOPTIMAL", "INVALID"])
Diagnostics = enum.IntFlag("EngineInvalidityDiagnostics", ["VERSION_MISMATCH", "UNSUPPORTED_CC", "MALFORMED_ENGINE"])
_ORT = {
    "tensor(float)": (DataType["FLOAT"], np.float32),
    "tensor(float16)": (DataType["HALF"], np.float16),
    "tensor(bfloat16)": (DataType["BF16"], np.uint16),
    "tensor(int64)": (DataType["INT64"], np.int64),
    "tensor(int32)": (DataType["INT32"], np.int32),
    "tensor(bool)": (DataType["BOOL"], np.bool_),
}
_NUMPY = {kind: np.dtype(dtype) for kind, dtype in _ORT.values()}


class ILogger:
    """TensorRT's logger, of which its user makes a subclass."""

    Severity = _Named("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Weights:
    """Weights by their address, of which nothing is copied before the refit."""

    dtype: Any
    address: int = 0
    size: int = 0

    def read(self) -> np.ndarray[Any, Any]:
        dtype = _NUMPY[self.dtype]
        memory = (ctypes.c_uint8 * (self.size * dtype.itemsize)).from_address(self.address)
        return np.ndarray((self.size,), dtype, buffer=memoryview(memory)).copy()


def make_plan(
    graph: Path, profiles: Sequence[Mapping[str, Any]], *, memory: Sequence[int], gpu: str, stripped: Iterable[str] = ()
) -> bytes:
    """A plan for the simulated TensorRT.

    Args:
        graph: an ONNX file, which must stay where it is.
        profiles: input -> `ShapeRange`, of each.
        memory: bytes of activations, by profile.
        gpu: compute capability, such as "sm90".
        stripped: names of weights that are not in it.
    """
    shapes = [
        {name: [list(shape.smallest), list(shape.usual), list(shape.largest)] for name, shape in profile.items()}
        for profile in profiles
    ]
    plan = {"graph": str(graph), "profiles": shapes, "memory": list(memory), "gpu": gpu, "stripped": sorted(stripped)}
    return json.dumps(plan).encode()


class SimulatedTensorRT:
    """The module `tensorrt`, or `tensorrt_rtx` with `rtx`, of a simulated GPU."""

    ILogger = ILogger
    DataType, TensorIOMode, TensorLocation, Weights = DataType, TensorIOMode, TensorLocation, Weights
    ExecutionContextAllocationStrategy = Strategy

    def __init__(self, cuda: SimulatedCuda, *, rtx: bool, version: str = "99.1") -> None:
        self.cuda, self.rtx, self.__version__ = cuda, rtx, version
        self.compiled: Counter[str] = Counter()  # kernels: graph and shapes -> how often
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()  # engines and contexts
        self.out_of_memory = ""  # what fails for lack of memory: "engine" or "context"
        if rtx:
            self.CudaGraphStrategy = GraphStrategy
            self.DynamicShapesKernelSpecializationStrategy = Specialization
            self.EngineValidity, self.EngineInvalidityDiagnostics = EngineValidity, Diagnostics

    def Runtime(self, logger: ILogger) -> "SimulatedRuntime":  # noqa: N802
        assert isinstance(logger, ILogger)
        return SimulatedRuntime(self, logger)

    def Refitter(self, engine: "SimulatedEngine", logger: ILogger) -> "SimulatedRefitter":  # noqa: N802
        assert isinstance(logger, ILogger)
        return SimulatedRefitter(engine)

    @property
    def gpu(self) -> str:
        major, minor = self.cuda.capabilities[self.cuda.device]
        return f"sm{major}{minor}"


class SimulatedRuntime:
    def __init__(self, library: SimulatedTensorRT, logger: ILogger) -> None:
        self.library, self.logger = library, logger
        self.engine_host_code_allowed = False
        if library.rtx:
            self.get_engine_validity = self._validity

    def _validity(self, plan: bytes) -> tuple[Any, int]:
        try:
            gpu = json.loads(plan)["gpu"]
        except (ValueError, KeyError):
            return EngineValidity["INVALID"], int(Diagnostics["MALFORMED_ENGINE"])
        if gpu != self.library.gpu:
            return EngineValidity["INVALID"], int(Diagnostics["UNSUPPORTED_CC"])
        return EngineValidity["VALID"], 0

    def deserialize_cuda_engine(self, plan: bytes) -> "SimulatedEngine | None":
        assert self.engine_host_code_allowed is False
        try:
            content = json.loads(plan)
        except ValueError:
            self.logger.log(ILogger.Severity["ERROR"], "Serialization assertion failed")
            return None
        if self.library.out_of_memory == "engine":
            self.logger.log(ILogger.Severity["ERROR"], "Error Code 1: Cuda Runtime (out of memory)")
            return None
        return (RtxEngine if self.library.rtx else SimulatedEngine)(self.library, self.logger, content)


class SimulatedEngine:
    def __init__(self, library: SimulatedTensorRT, logger: ILogger, plan: dict[str, Any]) -> None:
        self.library, self.logger, self.plan = library, logger, plan
        self.device = library.cuda.device
        library.alive.add(self)
        session = ort.InferenceSession(plan["graph"], providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in session.get_inputs()}
        self.outputs = {value.name: value for value in session.get_outputs()}
        self.missing = set(plan["stripped"])
        self.session = None if self.missing else session
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.num_optimization_profiles = len(plan["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode["INPUT" if name in self.inputs else "OUTPUT"]

    def get_tensor_dtype(self, name: str) -> Any:
        return _ORT[{**self.inputs, **self.outputs}[name].type][0]

    def get_tensor_location(self, name: str) -> Any:
        assert name in {**self.inputs, **self.outputs}
        return TensorLocation["DEVICE"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = {**self.inputs, **self.outputs}[name].shape
        return tuple(size if isinstance(size, int) else -1 for size in shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.plan["profiles"][profile][name]]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return int(self.plan["memory"][profile])

    def create_execution_context(self, how: Any) -> "SimulatedContext | None":
        if self.library.rtx:
            assert isinstance(how, SimulatedConfig)
            assert how.strategy == Strategy["USER_MANAGED"]
            assert how.cuda_graph_strategy == GraphStrategy["DISABLED"]
        else:
            assert how == Strategy["USER_MANAGED"]
        if self.library.out_of_memory == "context":
            self.logger.log(ILogger.Severity["ERROR"], "Error Code 1: Cuda Runtime (out of memory)")
            return None
        return (RtxContext if self.library.rtx else SimulatedContext)(self, how)


class RtxEngine(SimulatedEngine):
    def create_runtime_config(self) -> "SimulatedConfig":
        return SimulatedConfig(self.library)


class SimulatedRefitter:
    def __init__(self, engine: SimulatedEngine) -> None:
        self.engine = engine
        self.given: dict[str, Weights] = {}
        import onnx  # only here, where a plan is stripped

        model = onnx.load(engine.plan["graph"], load_external_data=False)
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def get_weights_prototype(self, name: str) -> Weights:
        if name not in self.tensors:
            return Weights(DataType["FLOAT"], 0, -1)
        kind = {1: "FLOAT", 7: "INT64", 10: "HALF"}[self.tensors[name].data_type]
        return Weights(DataType[kind], 0, int(np.prod(self.tensors[name].dims)))

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        prototype = self.get_weights_prototype(name)
        if (weights.dtype, weights.size) != (prototype.dtype, prototype.size):
            return False
        self.given[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        return sorted(self.engine.missing - self.given.keys())

    def refit_cuda_engine(self) -> bool:
        if self.get_missing_weights():
            return False
        options = ort.SessionOptions()
        values = [
            ort.OrtValue.ortvalue_from_numpy(weights.read().reshape(tuple(self.tensors[name].dims)))
            for name, weights in self.given.items()
        ]
        options.add_external_initializers(list(self.given), values)
        self.engine.session = ort.InferenceSession(
            self.engine.plan["graph"], options, providers=["CPUExecutionProvider"]
        )
        self.engine.held_values = values  # type: ignore[attr-defined]  # the session reads them
        self.engine.missing = set()
        return True


class SimulatedConfig:
    def __init__(self, library: SimulatedTensorRT) -> None:
        self.library = library
        self.strategy = Strategy["STATIC"]
        self.cuda_graph_strategy = GraphStrategy["DISABLED"]
        self.dynamic_shapes_kernel_specialization_strategy = Specialization["LAZY"]
        self.kernels: SimulatedKernels | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> "SimulatedKernels":
        return SimulatedKernels()

    def set_runtime_cache(self, kernels: "SimulatedKernels") -> bool:
        self.kernels = kernels
        return True


class SimulatedKernels:
    """The compiled kernels of RTX: the shapes that were run."""

    def __init__(self) -> None:
        self.known: set[str] = set()

    def serialize(self) -> bytes:
        return json.dumps(sorted(self.known)).encode()

    def deserialize(self, content: bytes) -> bool:
        self.known = set(json.loads(content))
        return True


class SimulatedContext:
    """An execution context. Whatever is changed after a capture makes the graph undefined: `version` counts that."""

    def __init__(self, engine: SimulatedEngine, how: Any) -> None:
        self.engine, self.library = engine, engine.library
        self.library.alive.add(self)
        self.kernels = how.kernels if self.library.rtx else None
        self.lazy = self.library.rtx and how.dynamic_shapes_kernel_specialization_strategy == Specialization["LAZY"]
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.activations: tuple[int, int] | None = None
        self.version = 0
        self.settled = -1  # the version that was run plainly

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert self.library.cuda.stream(stream).capture is None
        if not 0 <= profile < self.engine.num_optimization_profiles:
            return False
        self._change()
        self.profile, self.shapes = profile, {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None, "the profile comes first"
        self._change()
        low, _, high = self.engine.plan["profiles"][self.profile].get(name, [shape] * 3)
        fits = all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
        if not fits:
            self.engine.logger.log(ILogger.Severity["ERROR"], f"{name} {shape} is out of range")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.engine.inputs:
            return self.shapes[name]
        # what the graph calls a dimension is the same everywhere; a scale between latents and pixels is the test's
        return self._output_shapes()[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in {**self.engine.inputs, **self.engine.outputs}
        assert address % _ALIGNMENT == 0
        self._change()
        self.addresses[name] = address
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % _ALIGNMENT == 0
        self._change()
        self.activations = address, size

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self.library.cuda
        if cuda.device != self.engine.device:
            raise MisuseError(f"an engine of device {self.engine.device} is run on device {cuda.device}")
        if cuda.pending_error != SUCCESS:
            self.engine.logger.log(ILogger.Severity["ERROR"], f"Cuda Runtime ({cuda.pending_error!r})")
            return False
        if self.engine.missing:
            raise MisuseError("an engine is run without its weights")
        if unset := [name for name in (*self.engine.inputs, *self.engine.outputs) if name not in self.addresses]:
            raise MisuseError(f"no address of {unset}")
        if self.infer_shapes() or self.activations is None or self.profile is None:
            raise MisuseError("a context is run without shapes or memory")
        if self.activations[1] < self.engine.get_device_memory_size_for_profile_v2(self.profile):
            raise MisuseError("the memory for activations is too small")
        queue = cuda.stream(stream)
        if queue.capture is not None and self.settled != self.version:
            queue.invalidated = True
            self.engine.logger.log(ILogger.Severity["ERROR"], "a context must run once before it is captured")
            return False
        cuda.counts["enqueues"] += 1
        self._compile()
        version = self.version
        addresses, shapes, activations = dict(self.addresses), dict(self.shapes), self.activations
        if queue.capture is None:
            self.settled = version
        queue.add(lambda: self._run(version, addresses, shapes, activations))
        return True

    def _change(self) -> None:
        self.version += 1

    def _compile(self) -> None:
        name = hashlib.sha256(repr((self.engine.plan["graph"], sorted(self.shapes.items()))).encode()).hexdigest()
        if self.kernels is not None and name not in self.kernels.known:
            self.kernels.known.add(name)
            self.library.compiled[self.engine.plan["graph"]] += 1

    def _run(
        self,
        version: int,
        addresses: Mapping[str, int],
        shapes: Mapping[str, tuple[int, ...]],
        activations: tuple[int, int],
    ) -> None:
        if version != self.version:
            raise MisuseError("a context was changed since its work was enqueued or captured")
        cuda, device = self.library.cuda, self.engine.device
        assert self.engine.session is not None
        feeds = {}
        for name, shape in shapes.items():
            dtype = _NUMPY[self.engine.get_tensor_dtype(name)]
            size = int(np.prod(shape)) * dtype.itemsize
            assert cuda.at(addresses[name], size).device == device
            feeds[name] = cuda.bytes_at(addresses[name], size).copy().view(dtype).reshape(shape)
        cuda.bytes_at(*activations)[:] = _SCRATCH  # what lies there is not another's
        assert cuda.at(*activations).device == device
        results = self.engine.session.run(None, feeds)
        for name, result in zip(self.engine.outputs, results, strict=True):
            cuda.bytes_at(addresses[name], result.nbytes)[:] = np.ascontiguousarray(result).view(np.uint8).ravel()

    def _output_shapes(self) -> dict[str, tuple[int, ...]]:
        """By running the graph on zeros, once for each set of shapes."""
        assert not self.infer_shapes()
        session = self.engine.session
        assert session is not None
        key = tuple(self.shapes.items())
        known = self.engine.__dict__.setdefault("output_shapes", {})
        if key not in known:
            feeds = {
                name: np.zeros(shape, _NUMPY[self.engine.get_tensor_dtype(name)]) for name, shape in self.shapes.items()
            }
            results = session.run(None, feeds)
            known[key] = {name: result.shape for name, result in zip(self.engine.outputs, results, strict=True)}
        return known[key]


class RtxContext(SimulatedContext):
    def is_stream_capturable(self, stream: int) -> bool:
        return self.library.cuda.stream(stream).capture is None and not self.lazy
