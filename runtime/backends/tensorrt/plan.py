"""An engine as TensorRT has it: a plan that was deserialized, its inputs and outputs, and contexts to run it in."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from ..protocol import TensorSpec
from .cuda import CudaOutOfMemoryError

if TYPE_CHECKING:
    import tensorrt as trt

    from ...engines import EngineRecord
    from .buckets import Shape

logger = logging.getLogger(__name__)

#: TensorRT's names of the dtypes that NumPy has too
_DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "INT64": np.dtype(np.int64),
    "INT32": np.dtype(np.int32),
    "BOOL": np.dtype(np.bool_),
}
_REMEMBERED = 8  # of TensorRT's own messages


class Plan:
    """A deserialized engine. What it makes must be closed before it is."""

    def __init__(self, library: Any, record: EngineRecord, plan: bytes) -> None:
        """Deserializes a plan on the GPU that the thread has selected.

        Args:
            library: the module `tensorrt` or `tensorrt_rtx`.
            record: what the plan is.
            plan: its bytes, which are those that were recorded.

        Raises:
            CudaOutOfMemoryError: there is too little memory for its weights.
            ValueError: TensorRT refuses it, or it is not what the record says.
        """
        self.library = library
        self.record = record
        self.messages: deque[str] = deque(maxlen=_REMEMBERED)
        self.logger = _logger(library, self.messages)
        runtime: trt.Runtime = library.Runtime(self.logger)
        runtime.engine_host_code_allowed = False
        self._check(runtime, plan)
        engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self.refusal("the engine cannot be deserialized here")
        self._runtime: trt.Runtime | None = runtime
        self._engine: trt.ICudaEngine | None = engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        entering = {name for name in names if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT}
        self.inputs = tuple(self._spec(name) for name in names if name in entering)
        self.outputs = tuple(self._spec(name) for name in names if name not in entering)
        self._check_profiles()

    @property
    def name(self) -> str:
        """What the engine is called on disk."""
        return self.record.identity.name

    @property
    def engine(self) -> trt.ICudaEngine:
        """The engine itself."""
        assert self._engine is not None, "the plan is closed"
        return self._engine

    def failure(self, what: str) -> RuntimeError:
        """The error of something that TensorRT did not do, with what it said of it first."""
        message = self._first_message()
        text = f"{self.record.identity.network}: {what}: {message}"
        return CudaOutOfMemoryError(text) if "out of memory" in message.lower() else RuntimeError(text)

    def refusal(self, what: str) -> RuntimeError | ValueError:
        """The same where the engine is to blame, or its weights; or else the memory, which is too small."""
        failure = self.failure(what)
        return failure if isinstance(failure, CudaOutOfMemoryError) else ValueError(f"{self.name}: {failure}")

    def activation_memory(self, profile: int) -> int:
        """Bytes that a call within a profile needs for what is between inputs and outputs."""
        return int(self.engine.get_device_memory_size_for_profile_v2(profile))

    def create_context(self) -> trt.IExecutionContext:
        """A context that has no memory for activations of its own.

        Raises:
            RuntimeError: TensorRT makes none; a CudaOutOfMemoryError where there is too little memory.
        """
        context: trt.IExecutionContext | None = self.engine.create_execution_context(
            self.library.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        return self._made(context)

    def can_be_captured(self, context: trt.IExecutionContext, stream: int) -> bool:  # noqa: ARG002
        """Whether a call in this context can be recorded as a graph."""
        return True

    def after_first_call(self) -> None:
        """What there is to do once a context has run: kernels may have been compiled for it."""

    def close(self) -> None:
        """Lets go of the engine and its weights."""
        self._engine = None
        self._runtime = None

    def _check(self, runtime: trt.Runtime, plan: bytes) -> None:
        """Refuses a plan, before it is deserialized, of which TensorRT says that it is not valid here."""

    def _made(self, context: trt.IExecutionContext | None) -> trt.IExecutionContext:
        if context is None:
            raise self.failure("TensorRT could not make a context to run it in")
        return context

    def _first_message(self) -> str:
        messages = list(self.messages)
        self.messages.clear()
        return messages[0] if messages else "TensorRT does not say why"

    def _spec(self, name: str) -> TensorSpec:
        """An input or output, whose free dimensions have the names that the record gives them."""
        engine, network = self.engine, self.record.identity.network
        recorded = {tensor.name: tensor for tensor in (*self.record.inputs, *self.record.outputs)}
        shape = sizes(engine.get_tensor_shape(name))
        if engine.get_tensor_location(name) != self.library.TensorLocation.DEVICE:
            raise ValueError(f"{self.name}: {network} reads or writes {name} on the host, which is not supported")
        dtype = engine.get_tensor_dtype(name).name
        if dtype not in _DTYPES:
            raise ValueError(
                f"{self.name}: {network} has {name} in {dtype}, which NumPy does not have: inputs and outputs of an "
                "engine must be float32, float16, int64, int32 or bool"
            )
        if name not in recorded or not _agree(shape, recorded[name].shape):
            raise ValueError(f"{self.name} is not what its record says: it has {name} {shape}")
        return TensorSpec(name, _DTYPES[dtype], tuple(recorded[name].shape))

    def _check_profiles(self) -> None:
        profiles = self.record.identity.profiles
        if self.engine.num_optimization_profiles != len(profiles):
            raise ValueError(
                f"{self.name} is not what its record says: it has {self.engine.num_optimization_profiles} profiles, "
                f"{len(profiles)} are recorded"
            )
        for index, profile in enumerate(profiles):
            for name, shape in profile.shapes.items():
                found = tuple(map(sizes, self.engine.get_tensor_profile_shape(name, index)))
                if found != (shape.smallest, shape.usual, shape.largest):
                    raise ValueError(f"{self.name} is not what its record says: profile {index} has {name} {found}")


def sizes(dimensions: trt.Dims) -> Shape:
    """TensorRT's dimensions as a shape; -1 is a free one."""
    return tuple(dimensions[axis] for axis in range(len(dimensions)))


def _agree(shape: Shape, recorded: list[int | str]) -> bool:
    """Whether a shape can be the recorded one: of a size that TensorRT cannot tell, -1, any number can come."""
    return len(shape) == len(recorded) and all(
        found == expected or found == -1 or isinstance(expected, str)
        for found, expected in zip(shape, recorded, strict=True)
    )


def _logger(library: Any, messages: deque[str]) -> Any:
    """TensorRT's logger: what is an error is remembered, the rest goes to ours.

    Any, because its base is a class of a module that is known only now.
    """
    severity = library.ILogger.Severity

    class Logger(library.ILogger):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            """Takes one message."""
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                messages.append(message)
            logger.debug("TensorRT: %s", message)

    return Logger()
