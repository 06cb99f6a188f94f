"""The two graphs of DeepCache, as networks that a proof's calls of the UNet can be put to.

Both must give what the UNet gives: the deep one by itself, the shallow one with the feature of the same call.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..backends import Array, Network
from ..manifest import CACHED_FEATURE


@dataclass(frozen=True)
class FeatureKeeper:
    """The deep graph; what it gives beside the UNet's output is kept, call by call."""

    network: Network
    features: list[Array] = field(default_factory=list)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The UNet's outputs."""
        names = [spec.name for spec in self.network.outputs if spec.name != CACHED_FEATURE]
        found = self.network(inputs, [*names, CACHED_FEATURE])
        self.features.append(found.pop(CACHED_FEATURE))
        return found

    def close(self) -> None:
        """Gives the engine's memory back."""
        self.network.close()


@dataclass(frozen=True)
class FeatureTaker:
    """The shallow graph, which is given the features of the same calls in the same order."""

    network: Network
    features: Iterator[Array]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The UNet's outputs."""
        taken = {spec.name for spec in self.network.inputs} - {CACHED_FEATURE}
        given = {name: value for name, value in inputs.items() if name in taken}
        return self.network({**given, CACHED_FEATURE: next(self.features)})

    def close(self) -> None:
        """Gives the engine's memory back."""
        self.network.close()
