"""What a user may choose of OpenVINO: its own properties, by their names, and how networks are compiled here."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from ..protocol import Tuning
from .devices import Device
from .errors import reason
from .precision import HINTS

#: set by what is named here, and by no option
_SET_BY = {"INFERENCE_PRECISION_HINT": "precision"}


@dataclass(frozen=True, kw_only=True)
class Compiling:
    """How networks are compiled: options beside OpenVINO's own, in lower case."""

    static_shapes: bool = True  # one compiled network for each set of input shapes, else one for all shapes, slower
    most_compiled: int = 0  # sets of shapes that are kept; by the size of the weights when 0
    cache: bool = True  # whether compiled networks are kept on the disk

    @classmethod
    def chosen(cls, options: Mapping[str, Any]) -> Self:
        """From options, of which those of OpenVINO are left alone.

        Raises:
            ValueError: a value is not of its option's type.
        """
        own = {name: options[name] for name in cls.names() if name in options}
        for name, value in own.items():
            expected = "an integer from 0" if name == "most_compiled" else "true or false"
            fits = type(value) is int and value >= 0 if name == "most_compiled" else isinstance(value, bool)
            if not fits:
                raise ValueError(f"option {name} of the openvino backend must be {expected}, got {value!r}")
        return cls(**own)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The options' names."""
        return tuple(field.name for field in fields(cls))


def properties(device: Device, tuning: Tuning, precision: str) -> dict[str, Any]:
    """The properties that a network is compiled with.

    Args:
        device: that computes it; its properties are set to these, which tells whether it takes them.
        tuning: what the user chooses.
        precision: that was decided.

    Raises:
        ValueError: an unknown property, or a value that OpenVINO does not take.
    """
    own = {name: value for name, value in tuning.options.items() if name not in Compiling.names()}
    chosen = {"PERFORMANCE_HINT": "LATENCY", **own}
    for name, argument in _SET_BY.items():
        if name in chosen:
            raise ValueError(f"option {name} of the openvino backend is set by {argument}, such as {argument}='bf16'")
    if tuning.threads is not None:
        if "INFERENCE_NUM_THREADS" in own:
            raise ValueError("option INFERENCE_NUM_THREADS of the openvino backend is set by threads: give one of them")
        chosen["INFERENCE_NUM_THREADS"] = tuning.threads
    chosen["INFERENCE_PRECISION_HINT"] = HINTS[precision]
    known = _writable(device)
    for name, value in chosen.items():
        if name not in known:
            listed = ", ".join((*Compiling.names(), *sorted(known - _SET_BY.keys())))
            raise ValueError(f"the openvino backend has no option {name!r} on {device.name}; known: {listed}")
        try:
            device.core.set_property(device.name, {name: value})
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"option {name} of the openvino backend cannot be {value!r}: {reason(error)}") from error
    return chosen


def _writable(device: Device) -> set[str]:
    """The properties that OpenVINO says can be set."""
    return {name for name, access in device.property("SUPPORTED_PROPERTIES").items() if access == "RW"}
