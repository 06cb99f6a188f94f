"""NVIDIA GPUs, as ONNX Runtime's CUDA execution provider has them."""

import contextlib
import ctypes
import io
import sys
from collections.abc import Mapping

import onnxruntime as ort

from .session import DeviceMemory, GraphCapture, Place

PROVIDER = "CUDAExecutionProvider"
CAPTURE = GraphCapture(provider_option="enable_cuda_graph", run_option="gpu_graph_id", uncaptured="-1")
#: before it, a graph that was replayed after a run of other shapes read host memory that was not its own any more
CAPTURES_SINCE = (1, 31)

#: that are not ONNX Runtime's own choice; float32 networks use TF32, which is, unless NVIDIA_TF32_OVERRIDE=0 is set
_OPTIONS: Mapping[str, str] = {
    "arena_extend_strategy": "kSameAsRequested",  # not up to twice of it: several networks share a GPU
    "enable_skip_layer_norm_strict_mode": "1",  # which adds up in float32 what is float16
}


def cuda_place(device: str, options: Mapping[str, str] | None = None) -> Place:
    """The place of a session on a GPU.

    Args:
        device: "cuda", or "cuda:1" for the second GPU.
        options: of the execution provider, in place of the usual ones.

    Raises:
        ValueError: no such device, no GPU build of ONNX Runtime, or no driver.
    """
    index = device_index(device, "onnxruntime", "cpu, cuda and cuda:N")
    require_gpu_build(device)
    return Place(
        device=device,
        provider=PROVIDER,
        options={**cuda_options(index), **(options or {})},
        others=(("CPUExecutionProvider", {}),),
        memory=DeviceMemory("cuda", index),
        capture=CAPTURE if can_capture() else None,
    )


def cuda_options(index: int) -> dict[str, str]:
    """The usual options of the CUDA execution provider, on the GPU of a number."""
    return {"device_id": str(index), **_OPTIONS}


def device_index(device: str, backend: str, known: str) -> int:
    """The number of a GPU by its name.

    Raises:
        ValueError: it is no name of a GPU.
    """
    kind, colon, index = device.partition(":")
    if kind != "cuda" or (colon and not (index.isascii() and index.isdecimal())):
        raise ValueError(f"unknown device {device!r} for the {backend} backend; it knows {known}")
    return int(index or 0)


def require_gpu_build(device: str) -> None:
    """Refuses a build of ONNX Runtime without CUDA, and a machine without a driver; then loads CUDA's libraries.

    Raises:
        ValueError: says what to install.
    """
    if not is_gpu_build():
        raise ValueError(
            f"device {device!r} needs the GPU build of ONNX Runtime, which cannot be installed beside the other: "
            "pip uninstall onnxruntime onnxruntime-gpu && pip install 'safelight[gpu]'"
        )
    require_driver(device)
    if hasattr(ort, "preload_dlls"):  # since 1.21; it prints what it does not find, which the system may have
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def is_gpu_build() -> bool:
    """Whether this is onnxruntime-gpu."""
    return bool(getattr(ort, "cuda_version", "")) or PROVIDER in ort.get_available_providers()


def require_driver(device: str) -> None:
    """Refuses a machine that has no driver for NVIDIA's GPUs.

    Raises:
        ValueError: says so.
    """
    if not has_driver():
        raise ValueError(f"device {device!r} is not usable: this machine has no driver for an NVIDIA GPU")


def has_driver() -> bool:
    """Whether the library that is part of NVIDIA's driver can be loaded."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def can_capture() -> bool:
    """Whether this ONNX Runtime makes CUDA graphs of several shapes, and lets go of them."""
    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    return version >= CAPTURES_SINCE and hasattr(ort.InferenceSession, "release_captured_graph")
