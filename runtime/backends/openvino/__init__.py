"""OpenVINO: the fastest on a CPU, in float32 and in bfloat16."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    import openvino
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the openvino backend needs: pip install 'safelight[openvino]'") from error

from ..protocol import Array, TensorSpec, Tuning, checked_inputs, checked_outputs

_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoNetwork:
    """A network that OpenVINO has compiled."""

    def __init__(self, graph: Path, tuning: Tuning) -> None:
        """Opens a graph.

        Args:
            graph: an ONNX file; its external data lies beside it.
            tuning: how it computes.
        """
        if not graph.is_file():
            raise FileNotFoundError(f"{graph} does not exist")
        self._name = graph.parent.name
        core = openvino.Core()
        model = core.read_model(graph)
        properties = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS.get(tuning.precision or "fp32", "bf16"),
            "PERFORMANCE_HINT": "LATENCY",
            **tuning.options,
        }
        if tuning.threads is not None:
            properties["INFERENCE_NUM_THREADS"] = tuning.threads
        self._inputs = tuple(_spec(port) for port in model.inputs)
        self._outputs = tuple(_spec(port) for port in model.outputs)
        self._request: Any = core.compile_model(model, "CPU", properties).create_infer_request()

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
        if self._request is None:
            raise RuntimeError(f"{self._name} is closed")
        wanted = checked_outputs(self._name, self._outputs, outputs)
        arrays = checked_inputs(self._name, self._inputs, inputs)
        found = self._request.infer(arrays, share_inputs=True)
        return {name: np.array(found[name]) for name in wanted}

    def close(self) -> None:
        """Drops the compiled network and with it its memory."""
        self._request = None


def _spec(port: Any) -> TensorSpec:
    shape = tuple(d.get_length() if d.is_static else "?" for d in port.partial_shape)
    return TensorSpec(port.any_name, np.dtype(port.element_type.to_dtype()), shape)


def open_network(
    graph: Path, *, device: str = "cpu", initializers: Mapping[str, Array] | None = None, tuning: Tuning | None = None
) -> OpenVinoNetwork:
    """Opens a graph; see `OpenVinoNetwork`."""
    if device != "cpu":
        raise ValueError(f"unknown device {device!r} for the openvino backend; it knows cpu")
    if initializers:
        raise ValueError("the openvino backend takes no other weights than the folder's")
    return OpenVinoNetwork(graph, tuning or Tuning())


def target(device: str) -> str:
    """The name of the lowered graph that suits this device best; see `ModelFolder.graph`."""
    del device
    return "openvino"


def describe() -> str:
    """The engine's version, for `safelight doctor`."""
    return f"openvino {openvino.__version__}"
