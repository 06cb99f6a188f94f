"""OpenVINO: the fastest on a CPU, in float32 and in bfloat16; and Intel's GPUs and NPUs."""

from collections.abc import Mapping
from pathlib import Path

try:
    import openvino
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the openvino backend needs: pip install 'safelight[openvino]'") from error

from ..protocol import Array, Tuning
from .devices import Device
from .network import OpenVinoNetwork
from .precision import fastest

__all__ = ["OpenVinoNetwork", "describe", "fastest_precision", "open_network", "target"]


def open_network(
    graph: Path, *, device: str = "cpu", initializers: Mapping[str, Array] | None = None, tuning: Tuning | None = None
) -> OpenVinoNetwork:
    """Opens a graph; see `OpenVinoNetwork`."""
    return OpenVinoNetwork(graph, Device.named(device), tuning or Tuning(), initializers or {})


def fastest_precision(device: str) -> str:
    """What "auto" is on a device.

    Raises:
        ValueError: the device is not known, or not there.
    """
    return fastest(Device.named(device))


def target(device: str) -> str:
    """The name of the lowered graph that suits this device best; see `ModelFolder.graph`."""
    del device
    return "openvino"


def describe() -> str:
    """The engine's version and the devices that it finds, for `safelight doctor`."""
    version = openvino.__version__.partition("-")[0]
    return f"openvino {version} ({', '.join(openvino.Core().available_devices)})"
