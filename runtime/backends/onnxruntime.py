"""ONNX Runtime: the first engine, on the CPU and on CUDA."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .protocol import Array, TensorSpec, checked_inputs

try:
    import onnxruntime as ort
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the onnxruntime backend needs: pip install 'safelight[cpu]'") from error

logger = logging.getLogger(__name__)

DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(bool)": np.dtype(np.bool_),
}


class OnnxRuntimeNetwork:
    """A network in an ONNX Runtime session."""

    def __init__(
        self,
        graph: Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        initializers: Mapping[str, Array] | None = None,
    ) -> None:
        """Opens a graph.

        Args:
            graph: an ONNX file; its external data lies beside it.
            device: "cpu", "cuda" or "cuda:1".
            threads: of the CPU, within one operator; ONNX Runtime's choice (the physical cores) when None.
            initializers: weights by name, to use in place of those in the file beside the graph; ONNX Runtime takes
                none of another shape or dtype.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no graph that ONNX Runtime can open, the device is not there, or the initializers
                are not those of the graph.
        """
        if not graph.is_file():
            raise FileNotFoundError(f"{graph} does not exist")
        self._name = graph.parent.name
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only: a warning about an initializer is not the user's business
        # each network has threads of its own, and those that spin after a run slow the next network down
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        # the session reads their memory as long as it lives
        self._initializers = {name: ort.OrtValue.ortvalue_from_numpy(v) for name, v in (initializers or {}).items()}
        if self._initializers:
            options.add_external_initializers(list(self._initializers), list(self._initializers.values()))
        providers = _providers(device)
        try:
            self._session: Any = ort.InferenceSession(graph, options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise ValueError(f"{graph} cannot be opened by ONNX Runtime: {_first_line(error)}") from error
        if device != "cpu" and "CUDAExecutionProvider" not in self._session.get_providers():
            raise ValueError(f"device {device!r} is not usable: ONNX Runtime could not start its CUDA provider")
        try:
            self._inputs = tuple(_spec(value) for value in self._session.get_inputs())
            self._outputs = tuple(_spec(value) for value in self._session.get_outputs())
        except KeyError as error:
            raise ValueError(f"{graph} has a tensor of {error}, which NumPy does not have") from error

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs in graph order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs in graph order."""
        return self._outputs

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the network; see `Network`."""
        if self._session is None:
            raise RuntimeError(f"{self._name} is closed")
        wanted = [spec.name for spec in self._outputs] if outputs is None else list(outputs)
        known = {spec.name for spec in self._outputs}
        if unknown := [name for name in wanted if name not in known]:
            raise ValueError(f"{self._name}: unknown output {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        arrays = checked_inputs(self._name, self._inputs, inputs)
        try:
            results = self._session.run(wanted, arrays)
        except Exception as error:  # as above
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise RuntimeError(f"{self._name} failed on {shapes}: {_first_line(error)}") from error
        return dict(zip(wanted, results, strict=True))

    def close(self) -> None:
        """Drops the session and with it the engine's memory."""
        self._session = None
        self._initializers = {}


def open_network(
    graph: Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    initializers: Mapping[str, Array] | None = None,
) -> OnnxRuntimeNetwork:
    """Opens a graph; see `OnnxRuntimeNetwork`."""
    return OnnxRuntimeNetwork(graph, device=device, threads=threads, initializers=initializers)


def target(device: str) -> str:
    """The name of the lowered graph that suits this device best; see `ModelFolder.graph`."""
    return "onnxruntime-cpu" if device == "cpu" else "onnxruntime-cuda"


def describe() -> str:
    """The engine's version and what it can run on, for `safelight doctor`."""
    devices = [name.removesuffix("ExecutionProvider") for name in ort.get_available_providers()]
    return f"onnxruntime {ort.__version__} ({', '.join(devices)})"


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    kind, _, index = device.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise ValueError(f"unknown device {device!r} for the onnxruntime backend; it knows cpu, cuda and cuda:N")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise ValueError(
            f"device {device!r} needs the GPU build of ONNX Runtime: "
            "pip uninstall onnxruntime && pip install 'safelight[gpu]'"
        )
    with contextlib.suppress(Exception):  # wheels of the CUDA libraries, when they are installed
        ort.preload_dlls()
    return [("CUDAExecutionProvider", {"device_id": int(index or 0)}), "CPUExecutionProvider"]


def _spec(value: Any) -> TensorSpec:
    shape = tuple(dimension if isinstance(dimension, int) else str(dimension or "?") for dimension in value.shape)
    return TensorSpec(value.name, DTYPES[value.type], shape)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
