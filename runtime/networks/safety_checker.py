"""The safety checker: which pictures are not safe for work."""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from ..backends import Array, Network
from ..config import FrozenConfig
from ..model_folder import ModelFolder
from .engine import Engine, read_config

#: the output that says which pictures are not safe for work
DECISIONS = "has_nsfw_concepts"
#: what a special care concept that is found adds to the other scores; scores are rounded to thousandths first
_ADJUSTMENT, _ROUNDING = np.float32(0.01), 1000


def decide(special_scores: Array, concept_scores: Array) -> Array:
    """Which pictures are not safe for work, (batch,) of bool, as the network concludes it from its scores.

    Args:
        special_scores: (batch, 3), float32.
        concept_scores: (batch, 17), float32.
    """
    adjusted = concept_scores + _ADJUSTMENT * _any_found(special_scores)[:, None]
    return _any_found(adjusted)


def _any_found(scores: Array) -> Array:
    return np.asarray((np.round(scores * _ROUNDING) > 0).any(axis=1))


class StableDiffusionSafetyChecker:
    """Finds pictures that are not safe for work. The network is opened when it is first used."""

    def __init__(self, config: FrozenConfig, open_network: Callable[[], Network]) -> None:
        self.config = config
        self._open_network = open_network

    @cached_property
    def network(self) -> Network:
        """The checker's network."""
        return self._open_network()

    def __call__(self, images: Array, clip_input: Array) -> tuple[Array, list[bool]]:
        """The images with those black that are not safe for work, and which they are.

        Args:
            images: (batch, height, width, 3); left as they are.
            clip_input: the same, (batch, 3, height, width), as `CLIPImageProcessor` makes it.
        """
        found = self.network({"clip_input": clip_input}, [DECISIONS])[DECISIONS]
        return np.where(found[:, None, None, None], np.zeros_like(images), images), found.tolist()

    def close(self) -> None:
        """Gives the engine's memory back."""
        if "network" in self.__dict__:
            self.network.close()


def open_safety_checker(
    folder: ModelFolder, engine: Engine, component: str = "safety_checker"
) -> StableDiffusionSafetyChecker:
    """A model folder's safety checker; it is opened when it is used."""
    config = read_config(folder, component, "StableDiffusionSafetyChecker")
    return StableDiffusionSafetyChecker(config, lambda: engine.open(folder, component))
