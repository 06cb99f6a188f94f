"""From pictures to pictures that are safe for work: those that are not come out black."""

import logging
from collections.abc import Callable
from typing import Any

from .backends import Array
from .image import to_pil

logger = logging.getLogger(__name__)

#: (images, clip_input) -> the images, some of them black, and for each whether it is; called with names
SafetyChecker = Callable[..., tuple[Array, list[bool]]]


def run_safety_checker(
    images: Array, safety_checker: SafetyChecker, feature_extractor: Callable[[Any], dict[str, Array]]
) -> tuple[Array, list[bool]]:
    """The images with those black that are not safe for work, and for each whether it is one.

    Args:
        images: (batch, height, width, 3), float32 in [0, 1]; left as they are.
        safety_checker: a `StableDiffusionSafetyChecker`, or a function with its arguments.
        feature_extractor: makes its `clip_input` from PIL images: a `CLIPImageProcessor`.
    """
    clip_input = feature_extractor(to_pil(images))["pixel_values"]
    images, found = safety_checker(images=images, clip_input=clip_input)
    if any(found):
        logger.warning(
            "%d of %d pictures may be not safe for work and came out black: try another prompt or another seed",
            sum(found),
            len(found),
        )
    return images, found
