"""Networks that are open only while they work: of those that share an engine, one at a time."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..backends import Array, Network, TensorSpec
from ..backends.recently_used import RecentlyUsed
from ..manifest import ComponentRecord, TensorRecord

Specs = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


class OnDemandNetwork:
    """A network that is opened when it is called, and closed when another one of the same room is called.

    Its inputs and outputs are known all the time.
    """

    def __init__(
        self, name: str, open_network: Callable[[], Network], room: RecentlyUsed[Network], specs: Specs | None
    ) -> None:
        """Describes a network.

        Args:
            name: of the network, for errors.
            open_network: opens it.
            room: where it is while it is open: for one network alone.
            specs: its inputs and outputs; when None, it is opened to be asked for them, and closed again.
        """
        self._name = name
        self._open_network = open_network
        self._room = room
        self._closed = False
        if specs is None:
            network = self._opened()
            specs = network.inputs, network.outputs
            self.release()
        self.inputs, self.outputs = specs

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the network, which is opened first if it is not open; see `Network`."""
        if self._closed:
            raise RuntimeError(f"{self._name} is closed")
        return self._opened()(inputs, outputs)

    def release(self) -> None:
        """Gives the engine's memory back until the next call."""
        self._room.drop(self)

    def close(self) -> None:
        """Gives the engine's memory back; a call after that is a RuntimeError."""
        self._closed = True
        self.release()

    def _opened(self) -> Network:
        return self._room.get(self, self._open_network)


def recorded_specs(record: ComponentRecord) -> Specs:
    """The inputs and outputs of a network as the manifest has them."""
    return tuple(map(_spec, record.inputs)), tuple(map(_spec, record.outputs))


def _spec(record: TensorRecord) -> TensorSpec:
    return TensorSpec(record.name, np.dtype(record.dtype), tuple(record.shape))
