"""A pipeline whose UNet computes only its outermost blocks in most steps; see `networks.deep_cache`."""

from collections.abc import Callable
from typing import Self

from ..backends import Network
from ..manifest import VARIANTS
from ..networks import UNet2DConditionModel
from ..networks.deep_cache import DeepCacheNetwork, open_deep_cache
from .base import DiffusionPipeline

_UNET = "unet"


class DeepCachePipeline(DiffusionPipeline, abstract=True):
    """A pipeline with a UNet that may cache between the calls of a picture."""

    unet: UNet2DConditionModel

    @property
    def cache_interval(self) -> int | None:
        """How many calls of the UNet share what one of them has computed; None where each computes everything."""
        network = getattr(self.unet, "network", None)  # which what stands in for the UNet need not have
        return network.cache_interval if isinstance(network, DeepCacheNetwork) else None

    def _unet_for_picture(self) -> UNet2DConditionModel:
        """What the loop of one picture calls."""
        return self.unet if self.cache_interval is None else self.unet.for_picture()

    def enable_deep_cache(self, cache_interval: int = 3, cache_branch_id: int | None = None) -> None:
        """Computes the whole UNet at every `cache_interval`-th call of a picture, else its outermost blocks alone.

        Two graphs take the place of the UNet's own, which is closed before. Pipelines that share this one's UNet cache
        too. Calls are counted, not steps: of a scheduler that calls the UNet twice a step, both count.

        Args:
            cache_interval: 1 computes everything in all calls.
            cache_branch_id: the skip that the folder's graphs are cut at, for whoever relies on one.

        Raises:
            FileNotFoundError: the folder lacks the graphs; the UNet stays as it is, as after the other errors.
            TypeError: something else stands in for the folder's UNet.
            ValueError: an interval below 1, another branch than the folder's, or a backend that runs no graphs.
        """
        if not isinstance(self.unet, UNet2DConditionModel):
            raise TypeError(f"DeepCache needs the folder's UNet, and a {type(self.unet).__name__} stands in for it")
        if type(cache_interval) is not int or cache_interval < 1:
            raise ValueError(f"cache_interval must be a whole number of calls, 1 or more, got {cache_interval!r}")
        if self.engine.compiled:
            raise ValueError(
                f"DeepCache needs two graphs of the UNet, and the {self.engine.backend} backend runs engines of whole "
                "networks alone: open the model with another backend"
            )
        for variant in VARIANTS:  # both are whole before anything is closed
            self.folder.graph(_UNET, variant=variant)
        assert self.folder.manifest is not None
        branch = self.folder.manifest.components[_UNET].cache_branch_id
        if cache_branch_id not in (None, branch):
            raise ValueError(
                f"the graphs of {self.folder.path} are cut at cache_branch_id {branch}, got {cache_branch_id}: "
                f"export with --deep-cache --cache-branch-id {cache_branch_id}"
            )
        network = self.unet.network
        if isinstance(network, DeepCacheNetwork):
            self.unet.network = DeepCacheNetwork(network.deep, network.shallow, cache_interval)
        else:
            self._replace_unet(lambda: open_deep_cache(self.folder, self.engine, cache_interval), self._plain_unet)

    def disable_deep_cache(self) -> None:
        """Computes the whole UNet in all calls again, by its own graph."""
        if (interval := self.cache_interval) is not None:
            self._replace_unet(self._plain_unet, lambda: open_deep_cache(self.folder, self.engine, interval))

    def to(self, device: str) -> Self:
        """Reopens the networks on a device, see `DiffusionPipeline.to`; what was cached before is cached there."""
        interval = self.cache_interval
        super().to(device)
        if interval is not None and self.cache_interval is None:
            self.enable_deep_cache(interval)
        return self

    def _plain_unet(self) -> Network:
        return self.engine.open(self.folder, _UNET)

    def _replace_unet(self, opened: Callable[[], Network], before: Callable[[], Network]) -> None:
        """Opens another network in place of the UNet's, which is closed first: memory need not hold two of them."""
        self.unet.network.close()
        try:
            self.unet.network = opened()
        except BaseException:
            self.unet.network = before()
            raise
