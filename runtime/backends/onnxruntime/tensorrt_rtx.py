"""TensorRT for RTX as a plugin of ONNX Runtime: engines for GeForce and RTX GPUs from compute capability 8.6.

The plugin is a wheel of its own, for plain onnxruntime. It has the libraries that it needs, but for the driver's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..protocol import Array, Tuning
from .cuda import device_index, require_driver
from .engine_cache import engine_folder
from .network import OnnxRuntimeNetwork
from .session import DeviceMemory, GraphCapture, Place
from .settings import SessionSettings

try:
    import onnxruntime_ep_nv_tensorrt_rtx as plugin
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the onnxruntime-tensorrt-rtx backend needs: pip install 'safelight[onnxruntime-tensorrt-rtx]', "
        "without onnxruntime-gpu, which takes the place of onnxruntime"
    ) from error

_CAPTURE = GraphCapture(provider_option="enable_cuda_graph", run_option="cuda_graph_annotation_id", uncaptured=None)


def open_network(
    graph: Path,
    *,
    device: str = "cuda",
    initializers: Mapping[str, Array] | None = None,
    provider_options: Mapping[str, str] | None = None,
    tuning: Tuning | None = None,
) -> OnnxRuntimeNetwork:
    """Opens a graph.

    Args:
        graph: an ONNX file.
        device: "cuda", or "cuda:1" for the second GPU that the plugin can use.
        initializers: weights by name, in place of those in the file beside the graph.
        provider_options: of the plugin (`nv_...`), in place of the usual ones.
        tuning: how it computes.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: the folder of the compiled kernels can be written by others.
        ValueError: the device is not known, or not usable; or the file is no graph that ONNX Runtime can open;
            or a precision or an option that ONNX Runtime does not have.
    """
    settings = SessionSettings.of(tuning)
    index = device_index(device, "onnxruntime-tensorrt-rtx", "cuda and cuda:N")
    gpu = _gpu(device, index)
    if not graph.is_file():
        raise FileNotFoundError(f"{graph} does not exist")
    versions = ort.__version__, plugin.__version__
    folder = engine_folder("onnxruntime-tensorrt-rtx", graph, initializers or {}, *versions)
    place = Place(
        device=device,
        provider=plugin.get_ep_name(),
        options={"nv_runtime_cache_path": str(folder), **(provider_options or {})},
        plugin_devices=(gpu,),
        memory=DeviceMemory("cuda", index, gpu.memory_info(ort.OrtDeviceMemoryType.DEFAULT)),
        capture=_CAPTURE,
    )
    return OnnxRuntimeNetwork(graph, place, settings=settings, initializers=initializers)


def _gpu(device: str, index: int) -> Any:
    """ONNX Runtime's own object for a GPU.

    Raises:
        ValueError: there is none of this number, or no driver, or the plugin cannot be loaded.
    """
    require_driver(device)
    name = plugin.get_ep_name()
    try:
        if not _found(name):
            ort.register_execution_provider_library(name, plugin.get_library_path())
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise ValueError(f"device {device!r} is not usable: the plugin cannot be loaded: {error}") from error
    found = _found(name)
    if index >= len(found):
        raise ValueError(
            f"device {device!r} is not usable: TensorRT for RTX finds {len(found)} GPUs that it knows "
            "(compute capability 8.6, 8.9, 12.0 and later)"
        )
    return found[index]


def _found(name: str) -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == name]


def target(device: str) -> str:
    """The name of the lowered graph that suits this device best; see `ModelFolder.graph`."""
    del device
    return "tensorrt"


def describe() -> str:
    """The engine's versions, for `safelight doctor`."""
    return f"onnxruntime {ort.__version__} with TensorRT for RTX, plugin {plugin.__version__}"
