"""A network in an ONNX Runtime session."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..protocol import Array, TensorSpec, checked_inputs, checked_outputs
from .binding import DeviceSession
from .optimized_graphs import is_kept, open_kept
from .session import Place, PlainSession, open_session, reason, shapes, tensor_specs
from .settings import SessionSettings


class OnnxRuntimeNetwork:
    """A network in an ONNX Runtime session."""

    def __init__(
        self,
        graph: Path,
        place: Place,
        *,
        settings: SessionSettings | None = None,
        initializers: Mapping[str, Array] | None = None,
    ) -> None:
        """Opens a graph.

        Args:
            graph: an ONNX file; its external data lies beside it.
            place: where it runs.
            settings: how its sessions are opened; as usual when None.
            initializers: weights by name, to use in place of those in the file beside the graph; ONNX Runtime takes
                none of another shape or dtype.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no graph that ONNX Runtime can open, the device is not there, or the initializers
                are not those of the graph.
        """
        if not graph.is_file():
            raise FileNotFoundError(f"{graph} does not exist")
        self._name = graph.parent.name
        # the session reads their memory as long as it lives
        self._initializers = {name: ort.OrtValue.ortvalue_from_numpy(v) for name, v in (initializers or {}).items()}

        own = settings or SessionSettings()

        def opened(where: Place) -> Any:
            if not self._initializers and is_kept(graph, where, own):
                return open_kept(graph, where, own)
            return open_session(graph, where, settings=own, initializers=self._initializers)

        self._session: PlainSession | DeviceSession | None = (
            PlainSession(opened(place)) if place.memory is None else DeviceSession(self._name, opened, place)
        )
        self._inputs = tensor_specs(self._session.session.get_inputs(), graph)
        self._outputs = tensor_specs(self._session.session.get_outputs(), graph)

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
        if self._session is None:
            raise RuntimeError(f"{self._name} is closed")
        wanted = checked_outputs(self._name, self._outputs, outputs)
        arrays = checked_inputs(self._name, self._inputs, inputs)
        try:
            results = self._session.run(wanted, arrays)
        except MemoryError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise RuntimeError(f"{self._name} failed on {shapes(arrays)}: {reason(error)}") from error
        return dict(zip(wanted, results, strict=True))

    def close(self) -> None:
        """Drops the session and with it the engine's memory."""
        if self._session is not None:
            self._session.close()
        self._session = None
        self._initializers = {}
