"""Ancestral sampling with Euler's method: `sample_euler_ancestral` of k-diffusion (Crowson 2022)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..random import randn
from .ancestral import ancestral_levels
from .base import Array, Generators, SchedulerOutput, check_step, require_generator
from .discrete_levels import discrete_levels
from .precision import widened
from .prediction import denoised_at_sigma, derivative_at_sigma
from .sigma_scheduler import VarianceExplodingScheduler
from .sigmas import training_sigmas
from .spacing import check_steps
from .weighted_sum import weighted_sum


class EulerAncestralDiscreteScheduler(VarianceExplodingScheduler):
    """Euler steps to below the next noise level, and noise up to it. Checked against diffusers step by step."""

    prediction_types = ("epsilon", "v_prediction")

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        """See diffusers' `EulerAncestralDiscreteScheduler` for the options; they have its names and meanings."""
        super().__init__(locals())
        if rescale_betas_zero_snr:
            self.alphas_cumprod[-1] = 2.0**-24  # not 0, so that the first sigma is finite
        self._training_sigmas = training_sigmas(self.alphas_cumprod)
        self.sigmas = np.append(self._training_sigmas[::-1], np.float32(0))
        self.timesteps = self.timesteps.astype(np.float32)

    def set_timesteps(self, num_inference_steps: int | None = None, device: object = None) -> None:
        """Chooses the noise levels to visit.

        Raises:
            ValueError: below 1, or more than the model was trained with.
        """
        del device
        steps = check_steps(num_inference_steps, len(self))
        self.sigmas, self.timesteps = discrete_levels(self.config, self._training_sigmas, steps)
        self.num_inference_steps = steps
        self._restart()

    def step(
        self,
        model_output: Array,
        timestep: float,
        sample: Array,
        generator: Generators | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample at the next noise level.

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: the schedule's, in order.
            sample: (batch, ...), not scaled.
            generator: where the noise comes from; it is drawn in the last step too, as diffusers does, and times 0.
            return_dict: a `SchedulerOutput` when true, else the tuple of its fields.
        """
        check_step(self, model_output, sample)
        index = self._place(timestep)
        sigma = self.sigmas[index]
        down, up = ancestral_levels(sigma, self.sigmas[index + 1])
        dtype, sample = sample.dtype, widened(sample)
        kind = self.config["prediction_type"]
        clean = denoised_at_sigma(kind, model_output, sample, sigma)
        derivative = derivative_at_sigma(kind, model_output, sample, clean, sigma)
        moved = weighted_sum((1, down - sigma), (sample, derivative))
        noise = widened(randn(model_output.shape, require_generator(generator), model_output.dtype))
        noise *= up
        moved += noise
        previous_sample = np.asarray(moved, dtype=dtype)
        self._step_index = index + 1
        return SchedulerOutput(previous_sample, clean) if return_dict else (previous_sample, clean)
