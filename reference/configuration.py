"""A network's configuration: a frozen dataclass, built from the `config.json` of a checkpoint."""

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, Self

#: what diffusers' `EMAModel` writes of its own into the configuration of the network that it averages
_AVERAGING = frozenset(
    {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}
)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What every configuration can do; a subclass has a field for each key that changes the network.

    Attributes:
        network: the class of network that this configures, as checkpoints name it.
        neutral: keys that are understood but not implemented, with the value under which they do nothing.
        without_effect: keys that no number of the network's output depends on.
        refuses_unknown_keys: whether a key that is none of these is an error.
    """

    network: ClassVar[str]
    neutral: ClassVar[Mapping[str, object]] = {}
    without_effect: ClassVar[frozenset[str]] = frozenset()
    refuses_unknown_keys: ClassVar[bool] = True

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that a `config.json` describes; absent keys take the oracle's defaults.

        Args:
            values: the contents of a `config.json`, or of `to_dict()`.

        Raises:
            ValueError: the file is another network's, a key has a value of the wrong kind, or a key asks for something
                that is not implemented.
        """
        cls._check_network(values)
        accepted: dict[str, Any] = {}
        kinds = typing.get_type_hints(cls)
        names = {field.name for field in fields(cls)}
        for key, value in values.items():
            if key in names:
                accepted[key] = _convert(f"{cls.network}: {key}", value, kinds[key])
            elif key in cls.neutral:
                _check_neutral(cls.network, key, value, cls.neutral[key])
            elif cls.refuses_unknown_keys and not key.startswith("_") and key not in cls.without_effect | _AVERAGING:
                _check_neutral(cls.network, key, value, None)
        required = {field.name for field in fields(cls) if field.default is MISSING}
        if missing := sorted(required - accepted.keys()):
            raise ValueError(f"{cls.network}: the configuration lacks {', '.join(missing)}")
        return cls(**accepted)

    def to_dict(self) -> dict[str, Any]:
        """The configuration with its defaults filled in, as JSON spells it: `from_dict` gives the same one again."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def _check_network(cls, values: Mapping[str, Any]) -> None:
        if (name := values.get("_class_name", cls.network)) != cls.network:
            raise ValueError(f"expected the configuration of {cls.network}, got that of {name}")

    def _per_level(self, key: str, levels: int) -> tuple[int, ...]:
        """The value of a key for each resolution level: one number stands for all of them."""
        value = getattr(self, key)
        if isinstance(value, int):
            return (value,) * levels
        if len(value) != levels:
            raise ValueError(f"{self.network}: {key} must have one entry per block, {levels}, got {list(value)}")
        return tuple(value)


def _check_neutral(network: str, key: str, value: object, neutral: object) -> None:
    # True == 1 and False == 0 in Python, not in a configuration
    if value != neutral or isinstance(value, bool) != isinstance(neutral, bool):
        raise ValueError(f"{network}: {key} = {value!r} is not implemented, only {key} = {neutral!r}")


def _convert(key: str, value: object, kind: Any) -> Any:
    """A JSON value as the kind of value that a field holds: a list becomes a tuple, an int may stand for a float."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for each in kinds:
        if typing.get_origin(each) is tuple:
            item = typing.get_args(each)[0]
            if isinstance(value, Sequence) and not isinstance(value, str) and all(_is(part, item) for part in value):
                return tuple(value)
        elif each is float and _is(value, int):
            return float(typing.cast("int", value))
        elif _is(value, each):
            return value
    expected = " or ".join(
        getattr(each, "__name__", str(each)) if isinstance(each, type) else str(each) for each in kinds
    )
    raise ValueError(f"{key} must be {expected}, got {value!r}")


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
