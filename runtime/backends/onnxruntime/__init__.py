"""ONNX Runtime: the first engine, on the CPU and on CUDA."""

from collections.abc import Mapping
from pathlib import Path

try:
    import onnxruntime as ort
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the onnxruntime backend needs: pip install 'safelight[cpu]', or 'safelight[gpu]' with an NVIDIA GPU"
    ) from error

from ..protocol import Array, Tuning
from .cuda import cuda_place
from .network import OnnxRuntimeNetwork
from .session import Place
from .settings import SessionSettings

__all__ = ["OnnxRuntimeNetwork", "describe", "fastest_precision", "open_network", "place", "target"]


def open_network(
    graph: Path,
    *,
    device: str = "cpu",
    initializers: Mapping[str, Array] | None = None,
    provider_options: Mapping[str, str] | None = None,
    tuning: Tuning | None = None,
) -> OnnxRuntimeNetwork:
    """Opens a graph; see `OnnxRuntimeNetwork`, `place` for devices and their options, `settings` for those of sessions.

    Raises:
        ValueError: a precision or an option that ONNX Runtime does not have.
    """
    settings = SessionSettings.of(tuning)
    return OnnxRuntimeNetwork(graph, place(device, provider_options), settings=settings, initializers=initializers)


def place(device: str, provider_options: Mapping[str, str] | None = None) -> Place:
    """Where a device's sessions run.

    Args:
        device: "cpu", "cuda" or "cuda:1".
        provider_options: of the CUDA execution provider, in place of the usual ones: for measurements.

    Raises:
        ValueError: the device is not known, or not usable; the message says what is missing.
    """
    return Place() if device == "cpu" else cuda_place(device, provider_options)


def fastest_precision(device: str) -> str | None:
    """What "auto" is: the graph's own on any device, for nothing is computed in another."""
    del device
    return None


def target(device: str) -> str:
    """The name of the lowered graph that suits this device best; see `ModelFolder.graph`."""
    return "onnxruntime-cpu" if device == "cpu" else "onnxruntime-cuda"


def describe() -> str:
    """The engine's version and what it can run on, for `safelight doctor`."""
    devices = [name.removesuffix("ExecutionProvider") for name in ort.get_available_providers()]
    return f"onnxruntime {ort.__version__} ({', '.join(devices)})"
