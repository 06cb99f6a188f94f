"""Noise levels of the multistep solvers in log-SNR (DPM-Solver, DEIS, UniPC, SA-Solver), which diffusers spaces alike.

They visit integer timesteps, leave out the cleanest end of one more than they are asked for, and keep their samples at
variance 1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sigmas import respaced_sigmas, timestep_of_sigma

Sigmas = NDArray[np.float64]
Timesteps = NDArray[np.int64]


def solver_timesteps(spacing: str, train_steps: int, steps: int, offset: int, last: int | None = None) -> Timesteps:
    """Timesteps from noisy to clean, (steps,), without the clean end.

    Args:
        spacing: "linspace", "leading" or "trailing" (Lin et al., arXiv:2305.08891, table 2).
        train_steps: how many timesteps the model was trained with.
        steps: how many to visit.
        offset: added to "leading" timesteps.
        last: one past the noisiest timestep, where the noise schedule is cut off; `train_steps` when None.
    """
    end = train_steps if last is None else last
    if spacing == "linspace":
        return np.linspace(0, end - 1, steps + 1).round()[:0:-1].astype(np.int64)
    if spacing == "leading":
        return (np.arange(steps + 1) * (end // (steps + 1)))[:0:-1].astype(np.int64) + offset
    return np.arange(end, 0, -train_steps / steps)[:steps].round().astype(np.int64) - 1


def flow_levels(levels: Sigmas) -> Sigmas:
    """The flow's noise levels, in (0, 1), with as much noise beside a clean sample as others have."""
    return np.asarray(levels / (levels + 1))


def solver_levels(
    config: Mapping[str, Any], training_sigmas: NDArray[np.float32], timesteps: Timesteps, *, rounded: bool = True
) -> tuple[Sigmas, Timesteps]:
    """The noise levels of a configuration, (steps,) from high to low, and the timesteps that they belong to.

    Args:
        config: of the scheduler: `use_karras_sigmas` and its like, `use_lu_lambdas`, `use_flow_sigmas`, `flow_shift`.
        training_sigmas: of the training timesteps, from clean to noisy.
        timesteps: as spaced evenly; where the configuration spaces the levels, only their number counts.
        rounded: whether timesteps of Karras' levels and of log-SNR's are rounded; others are cut off, as in diffusers.
    """
    steps, train_steps = len(timesteps), len(training_sigmas)
    lowest, highest = float(training_sigmas[0]), float(training_sigmas[-1])
    levels = respaced_sigmas(config, lowest, highest, steps)
    if levels is None and config.get("use_lu_lambdas"):
        logs = np.log(training_sigmas).astype(np.float64)  # of float32 numbers, as diffusers takes them
        levels = np.exp(np.linspace(logs[-1], logs[0], steps))
    if levels is not None and config.get("use_flow_sigmas"):
        levels = flow_levels(levels)
        return levels, (levels * train_steps).astype(np.int64)
    if levels is not None:
        visited = timestep_of_sigma(levels, np.log(training_sigmas))
        even = config.get("use_karras_sigmas") or config.get("use_lu_lambdas")
        return levels, (visited.round() if rounded and even else visited).astype(np.int64)
    if config.get("use_flow_sigmas"):
        shift = config["flow_shift"]
        noise = 1 - np.linspace(1, 1 / train_steps, steps + 1)
        levels = (shift * noise / (1 + (shift - 1) * noise))[:0:-1]
        return levels, (levels * train_steps).astype(np.int64)
    return np.interp(timesteps, np.arange(train_steps), training_sigmas), timesteps
