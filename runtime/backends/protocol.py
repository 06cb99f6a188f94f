"""What the runtime asks of an engine: a network is a callable from named arrays to named arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: of the arithmetic: what `--dtype` of an export calls them
PRECISIONS = ("fp32", "bf16", "fp16")
#: the fastest of them that the device computes in natively
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How an engine computes. What it cannot do, it refuses by name; nothing is left out silently."""

    precision: str | None = None  # one of `PRECISIONS`, or `AUTO`; that of the graph when None
    threads: int | None = None  # of the CPU; the engine's own choice when None
    options: Mapping[str, Any] = field(default_factory=dict)  # the engine's own, by its own names

    def __post_init__(self) -> None:
        """Refuses what no engine has.

        Raises:
            ValueError: an unknown precision, or fewer threads than one.
        """
        if self.precision is not None and self.precision not in (*PRECISIONS, AUTO):
            known = ", ".join((*PRECISIONS, AUTO))
            raise ValueError(f"unknown precision {self.precision!r}; known: {known}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a network: its name, dtype and shape; a free dimension is its name, or "?" without one."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    def accepts(self, shape: Sequence[int]) -> bool:
        """Whether an array of this shape fits: same rank, and every fixed dimension equal."""
        return len(shape) == len(self.shape) and all(
            isinstance(expected, str) or expected == given for expected, given in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join(str(dimension) for dimension in self.shape)})"


class Network(Protocol):
    """A network that an engine has opened. Complete when constructed; `close` gives its memory back."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs in graph order."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs in graph order."""
        ...

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the network.

        Args:
            inputs: an array for every input; cast here to the network's dtypes.
            outputs: the names wanted; all of them when None.

        Returns:
            The outputs by name, in their own dtypes, in memory that the caller owns.

        Raises:
            ValueError: a missing or unknown name, or a shape that the network cannot take.
        """
        ...

    def close(self) -> None:
        """Gives the engine's memory back; a call after that is a RuntimeError."""
        ...


def checked_outputs(network: str, specs: Sequence[TensorSpec], outputs: Sequence[str] | None) -> list[str]:
    """The outputs wanted: those that were asked for, or all.

    Raises:
        ValueError: the network has no output of a name.
    """
    known = [spec.name for spec in specs]
    wanted = known if outputs is None else list(outputs)
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"{network}: unknown output {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return wanted


def checked_inputs(network: str, specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs as the network takes them: every name present, shapes fitting, dtypes cast, memory contiguous.

    Raises:
        ValueError: names the network, the tensor, and what was expected and received.
    """
    expected = {spec.name: spec for spec in specs}
    if missing := sorted(expected.keys() - inputs.keys()):
        raise ValueError(f"{network}: missing input {', '.join(missing)}")
    if unknown := sorted(inputs.keys() - expected.keys()):
        raise ValueError(f"{network}: unknown input {', '.join(unknown)}; it takes {', '.join(expected)}")
    checked = {}
    for name, spec in expected.items():
        array = np.asarray(inputs[name])
        if not spec.accepts(array.shape):
            raise ValueError(f"{network}: input {name} must be {spec}, got {array.dtype} {array.shape}")
        checked[name] = np.ascontiguousarray(array, dtype=spec.dtype).reshape(array.shape)
    return checked
