"""DPM-Solver++ for the stochastic equation, of second order: `sample_dpmpp_sde` of k-diffusion (Crowson 2022).

Each step is exact for a clean sample that stays the same, and gives back the noise that it takes (Lu et al. 2022,
arXiv:2211.01095). The clean sample is taken from the middle of the step, in log sigma.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .ancestral import ancestral_levels
from .base import Array, check_step
from .brownian import BrownianNoise
from .discrete_levels import discrete_levels
from .precision import widened
from .prediction import denoised_at_sigma
from .second_order import SecondOrderScheduler
from .sigmas import check_spacers, timestep_of_sigma, training_sigmas
from .spacing import check_steps
from .weighted_sum import weighted_sum


class DPMSolverSDEScheduler(SecondOrderScheduler):
    """Goes to the middle of a step and, with what the model says there, through all of it, with noise both times.

    Checked against diffusers step by step, with the same noise. Its own comes from torchsde, the one here from
    `BrownianNoise`: the law is the same, the numbers are others.

    Attributes:
        noise_sampler: gives the noise, of variance 1, for a step from one sigma to another; None until the first step,
            and after `set_timesteps`. Another may be put here.
    """

    prediction_types = ("epsilon", "v_prediction")

    noise_sampler: Callable[[float, float], Array] | None = None

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        noise_sampler_seed: int | Sequence[int] | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:
        """See diffusers' `DPMSolverSDEScheduler` for the options; they have its names, defaults and meanings.

        `noise_sampler_seed` is one seed for the batch, or one per image; None for a random one.
        """
        super().__init__(locals())
        check_spacers(self.config)
        self._training_sigmas = training_sigmas(self.alphas_cumprod)
        self._space(len(self), None)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: object = None, num_train_timesteps: int | None = None
    ) -> None:
        """Chooses the noise levels to visit; the model is called twice for each but the last.

        Args:
            num_inference_steps: how many.
            device: accepted, and means nothing here.
            num_train_timesteps: how many timesteps to spread them over; the training's when None.

        Raises:
            ValueError: below 1, or more than the model was trained with.
        """
        del device
        steps = check_steps(num_inference_steps, len(self))
        self._space(steps, num_train_timesteps)
        self.num_inference_steps = steps
        self.noise_sampler = None
        self._restart()

    def _space(self, steps: int, train_steps: int | None) -> None:
        """Sets the schedule."""
        levels, timesteps = discrete_levels(self.config, self._training_sigmas, steps, train_steps)
        middles = np.exp((np.log(levels[:-2]) + np.log(levels[1:-1])) / 2)
        middles = np.minimum(middles, levels[:-2])  # of equal levels it is rounded, and may be above them
        between = timestep_of_sigma(middles, np.log(self._training_sigmas))
        self._visit(levels, timesteps, np.append(middles, np.float32(0)), between)

    def step(
        self, model_output: Array, timestep: float, sample: Array, return_dict: bool = True, s_noise: float = 1.0
    ) -> Any:
        """The sample for the next call of the model: at the middle of the step, or at the next noise level.

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: the schedule's, in order: the first call of a step is remembered.
            sample: (batch, ...), not scaled.
            return_dict: a `SchedulerOutput` when true, else the tuple of its fields.
            s_noise: the standard deviation of the noise.

        Raises:
            ValueError: the loop starts in the middle of a step.
        """
        check_step(self, model_output, sample)
        index = self._place(timestep)
        step, second = divmod(index, 2)
        if second and self.first_call is None:
            raise ValueError(f"timestep {timestep} is in the middle of a step: start at the one before or after it")
        sigma, target = self._starts[step], (self._ends if second else self._middles)[step]
        sigma_down, sigma_up = ancestral_levels(sigma, target)
        clean = denoised_at_sigma(
            self.config["prediction_type"], model_output, widened(sample), self._sigma_of_call(index)
        )
        start = widened(sample) if self.first_call is None else self.first_call[0]
        derivative = start - clean
        derivative /= sigma
        moved = weighted_sum((1, sigma_down - sigma), (start, derivative))
        if s_noise * sigma_up > 0:
            moved += self._noise(sample, sigma, target) * np.float32(s_noise * sigma_up)
        self.first_call = None if second or target == 0 else (start, derivative)
        self._step_index = index + 1
        return self._output(moved, clean, sample, return_dict)

    def _noise(self, sample: Array, sigma: np.float32, sigma_next: np.float32) -> Array:
        """Noise for a step, in the sample's shape and dtype, of the path that a loop's first step begins."""
        if self.noise_sampler is None:
            lowest, highest = self.sigmas[self.sigmas > 0].min(), self.sigmas.max()
            seed = self.config["noise_sampler_seed"]
            self.noise_sampler = BrownianNoise(sample.shape, float(lowest), float(highest), seed, sample.dtype)
        return self.noise_sampler(float(sigma), float(sigma_next))
