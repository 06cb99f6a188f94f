"""The depth estimator: how near everything in a picture is."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ..backends import Array, Network
from ..config import FrozenConfig
from ..model_folder import ModelFolder
from .engine import Engine, float32, read_config


@dataclass(frozen=True)
class DepthEstimatorOutput:
    """How near everything is: (batch, height, width), float32, larger is nearer, of no known scale."""

    predicted_depth: Array


class DPTForDepthEstimation:
    """Depth from a picture. The network is opened when it is first used: who brings a depth map needs none."""

    def __init__(self, config: FrozenConfig, open_network: Callable[[], Network]) -> None:
        self.config = config
        self._open_network = open_network

    @cached_property
    def network(self) -> Network:
        """The estimator's network."""
        return self._open_network()

    def __call__(self, pixel_values: Array) -> DepthEstimatorOutput:
        """The depth of (batch, 3, height, width), as `DPTImageProcessor` makes it."""
        return DepthEstimatorOutput(float32(self.network({"pixel_values": pixel_values})["predicted_depth"]))

    def close(self) -> None:
        """Gives the engine's memory back."""
        if "network" in self.__dict__:
            self.network.close()


def open_depth_estimator(
    folder: ModelFolder, engine: Engine, component: str = "depth_estimator"
) -> DPTForDepthEstimation:
    """A model folder's depth estimator; it is opened when it is used."""
    config = read_config(folder, component, "DPTForDepthEstimation")
    return DPTForDepthEstimation(config, lambda: engine.open(folder, component))
