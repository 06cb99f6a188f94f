"""A network that OpenVINO compiles for the shapes that it meets."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...graph_check import check_graph
from ..mapped_files import given_back
from ..protocol import Array, TensorSpec, Tuning, checked_inputs, checked_outputs
from ..recently_used import RecentlyUsed
from .blob_cache import BlobCache
from .compiled import CompiledNetwork, kept
from .devices import Device
from .errors import is_out_of_memory, reason
from .precision import decided, keep_angles, of_graph
from .properties import Compiling, properties
from .weights import count_weights, replace_weights

_Shapes = dict[str, tuple[int, ...]]


class OpenVinoNetwork:
    """A network that OpenVINO compiles for the shapes that it meets.

    The graph is read once, its weights mapped. A call with new shapes compiles the graph for these, which is faster at
    every call after it than one for all shapes; each compiled network has a copy of the weights in an order of its own.
    """

    def __init__(self, graph: Path, device: Device, tuning: Tuning, initializers: Mapping[str, Array]) -> None:
        """Opens a graph. It is compiled at the first call.

        Args:
            graph: an ONNX file; its external data lies beside it.
            device: that runs it.
            tuning: how it computes; options are OpenVINO's properties, and those of `Compiling`.
            initializers: weights by name, to use in place of those in the file beside the graph.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no graph that OpenVINO can read, the device lacks the precision, an option is
                unknown or its value is, or the initializers are not those of the graph.
        """
        if not graph.is_file():
            raise FileNotFoundError(f"{graph} does not exist")
        self._name = graph.parent.name
        self._device = device
        self._model = _read(graph, device)
        #: what it computes in: "fp32", "bf16" or "fp16"
        self.precision = decided(device, tuning.precision, of_graph(self._model))
        self._compiling = Compiling.chosen(tuning.options)
        chosen = properties(device, tuning, self.precision)
        files = check_graph(graph)
        self._weights = next(iter(files)) if len(files) == 1 else None
        replace_weights(self._model, initializers, graph)
        self._inputs = tuple(_spec(port) for port in self._model.inputs)
        self._outputs = tuple(_spec(port) for port in self._model.outputs)
        angles = keep_angles(self._model) if device.is_cpu and self.precision != "fp32" else ()
        uses_cache = self._compiling.cache and not initializers and "EXPORT_IMPORT" in device.capabilities
        self._cache = (
            BlobCache.of(graph, self._weights, device, chosen, angles) if uses_cache and self._weights else None
        )
        self._most = self._compiling.most_compiled or kept(count_weights(self._model), self.precision)
        self._compiled: RecentlyUsed[CompiledNetwork] = RecentlyUsed(self._most)
        self._lock = threading.Lock()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs in graph order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs in graph order."""
        return self._outputs

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the network, one call at a time; see `Network`.

        Raises:
            MemoryError: the memory is used up.
            RuntimeError: OpenVINO cannot compile it for these shapes, or run it.
        """
        wanted = checked_outputs(self._name, self._outputs, outputs)
        arrays = checked_inputs(self._name, self._inputs, inputs)
        shapes = {name: array.shape for name, array in arrays.items()}
        with self._lock:
            if self._model is None:
                raise RuntimeError(f"{self._name} is closed")
            try:
                key = tuple(shapes.values()) if self._compiling.static_shapes else None
                compiled = self._compiled.get(key, lambda: CompiledNetwork(self._compile(shapes)))
                return compiled.run(arrays, wanted)
            except Exception as error:  # OpenVINO's are RuntimeErrors, and what its bindings raise besides
                text = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
                if is_out_of_memory(error):
                    raise MemoryError(
                        f"{self._name}: the memory is used up, on {text}: {reason(error)}; "
                        "a smaller size or batch needs less, and so do fewer open pipelines"
                    ) from error
                raise RuntimeError(f"{self._name} failed on {text}: {reason(error)}") from error

    def close(self) -> None:
        """Drops the graph and what was compiled of it, and with these their memory."""
        with self._lock:
            self._compiled.close()
            self._model = None

    def _compile(self, shapes: _Shapes) -> Any:
        model = self._model
        if self._compiling.static_shapes:
            model = model.clone()  # which shares its weights
            model.reshape(shapes)
        else:
            shapes = {}
        with given_back(self._weights):
            if self._cache is not None:
                return self._cache.compiled(model, shapes)
            return self._device.core.compile_model(model, self._device.name)


def _read(graph: Path, device: Device) -> Any:
    try:
        return device.core.read_model(graph)
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(f"the memory is used up, reading {graph}") from error
        raise ValueError(f"{graph} cannot be opened by OpenVINO: {reason(error)}") from error


def _spec(port: Any) -> TensorSpec:
    shape = tuple(d.get_length() if d.is_static else "?" for d in port.partial_shape)
    return TensorSpec(port.any_name, np.dtype(port.element_type.to_dtype()), shape)
