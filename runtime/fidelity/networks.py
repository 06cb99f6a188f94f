"""Networks that a run calls without knowing what answers: an engine, the reference, or one of them and a recorder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..backends import Array, Network, TensorSpec
from ..backends.protocol import checked_inputs
from ..model_folder import ModelFolder
from ..networks import Engine

#: (network, inputs of its dtypes) -> all its outputs
CallNetwork = Callable[[str, Mapping[str, Array]], dict[str, Array]]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What goes into a network and comes out of it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class AnsweredNetwork:
    """A network behind the protocol of a backend, whose calls go elsewhere."""

    name: str
    signature: Signature
    call: CallNetwork

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs in graph order."""
        return self.signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs in graph order."""
        return self.signature.outputs

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the network; see `Network`."""
        found = self.call(self.name, checked_inputs(self.name, self.inputs, inputs))
        return found if outputs is None else {name: found[name] for name in outputs}

    def close(self) -> None:
        """Nothing to give back: who answers has opened it."""


@dataclass(frozen=True)
class AnsweringEngine(Engine):
    """What a pipeline opens its networks with, for a run in which something else answers for them."""

    signatures: Mapping[str, Signature] = field(kw_only=True)
    call: CallNetwork = field(kw_only=True)

    def open(self, folder: ModelFolder, network: str, *, variant: str | None = None) -> Network:
        """The network, which opens nothing.

        Raises:
            FileNotFoundError: there is none of this name.
        """
        if network not in self.signatures or variant is not None:
            raise FileNotFoundError(f"{folder.path} lacks the network {network}")
        return AnsweredNetwork(network, self.signatures[network], self.call)


class OneAtATime(Generic[T]):
    """Opens things by their names when they are asked for; the next takes the place of the one before."""

    def __init__(self, open_by_name: Callable[[str], T], close: Callable[[T], None] = lambda _: None) -> None:
        self._open, self._close = open_by_name, close
        self._held: tuple[str, T] | None = None

    def __call__(self, name: str) -> T:
        """The thing of this name."""
        if self._held is None or self._held[0] != name:
            self.close()
            self._held = name, self._open(name)
        return self._held[1]

    def close(self) -> None:
        """Lets go of what is open."""
        if self._held is not None:
            self._close(self._held[1])
            self._held = None
