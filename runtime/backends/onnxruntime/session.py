"""An ONNX Runtime session: where it runs, how it is opened, and what its errors mean."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime as ort

from ..protocol import Array, TensorSpec
from .settings import SessionSettings

DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(bool)": np.dtype(np.bool_),
}

#: what ONNX Runtime, CUDA, cuBLAS and cuDNN say when the memory of a device is used up
_OUT_OF_MEMORY = re.compile(r"out of memory|failed to allocate memory|alloc_failed|smaller than requested", re.I)
#: and when a device, or the libraries for it, are of no use
_UNUSABLE = re.compile(
    r"CUDA failure \d+: [^;\n]+|Invalid device ID: [^\n]+|Unknown provider option: [^\n]+|"
    r"Please install TensorRT libraries[^\n]+"
)


@dataclass(frozen=True)
class DeviceMemory:
    """Memory that arrays are bound in."""

    kind: str  # as ONNX Runtime calls it
    index: int
    info: Any = None  # of a plugin's device: its `OrtMemoryInfo`

    def allocate(self, array: Array) -> Any:
        """An `OrtValue` of an array's shape and dtype, whose numbers are any."""
        shape = list(array.shape)
        if self.info is not None:
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, array.dtype, memory_info=self.info)
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, array.dtype, self.kind, self.index)


@dataclass(frozen=True, kw_only=True)
class GraphCapture:
    """The options with which an execution provider makes CUDA graphs of runs, and runs them again."""

    provider_option: str
    run_option: str  # names the graph that a run is captured as, or replays
    uncaptured: str | None  # value of `run_option` for a run as it is; None where every run belongs to some graph


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a session runs, and where the arrays lie that it reads and writes."""

    device: str = "cpu"  # as a user names it
    provider: str = "CPUExecutionProvider"
    options: Mapping[str, str] = field(default_factory=dict)  # of the provider
    others: tuple[tuple[str, Mapping[str, str]], ...] = ()  # providers of what the first has no kernel for
    plugin_devices: tuple[Any, ...] = ()  # of a provider that is a plugin: ONNX Runtime's `OrtEpDevice`s
    memory: DeviceMemory | None = None  # that arrays are bound in; they stay where NumPy has them when None
    capture: GraphCapture | None = None

    def without_capture(self) -> Self:
        """The same place, where every run is made anew."""
        return replace(self, capture=None)


def open_session(
    graph: Path, place: Place, *, settings: SessionSettings | None = None, initializers: Mapping[str, Any] | None = None
) -> Any:
    """Opens a graph; Any, because ONNX Runtime has no types.

    Args:
        graph: an ONNX file; its external data lies beside it.
        place: where it runs.
        settings: how it is opened; as usual when None.
        initializers: `OrtValue`s by name, to use in place of those in the file beside the graph; the session reads
            their memory as long as it lives.

    Raises:
        MemoryError: the memory of the device is used up.
        ValueError: the file is no graph that ONNX Runtime can open, or the device is not usable.
    """
    options = (settings or SessionSettings()).session_options(on_cpu=place.memory is None)
    if initializers:
        options.add_external_initializers(list(initializers), list(initializers.values()))
    own = dict(place.options)
    if place.capture is not None:
        own[place.capture.provider_option] = "1"
    providers: list[Any] | None = [(place.provider, own), *((name, dict(other)) for name, other in place.others)]
    try:
        if place.plugin_devices:
            options.add_provider_for_devices(list(place.plugin_devices), own)
            providers = None
        # without `enable_fallback`, a device that fails is an error, and not a line of print and the CPU
        session = ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        if is_out_of_memory(error):
            raise MemoryError(f"the memory of {place.device} is used up, opening {graph}: {reason(error)}") from error
        if _UNUSABLE.search(str(error)):
            raise ValueError(f"device {place.device!r} is not usable: {reason(error)}") from error
        raise ValueError(f"{graph} cannot be opened by ONNX Runtime: {reason(error)}") from error
    if place.provider not in session.get_providers():
        raise ValueError(
            f"device {place.device!r} is not usable: ONNX Runtime could not load the libraries of {place.provider}; "
            "pip install 'safelight[gpu]' brings those of CUDA and cuDNN"
        )
    return session


class PlainSession:
    """A session that is given NumPy's own arrays, which is all that a CPU needs."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def run(self, outputs: Sequence[str], arrays: Mapping[str, Array]) -> list[Array]:
        """Runs the session; the results are the caller's.

        Raises:
            Exception: whatever ONNX Runtime raises.
        """
        results: list[Array] = self.session.run(list(outputs), dict(arrays))
        return results

    def close(self) -> None:
        """Gives the session and its memory back."""
        self.session = None


def tensor_specs(values: Any, graph: Path) -> tuple[TensorSpec, ...]:
    """What ONNX Runtime says of a session's inputs or outputs.

    Raises:
        ValueError: a tensor is of a dtype that NumPy does not have.
    """
    try:
        return tuple(TensorSpec(value.name, DTYPES[value.type], _shape(value)) for value in values)
    except KeyError as error:
        raise ValueError(f"{graph} has a tensor of {error}, which NumPy does not have") from error


def _shape(value: Any) -> tuple[int | str, ...]:
    return tuple(dimension if isinstance(dimension, int) else str(dimension or "?") for dimension in value.shape)


def shapes(arrays: Mapping[str, Array]) -> str:
    """Names and shapes of arrays, for an error."""
    return ", ".join(f"{name} {array.shape}" for name, array in arrays.items())


def reason(error: Exception) -> str:
    """What an exception of ONNX Runtime says: of the lines that name its own sources, the part that a user can read."""
    if found := _UNUSABLE.search(str(error)):
        return found[0].strip()
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception of ONNX Runtime says that the memory of a device is used up."""
    return _OUT_OF_MEMORY.search(str(error)) is not None


def is_capture_refused(error: Exception) -> bool:
    """Whether a session was not opened because its runs cannot be CUDA graphs."""
    return "cannot use the graph capture feature" in str(error)
