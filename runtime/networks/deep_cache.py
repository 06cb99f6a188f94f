"""DeepCache (Ma et al. 2023, arXiv:2312.00858): most calls of a UNet compute its outermost blocks alone.

What comes up from the blocks below changes little from one step to the next. So the whole is computed at every
`cache_interval`-th call, and kept of it is the feature that enters the outermost blocks; the calls in between take that
(section 3.3, 1:N inference). Two graphs of the folder do it: see `export/deep_cache.py`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ..backends import Array, Network, TensorSpec
from ..backends.protocol import checked_outputs
from ..manifest import CACHED_FEATURE, DEEP, SHALLOW
from ..model_folder import ModelFolder
from .engine import Engine

#: inputs that differ from call to call; the others say what a picture is to be of
_OF_THE_CALL = ("sample", "timestep")


class DeepCacheNetwork:
    """A UNet's two graphs behind the protocol of one network.

    Called by itself it computes everything, as the UNet's own graph does; `for_picture` gives one that caches.
    """

    def __init__(self, deep: Network, shallow: Network, cache_interval: int) -> None:
        self.deep, self.shallow, self.cache_interval = deep, shallow, cache_interval

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The UNet's inputs in graph order."""
        return self.deep.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The UNet's outputs; the feature is none of them."""
        return tuple(spec for spec in self.deep.outputs if spec.name != CACHED_FEATURE)

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the whole network; see `Network`."""
        return self.deep(inputs, checked_outputs("unet", self.outputs, outputs))

    def for_picture(self) -> "CachingNetwork":
        """The network for the calls of one picture, in their order; the first computes everything."""
        return CachingNetwork(self)

    def close(self) -> None:
        """Gives the memory of both back."""
        self.deep.close()
        self.shallow.close()


class CachingNetwork:
    """The calls of one picture, or of a batch of them.

    The feature of a call is taken for later ones of the same conditions (embeddings, sizes) and the same size, and of
    the same rows of the batch or of one guidance branch of them: a branch's rows are those that were given its
    conditions. Where a callback changes one of these, the whole network is computed anew.
    """

    def __init__(self, networks: DeepCacheNetwork) -> None:
        self._networks = networks
        self._feature: Array | None = None  # (batch, channels, height, width)
        self._sample_shape: tuple[int, ...] = ()  # without the batch
        self._conditions: dict[str, Array] = {}  # that the feature is of
        self._calls = 0  # that the feature has served, its own included

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The UNet's inputs in graph order."""
        return self._networks.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The UNet's outputs."""
        return self._networks.outputs

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Runs the whole network, or its outermost blocks; see `Network`."""
        wanted = checked_outputs("unet", self.outputs, outputs)
        feature = self._feature_for(inputs) if self._calls < self._networks.cache_interval else None
        if feature is None:
            return self._computed(inputs, wanted)
        self._calls += 1
        taken = {spec.name for spec in self._networks.shallow.inputs} - {CACHED_FEATURE}
        given = {name: value for name, value in inputs.items() if name in taken}
        return self._networks.shallow({**given, CACHED_FEATURE: feature}, wanted)

    def close(self) -> None:
        """Drops the feature; the networks are the pipeline's and stay open."""
        self._feature = None

    def _computed(self, inputs: Mapping[str, Array], outputs: list[str]) -> dict[str, Array]:
        """Runs the whole network, and keeps the feature and copies of what it is of."""
        found = self._networks.deep(inputs, [*outputs, CACHED_FEATURE])
        self._feature = found.pop(CACHED_FEATURE)
        self._sample_shape = np.shape(inputs["sample"])[1:]
        self._conditions = {name: np.array(value) for name, value in inputs.items() if name not in _OF_THE_CALL}
        self._calls = 1
        return found

    def _feature_for(self, inputs: Mapping[str, Array]) -> Array | None:
        """The rows of the feature that these inputs' are; None where it has none for them."""
        rows, *shape = np.shape(inputs["sample"])
        if self._feature is None or tuple(shape) != self._sample_shape or len(self._feature) % rows:
            return None
        for start in range(0, len(self._feature), rows):
            part = slice(start, start + rows)
            if all(np.array_equal(kept[part], inputs[name]) for name, kept in self._conditions.items()):
                return self._feature[part]
        return None


def open_deep_cache(
    folder: ModelFolder, engine: Engine, cache_interval: int, component: str = "unet"
) -> DeepCacheNetwork:
    """Opens the two graphs of a folder's UNet.

    Raises:
        FileNotFoundError: the folder lacks them.
        ValueError: the engine runs none, or cannot open them.
    """
    deep = engine.open(folder, component, variant=DEEP)
    try:
        return DeepCacheNetwork(deep, engine.open(folder, component, variant=SHALLOW), cache_interval)
    except BaseException:
        deep.close()
        raise
