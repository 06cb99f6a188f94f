"""DeepCache's rule over a UNet in torch, which computes everything and takes the cached feature all the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def deep_cached(unet: Any, *, cache_interval: int, branch: int) -> Iterator[None]:
    """While it lasts, the calls of a UNet take what comes from below a branch's skip from every N-th of them.

    Args:
        unet: of diffusers or of the reference.
        cache_interval: N.
        branch: of the skip, counted from the outside: (Ma et al. 2023, arXiv:2312.00858), section 3.2.
    """
    places = [(block, layer) for block, up in enumerate(unet.up_blocks) for layer in range(len(up.resnets))]
    block, layer = sorted(places, reverse=True)[branch]
    chain = [unet.mid_block.resnets[-1], *(resnet for up in unet.up_blocks for resnet in up.resnets)]
    channels = chain[places.index((block, layer))].conv2.out_channels  # of the resnet block before
    calls: int = 0
    feature: torch.Tensor | None = None

    def take(_resnet: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        nonlocal calls, feature
        joined, *others = arguments
        if calls % cache_interval == 0:
            feature = joined[:, :channels]
        calls += 1
        assert feature is not None
        return torch.cat([feature, joined[:, channels:]], dim=1), *others

    hook = unet.up_blocks[block].resnets[layer].register_forward_pre_hook(take)
    try:
        yield
    finally:
        hook.remove()
