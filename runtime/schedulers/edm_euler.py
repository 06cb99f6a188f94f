"""Euler's method in EDM's formulation (Karras et al. 2022, arXiv:2206.00364, algorithm 2 of first order)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import Array, Generators, SchedulerOutput, check_step
from .churn import churned, raised_sigma
from .edm import EDMScheduler
from .precision import widened
from .spacing import check_steps


class EDMEulerScheduler(EDMScheduler):
    """Euler steps between EDM's noise levels, with churn if asked for. Checked against diffusers step by step."""

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        sigma_schedule: str = "karras",
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        rho: float = 7.0,
        final_sigmas_type: str = "zero",
    ) -> None:
        """See diffusers' `EDMEulerScheduler` for the options; they have its names, defaults and meanings."""
        super().__init__(locals())
        self._visit_positions(np.arange(num_train_timesteps + 1) / num_train_timesteps)

    def _visit_positions(self, ramp: Array) -> None:
        levels = self._levels_at(ramp)
        self._visit(levels, 0.0 if self.config["final_sigmas_type"] == "zero" else levels[-1])

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: object = None, sigmas: Sequence[float] | None = None
    ) -> None:
        """Chooses the noise levels to visit.

        Args:
            num_inference_steps: how many.
            device: means nothing here.
            sigmas: instead, no noise levels but their positions, from 0 for `sigma_max` to 1 for `sigma_min`: as
                diffusers, and the Cosmos pipelines, have it. For the exponential schedule only their number counts.

        Raises:
            ValueError: neither is given, they differ in number, or a position is not between 0 and 1.
        """
        del device
        if sigmas is None:
            ramp = np.linspace(0, 1, check_steps(num_inference_steps, len(self)))
        else:
            ramp = np.asarray(sigmas, dtype=np.float64)
            if ramp.ndim != 1 or not ramp.size or not np.all((ramp >= 0) & (ramp <= 1)):
                raise ValueError("sigmas must be a row of positions, from 0 for sigma_max to 1 for sigma_min")
            if num_inference_steps not in (None, len(ramp)):
                raise ValueError(f"there are {len(ramp)} sigmas and {num_inference_steps} num_inference_steps")
        self._visit_positions(ramp)
        self.num_inference_steps = len(ramp)
        self._restart()

    def step(
        self,
        model_output: Array,
        timestep: float,
        sample: Array,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generators | None = None,
        return_dict: bool = True,
        pred_original_sample: Array | None = None,
    ) -> Any:
        """The sample at the next noise level.

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: the schedule's, in order.
            sample: (batch, ...), not scaled.
            s_churn: how much noise to add before a step, spread over all of them.
            s_tmin: no churn below this sigma.
            s_tmax: no churn above this sigma.
            s_noise: the standard deviation of that noise.
            generator: where it comes from.
            return_dict: a `SchedulerOutput` when true, else the tuple of its fields.
            pred_original_sample: the clean sample, where it is known; the model's output is not used then.
        """
        check_step(self, model_output, sample)
        index = self._place(timestep)
        sigma, dtype = self.sigmas[index], sample.dtype
        sigma_hat = raised_sigma(sigma, len(self.timesteps), s_churn, s_tmin, s_tmax)
        sample = churned(widened(sample), sigma, sigma_hat, s_noise, generator, model_output.dtype)
        clean = pred_original_sample
        if clean is None:
            clean = self.precondition_outputs(sample, model_output, sigma_hat)

        step = sample - clean
        step /= sigma_hat  # the derivative
        step *= self.sigmas[index + 1] - sigma_hat
        step += sample
        previous_sample = np.asarray(step, dtype=dtype)
        self._step_index = index + 1
        return SchedulerOutput(previous_sample, clean) if return_dict else (previous_sample, clean)
