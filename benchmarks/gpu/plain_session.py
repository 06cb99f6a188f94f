"""Networks by a plain call of ONNX Runtime's session, from arrays to arrays: what its other ways are compared with."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from safelight.runtime.backends import Array, TensorSpec, backend_module
from safelight.runtime.backends.protocol import checked_inputs
from safelight.runtime.model_folder import ModelFolder, open_model_folder
from safelight.runtime.networks import Engine
from safelight.runtime.pipelines.base import class_known, open_components

from .contenders import Task

_DTYPES: Mapping[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class PlainNetwork:
    """A session without IO binding and CUDA graphs."""

    def __init__(self, graph: Path, device: str) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        kind, _, index = device.partition(":")
        provider: Any = "CPUExecutionProvider"
        if kind != "cpu":
            provider = ("CUDAExecutionProvider", {"device_id": int(index or 0)})
            with contextlib.suppress(Exception):  # wheels of the CUDA libraries, where they are installed
                ort.preload_dlls()
        self._session: Any = ort.InferenceSession(graph, options, providers=[provider])
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the network; see `Network`."""
        wanted = [spec.name for spec in self.outputs] if outputs is None else list(outputs)
        found = self._session.run(wanted, checked_inputs("network", self.inputs, inputs))
        return dict(zip(wanted, found, strict=True))

    def close(self) -> None:
        """Gives the memory back."""
        self._session = None


class _PlainEngine(Engine):
    def open(self, folder: ModelFolder, network: str, *, variant: str | None = None) -> PlainNetwork:
        target = backend_module(self.backend).target(self.device)
        return PlainNetwork(folder.graph(network, target, variant=variant), self.device)


def _spec(value: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return TensorSpec(value.name, np.dtype(_DTYPES[value.type]), shape)


def open_plain(task: Task) -> Any:
    """The pipeline of the task's model folder, its networks plain."""
    folder = open_model_folder(Path(task.case.model))
    kind: Any = class_known(folder)
    engine = _PlainEngine("onnxruntime", task.device)
    names = [name for name in kind.component_names if folder.class_of(name)]
    left_out = dict.fromkeys(kind.optional_components)
    return kind(folder, engine, left_out | open_components(folder, engine, names))
