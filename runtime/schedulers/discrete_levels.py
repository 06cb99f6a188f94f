"""Noise levels of k-diffusion's samplers (Euler, Heun, LMS, DPM-Solver-2), as diffusers spaces them.

They visit timesteps between those of the training, and end in a level of 0. Their samples are clean + sigma * noise.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sigmas import SPACERS, interpolated_sigmas, respaced_sigmas, timestep_of_sigma
from .spacing import spaced_timesteps

Sigmas = NDArray[np.float32]
Timesteps = NDArray[np.float32]


def discrete_levels(
    config: Mapping[str, Any], training_sigmas: Sigmas, steps: int, train_steps: int | None = None
) -> tuple[Sigmas, Timesteps]:
    """The noise levels of a configuration, (steps + 1,) with the last 0, and the timesteps of the others, (steps,).

    Args:
        config: of the scheduler: `timestep_spacing`, `steps_offset`, and `use_karras_sigmas` and its like.
        training_sigmas: of the training timesteps, from clean to noisy.
        steps: how many.
        train_steps: how many timesteps to spread them over; the training's when None.
    """
    visited = spaced_timesteps(
        config["timestep_spacing"], train_steps or config["num_train_timesteps"], steps, config["steps_offset"]
    ).astype(np.float32)
    levels = interpolated_sigmas(visited, training_sigmas)
    levels, visited = respaced_levels(config, levels, visited, training_sigmas)
    return _ending_in_zero(levels), visited


def own_levels(
    config: Mapping[str, Any], training_sigmas: Sigmas, timesteps: Sequence[float]
) -> tuple[Sigmas, Timesteps]:
    """The noise levels of the caller's own timesteps, (steps + 1,) with the last 0, and the timesteps, (steps,).

    Raises:
        ValueError: the timesteps are not one falling row, or the configuration spaces the levels itself.
    """
    if any(config.get(option) for option in SPACERS):
        raise ValueError("this scheduler's configuration spaces the noise levels: it takes no timesteps")
    visited = np.asarray(timesteps, dtype=np.float32)
    if visited.ndim != 1 or not visited.size or not np.all(np.diff(visited) <= 0):
        raise ValueError("timesteps must be one row that falls")
    return _ending_in_zero(interpolated_sigmas(visited, training_sigmas)), visited


def respaced_levels(
    config: Mapping[str, Any], levels: NDArray[Any], timesteps: Timesteps, training_sigmas: Sigmas
) -> tuple[NDArray[Any], Timesteps]:
    """Levels and timesteps as a configuration's `use_..._sigmas` spaces them; the given ones if it does not."""
    respaced = respaced_sigmas(config, float(levels[-1]), float(levels[0]), len(timesteps))
    if respaced is None:
        return levels, timesteps
    return respaced, timestep_of_sigma(respaced, np.log(training_sigmas)).astype(np.float32)


def _ending_in_zero(levels: NDArray[Any]) -> Sigmas:
    return np.append(levels, 0.0).astype(np.float32)
