"""What SDXL's UNet is told of a picture besides the prompt: section 2.2 of Podell et al. 2023 (arXiv:2307.01952)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ..backends import Array
from .call import own_fields

Size = tuple[int, int]  # height and width, or top and left, in pixels

#: how many numbers are an original size, a crop and a target size
TIME_IDS = 6
#: and an original size, a crop and an aesthetic score
REFINER_TIME_IDS = 5


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a call; None stands for the picture's own."""

    original_size: Size | None
    crops_coords_top_left: Size
    target_size: Size | None
    negative_original_size: Size | None
    negative_crops_coords_top_left: Size
    negative_target_size: Size | None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Those of a pipeline's arguments, by name, that are fields here."""
        return cls(**own_fields(cls, arguments))

    def time_ids(self, picture: Size, count: int, batch: int, branches: int) -> Array:
        """What the UNet takes: (branches * batch, count), float32, with what to move away from first.

        Args:
            picture: height and width of the pictures that are made.
            count: of numbers that the UNet is told of each picture: 6, or 5 of a refiner.
            batch: how many pictures.
            branches: 2 with guidance, 1 without.

        Raises:
            ValueError: a size that is not two numbers.
        """
        original = self.original_size or picture
        target = self.target_size or picture
        crop, away_crop = self.crops_coords_top_left, self.negative_crops_coords_top_left
        if count == TIME_IDS and None in (self.negative_original_size, self.negative_target_size):
            away_crop = crop  # of a whole that is not told apart, as in diffusers
        told = _numbers(original, crop, target, self.aesthetic_score, count)
        away = _numbers(
            self.negative_original_size or original,
            away_crop,
            self.negative_target_size or target,
            self.negative_aesthetic_score,
            count,
        )
        rows = [[told] * batch] if branches == 1 else [[away] * batch, [told] * batch]
        return np.array(rows, dtype=np.float32).reshape(-1, count)


def _numbers(original: Size, crop: Size, target: Size, score: float, count: int) -> list[float]:
    for name, size in (("an original size", original), ("the corner of a crop", crop), ("a target size", target)):
        if len(size) != 2:
            raise ValueError(f"{name} is two numbers, got {size!r}")
    return [*original, *crop, *target] if count == TIME_IDS else [*original, *crop, score]
