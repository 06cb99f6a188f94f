"""The engines that run a network. Each is a module, imported when it is asked for."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .protocol import AUTO, PRECISIONS, Array, Network, TensorSpec, Tuning

__all__ = [
    "AUTO",
    "BACKENDS",
    "COMPILED",
    "ON_GPU",
    "PRECISIONS",
    "Array",
    "Network",
    "TensorSpec",
    "Tuning",
    "backend_module",
    "open_network",
]

#: name -> the module that implements it: `open_network(graph, device=...)`, `target(device)`, `describe()`
BACKENDS: Mapping[str, str] = MappingProxyType(
    {
        "onnxruntime": ".onnxruntime",
        "onnxruntime-tensorrt": ".onnxruntime.tensorrt",
        "onnxruntime-tensorrt-rtx": ".onnxruntime.tensorrt_rtx",
        "openvino": ".openvino",
        "tensorrt": ".tensorrt.standard",
        "tensorrt-rtx": ".tensorrt.rtx",
    }
)
#: those that run no graph but what was compiled of it: `open_engine(folder, network, device=..., engines=...)`
COMPILED = ("tensorrt", "tensorrt-rtx")
#: those that run on a GPU alone
ON_GPU = ("onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx", *COMPILED)


def backend_module(backend: str) -> Any:
    """The module of a backend; Any, because a module is not a type.

    Raises:
        ValueError: no backend has this name.
        ModuleNotFoundError: its engine is not installed; the message says what to install.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    return import_module(BACKENDS[backend], __package__)


def open_network(
    graph: Path,
    *,
    backend: str = "onnxruntime",
    device: str = "cpu",
    initializers: Mapping[str, Array] | None = None,
    tuning: Tuning | None = None,
) -> Network:
    """Opens one graph with the engine named.

    Args:
        graph: an ONNX file.
        backend: a key of `BACKENDS`.
        device: where the engine runs it.
        initializers: weights by name, to use in place of those in the graph's weight file; of their shape and dtype.
        tuning: how the engine computes; as the graph says, when None.

    Raises:
        ValueError: an unknown backend, device, precision or option, one that opens no graphs, a graph that the engine
            cannot open, or initializers that do not fit.
        FileNotFoundError: there is no such graph.
        ModuleNotFoundError: the engine is not installed.
    """
    if backend in COMPILED:
        raise ValueError(f"the {backend} backend runs engines, which safelight build compiles, and cannot open {graph}")
    given = {"initializers": initializers, "tuning": tuning if tuning != Tuning() else None}
    options = {name: value for name, value in given.items() if value is not None}  # a backend may do without
    network: Network = backend_module(backend).open_network(graph, device=device, **options)
    return network
