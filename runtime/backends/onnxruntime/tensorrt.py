"""ONNX Runtime's TensorRT execution provider: it builds engines itself, where it meets a graph or a shape first.

What TensorRT cannot run is run by CUDA's kernels. For engines that are built ahead of time see the backend "tensorrt".
"""

import contextlib
import importlib
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from ...onnx_file import border_dtypes
from ..protocol import Array, Tuning
from .cuda import CAPTURE, can_capture, cuda_options, device_index, require_gpu_build
from .cuda import PROVIDER as CUDA
from .engine_cache import engine_folder
from .network import OnnxRuntimeNetwork
from .session import DeviceMemory, GraphCapture, Place
from .settings import SessionSettings

PROVIDER = "TensorrtExecutionProvider"
_FLOAT16 = 10  # in TensorProto.DataType


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
        device: "cuda" or "cuda:1".
        initializers: weights by name, in place of those in the file beside the graph.
        provider_options: of the TensorRT execution provider, in place of the usual ones. With
            `trt_profile_min_shapes`, `trt_profile_opt_shapes` and `trt_profile_max_shapes`, each
            "sample:2x4x64x64,timestep:2,...", one engine serves a range of shapes; without them the engine is built
            again when a shape is outside of those that came before.
        tuning: how it computes.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: the folder of the engines can be written by others.
        ValueError: the device is not known, or not usable; or the file is no graph that ONNX Runtime can open;
            or a precision or an option that ONNX Runtime does not have.
    """
    settings = SessionSettings.of(tuning)
    index = device_index(device, "onnxruntime-tensorrt", "cuda and cuda:N")
    require_gpu_build(device)
    if not graph.is_file():
        raise FileNotFoundError(f"{graph} does not exist")
    folder = str(engine_folder("onnxruntime-tensorrt", graph, initializers or {}, ort.__version__))
    with contextlib.suppress(ImportError):
        importlib.import_module("tensorrt_libs")  # loads TensorRT's libraries, when they are a wheel
    options = {
        "device_id": str(index),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
        "trt_fp16_enable": str(int(_FLOAT16 in border_dtypes(graph))),  # where the graph is, and no other
        "trt_context_memory_sharing_enable": "1",
    }
    place = Place(
        device=device,
        provider=PROVIDER,
        options={**options, **(provider_options or {})},
        others=((CUDA, cuda_options(index)), ("CPUExecutionProvider", {})),
        memory=DeviceMemory("cuda", index),
        capture=_CAPTURE if can_capture() else None,
    )
    return OnnxRuntimeNetwork(graph, place, settings=settings, initializers=initializers)


_CAPTURE = GraphCapture(
    provider_option="trt_cuda_graph_enable", run_option=CAPTURE.run_option, uncaptured=CAPTURE.uncaptured
)


def target(device: str) -> str:
    """The name of the lowered graph that suits this device best; see `ModelFolder.graph`."""
    del device
    return "tensorrt"


def describe() -> str:
    """The engine's version, for `safelight doctor`."""
    return f"onnxruntime {ort.__version__} with TensorRT"
