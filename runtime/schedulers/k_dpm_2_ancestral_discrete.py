"""Ancestral sampling with DPM-Solver-2: `sample_dpm_2_ancestral` of k-diffusion (Crowson 2022)."""

from typing import Any

import numpy as np

from ..random import randn
from .ancestral import ancestral_levels
from .base import Array, Generators, check_step, require_generator
from .discrete_levels import Sigmas
from .k_dpm_2_discrete import DPMSolver2Scheduler
from .precision import widened


class KDPM2AncestralDiscreteScheduler(DPMSolver2Scheduler):
    """DPM-Solver-2 to below the next noise level, and noise up to it. Checked against diffusers step by step.

    As `KDPM2DiscreteScheduler`, it is refused to start at the second call of a step.
    """

    _noise_levels: Sigmas  # the deviation of the noise that each step adds, (steps,)

    def _targets(self, levels: Sigmas) -> Sigmas:
        down, self._noise_levels = ancestral_levels(levels[:-1], levels[1:])
        return np.asarray(down)

    def step(
        self,
        model_output: Array,
        timestep: float,
        sample: Array,
        generator: Generators | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample for the next call of the model: at the middle of the step, or at the next noise level.

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: the schedule's, in order: the first call of a step is remembered.
            sample: (batch, ...), not scaled.
            generator: where the noise comes from, which a step's second call adds.
            return_dict: a `SchedulerOutput` when true, else the tuple of its fields.
        """
        check_step(self, model_output, sample)
        index = self._place(timestep)
        moved, clean = self._advance(model_output, timestep, sample)
        if index % 2:
            noise = widened(randn(model_output.shape, require_generator(generator), model_output.dtype))
            noise *= self._noise_levels[index // 2]
            moved += noise
        return self._output(moved, clean, sample, return_dict)
