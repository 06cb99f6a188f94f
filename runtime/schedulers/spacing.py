"""Which timesteps to visit (Lin et al., arXiv:2305.08891, table 2)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

SPACINGS = ("leading", "linspace", "trailing")


def spaced_timesteps(spacing: str, train_steps: int, steps: int, offset: int) -> NDArray[np.float64]:
    """Timesteps from noisy to clean, not rounded for "linspace": (steps,).

    For some numbers of steps (61 of 1000, "trailing") diffusers visits a last timestep of -1, by a rounding error: left
    out here.

    Args:
        spacing: one of `SPACINGS`.
        train_steps: how many timesteps the model was trained with.
        steps: how many to visit.
        offset: added to "leading" timesteps.
    """
    if spacing == "linspace":
        return np.linspace(0, train_steps - 1, steps)[::-1].copy()
    if spacing == "leading":
        return (np.arange(steps) * (train_steps // steps))[::-1].astype(np.float64) + offset
    return np.round(np.arange(train_steps, 0, -train_steps / steps)[:steps]) - 1


def check_steps(steps: Any, train_steps: int) -> int:
    """The number of steps, if it is one.

    Raises:
        TypeError: it is no integer.
        ValueError: it is below 1, or above the number of timesteps that the model was trained with.
    """
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer):
        raise TypeError(f"num_inference_steps must be an integer, got {type(steps).__name__}")
    if not 1 <= steps <= train_steps:
        raise ValueError(f"num_inference_steps must lie between 1 and {train_steps}, got {steps}")
    return int(steps)
