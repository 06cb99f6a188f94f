"""Linear multistep method on the probability-flow ODE: `sample_lms` of k-diffusion (Crowson 2022).

Adams-Bashforth with steps of any length: the polynomial through the last derivatives, integrated over the next step.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import Array, SchedulerOutput, check_step
from .discrete_levels import discrete_levels
from .prediction import denoised_at_sigma
from .sigma_scheduler import VarianceExplodingScheduler
from .sigmas import check_spacers, training_sigmas
from .spacing import check_steps
from .weighted_sum import weighted_sum


class LMSDiscreteScheduler(VarianceExplodingScheduler):
    """Linear multistep, of order 4 unless a step is asked for another. Checked against diffusers step by step.

    Diffusers weighs the derivatives for the order that the place in the schedule allows, even where the loop began
    there (image to image) and has fewer of them, so that the weights do not add up to the step; here the order is at
    most the number of derivatives.

    Attributes:
        derivatives: of the last steps, the newest last.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:
        """See diffusers' `LMSDiscreteScheduler` for the options; they have its names, defaults and meanings."""
        super().__init__(locals())
        check_spacers(self.config)
        self._training_sigmas = training_sigmas(self.alphas_cumprod)
        self.sigmas, self.timesteps = discrete_levels(self.config, self._training_sigmas, len(self))
        self.derivatives: list[Array] = []

    def set_timesteps(self, num_inference_steps: int | None = None, device: object = None) -> None:
        """Chooses the noise levels to visit.

        Raises:
            ValueError: below 1, more than the model was trained with, or so many that two levels are equal.
        """
        del device
        steps = check_steps(num_inference_steps, len(self))
        sigmas, timesteps = discrete_levels(self.config, self._training_sigmas, steps)
        if not np.all(np.diff(sigmas) < 0):
            raise ValueError(f"LMSDiscreteScheduler needs noise levels that fall: {steps} steps have equal ones")
        self.sigmas, self.timesteps, self.num_inference_steps = sigmas, timesteps, steps
        self.derivatives = []
        self._restart()

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """What a derivative weighs in a step: the integral, over the step, of its Lagrange polynomial.

        Args:
            order: how many derivatives there are.
            t: the step's place in the schedule.
            current_order: which of them; 0 is the newest.
        """
        return float(self._weights(order, t)[current_order])

    def _weights(self, order: int, index: int) -> Array:
        """What the last derivatives weigh in a step, (order,), the newest first.

        With them the step of every polynomial of sigma below degree `order` is exact: of its powers 1, x, x**2 and so
        on, whose integrals are 1, 1/2, 1/3 where the step goes from 0 to 1.
        """
        sigmas = self.sigmas.astype(np.float64)
        length = sigmas[index + 1] - sigmas[index]
        places = (sigmas[index + 1 - order : index + 1][::-1] - sigmas[index]) / length
        powers = np.vander(places, increasing=True).T
        return np.asarray(length * np.linalg.solve(powers, 1 / np.arange(1, order + 1)))

    def step(
        self, model_output: Array, timestep: float, sample: Array, order: int = 4, return_dict: bool = True
    ) -> Any:
        """The sample at the next noise level.

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: the schedule's, in order: the steps before are remembered.
            sample: (batch, ...), not scaled.
            order: how many derivatives to use, as far as there are so many.
            return_dict: a `SchedulerOutput` when true, else the tuple of its fields.

        Raises:
            ValueError: the order is below 1.
        """
        check_step(self, model_output, sample)
        if order < 1:
            raise ValueError(f"order must be at least 1, got {order}")
        index = self._place(timestep)
        sigma, dtype = self.sigmas[index], sample.dtype
        if dtype == np.float16:  # 0.04 would be lost beside 15
            sample = sample.astype(np.float32)
        clean = denoised_at_sigma(self.config["prediction_type"], model_output, sample, sigma)
        self.derivatives = [*self.derivatives, (sample - clean) / sigma][-order:]
        change = weighted_sum(self._weights(len(self.derivatives), index), self.derivatives[::-1])
        previous_sample = np.asarray(sample + change, dtype=dtype)
        clean = np.asarray(clean, dtype=dtype)
        self._step_index = index + 1
        return SchedulerOutput(previous_sample, clean) if return_dict else (previous_sample, clean)
