"""A few things that are kept by what they are for, and given back when others are used more."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """What gives back what it holds."""

    def close(self) -> None:
        """Gives it back."""
        ...


Value = TypeVar("Value", bound=Closable)


class RecentlyUsed(Generic[Value]):
    """At most `limit` values by key; the one that was not used for longest is closed for a new one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The key's value, made if there is none; room is made first, for the new may need the memory of the old."""
        if key not in self._values:
            while len(self._values) >= self._limit:
                self._values.popitem(last=False)[1].close()
            self._values[key] = make()
        self._values.move_to_end(key)
        return self._values[key]

    def drop(self, key: Hashable) -> None:
        """Closes the key's value, if there is one."""
        if (value := self._values.pop(key, None)) is not None:
            value.close()

    def close(self) -> None:
        """Closes all values."""
        while self._values:
            self._values.popitem()[1].close()

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Value]:
        """The values, the one that was not used for longest first."""
        return iter(self._values.values())
