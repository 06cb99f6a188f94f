"""Configurations that cannot be changed: what a network or a scheduler was made with."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn


class FrozenConfig(Mapping[str, Any]):
    """A mapping whose entries are attributes too, as diffusers' configurations are: `config.in_channels`."""

    __slots__ = ("_entries",)

    _entries: dict[str, Any]

    def __init__(self, entries: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_entries", dict(entries))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies are made by the constructor: what is frozen cannot be filled in later."""
        return type(self), (self._entries,)

    def __getitem__(self, name: str) -> Any:
        return self._entries[name]

    def __getattr__(self, name: str) -> Any:
        try:
            return self._entries[name]
        except KeyError:
            raise AttributeError(f"the configuration has no {name}") from None

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a configuration is frozen: {name} cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a configuration is frozen: {name} cannot be removed")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self._entries, indent=2, sort_keys=True, default=str)}"
