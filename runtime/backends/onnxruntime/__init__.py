"""ONNX Runtime: the first engine, on the CPU and on CUDA."""

from collections.abc import Mapping
from pathlib import Path

try:
    import onnxruntime as ort
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the onnxruntime backend needs: pip install 'safelight[cpu]', or 'safelight[gpu]' with an NVIDIA GPU"
    ) from error

from ..protocol import AUTO, Array, Tuning
from .cuda import cuda_place
from .network import OnnxRuntimeNetwork
from .session import Place

__all__ = ["OnnxRuntimeNetwork", "describe", "open_network", "place", "target"]


def open_network(
    graph: Path,
    *,
    device: str = "cpu",
    initializers: Mapping[str, Array] | None = None,
    provider_options: Mapping[str, str] | None = None,
    tuning: Tuning | None = None,
) -> OnnxRuntimeNetwork:
    """Opens a graph; see `OnnxRuntimeNetwork`, and `place` for devices and their options.

    Raises:
        ValueError: a precision or an option that ONNX Runtime does not have.
    """
    tuning = tuning or Tuning()
    if tuning.precision not in (None, AUTO, "fp32"):
        raise ValueError(f"ONNX Runtime does not compute in {tuning.precision}: use backend='openvino'")
    if tuning.options:
        raise ValueError(f"the onnxruntime backend has no option {', '.join(sorted(tuning.options))}")
    where = place(device, provider_options)
    return OnnxRuntimeNetwork(graph, where, threads=tuning.threads, initializers=initializers)


def place(device: str, provider_options: Mapping[str, str] | None = None) -> Place:
    """Where a device's sessions run.

    Args:
        device: "cpu", "cuda" or "cuda:1".
        provider_options: of the CUDA execution provider, in place of the usual ones: for measurements.

    Raises:
        ValueError: the device is not known, or not usable; the message says what is missing.
    """
    return Place() if device == "cpu" else cuda_place(device, provider_options)


def target(device: str) -> str:
    """The name of the lowered graph that suits this device best; see `ModelFolder.graph`."""
    return "onnxruntime-cpu" if device == "cpu" else "onnxruntime-cuda"


def describe() -> str:
    """The engine's version and what it can run on, for `safelight doctor`."""
    devices = [name.removesuffix("ExecutionProvider") for name in ort.get_available_providers()]
    return f"onnxruntime {ort.__version__} ({', '.join(devices)})"
