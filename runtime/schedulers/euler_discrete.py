"""Euler's method on the probability-flow ODE (Karras et al. 2022, arXiv:2206.00364, algorithm 2)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import Array, Generators, SchedulerOutput, check_step
from .churn import churned, raised_sigma
from .discrete_levels import respaced_levels
from .precision import widened
from .prediction import denoised_at_sigma, derivative_at_sigma
from .sigma_scheduler import VarianceExplodingScheduler
from .sigmas import (
    SPACERS,
    check_spacers,
    interpolated_sigmas,
    log_linear_sigmas,
    timestep_of_sigma,
    training_sigmas,
)
from .spacing import check_steps, spaced_timesteps
from .weighted_sum import weighted_sum


class EulerDiscreteScheduler(VarianceExplodingScheduler):
    """Euler steps between noise levels, with churn if asked for. Checked against diffusers step by step.

    The sample is that of Karras et al.: clean + sigma * noise, not scaled down; `scale_model_input` scales it for the
    model.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        interpolation_type: str = "linear",
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        timestep_spacing: str = "linspace",
        timestep_type: str = "discrete",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        final_sigmas_type: str = "zero",
    ) -> None:
        """See diffusers' `EulerDiscreteScheduler` for the options; they have its names, defaults and meanings."""
        super().__init__(locals())
        check_spacers(self.config)
        if rescale_betas_zero_snr:
            self.alphas_cumprod[-1] = 2.0**-24  # not 0, so that the first sigma is finite
        self._training_sigmas = training_sigmas(self.alphas_cumprod)
        self.sigmas = np.append(self._training_sigmas[::-1], np.float32(0))
        self.timesteps = self._timesteps_of(self.sigmas[:-1], self.timesteps.astype(np.float32))

    def _choices(self) -> dict[str, tuple[str, ...]]:
        return {
            "interpolation_type": ("linear", "log_linear"),
            "timestep_type": ("discrete", "continuous"),
            "final_sigmas_type": ("zero", "sigma_min"),
        }

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: object = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Chooses the noise levels to visit: so many, or the caller's own timesteps or sigmas (the last one included).

        Raises:
            ValueError: not exactly one of the three is given, or it is not possible.
        """
        del device
        if sum(given is not None for given in (num_inference_steps, timesteps, sigmas)) != 1:
            raise ValueError("give exactly one of num_inference_steps, timesteps and sigmas")
        if sigmas is not None:
            levels = np.asarray(sigmas, dtype=np.float32)
            visited = timestep_of_sigma(levels[:-1], np.log(self._training_sigmas))
        else:
            levels, visited = self._spaced_levels(num_inference_steps, timesteps)
        self.sigmas = levels
        self.timesteps = self._timesteps_of(levels[:-1], visited.astype(np.float32))
        self.num_inference_steps = len(self.timesteps)
        self._restart()

    def _spaced_levels(self, num_inference_steps: int | None, timesteps: Sequence[float] | None) -> tuple[Array, Array]:
        """Sigmas, with the last one, and the timesteps that they belong to."""
        continuous = self.config["timestep_type"] == "continuous" and self.config["prediction_type"] == "v_prediction"
        if timesteps is not None:
            if continuous or any(self.config[option] for option in SPACERS):
                raise ValueError("this scheduler's configuration spaces the noise levels: it takes no timesteps")
            visited = np.asarray(timesteps, dtype=np.float32)
        else:
            steps = check_steps(num_inference_steps, len(self))
            spacing, offset = self.config["timestep_spacing"], self.config["steps_offset"]
            visited = spaced_timesteps(spacing, len(self), steps, offset).astype(np.float32)
        levels, visited = respaced_levels(self.config, self._interpolated(visited), visited, self._training_sigmas)
        last = self._training_sigmas[0] if self.config["final_sigmas_type"] == "sigma_min" else 0.0
        return np.append(levels, last).astype(np.float32), visited

    def _interpolated(self, timesteps: Array) -> Array:
        """The sigmas of timesteps between those of the training."""
        training = self._training_sigmas
        if self.config["interpolation_type"] == "linear":
            return interpolated_sigmas(timesteps, training)
        return log_linear_sigmas(training[-1], training[0], len(timesteps) + 1)

    def _timesteps_of(self, sigmas: Array, timesteps: Array) -> Array:
        """The timesteps as the model takes them: a quarter of log sigma for EDM-like models."""
        if self.config["timestep_type"] == "continuous" and self.config["prediction_type"] == "v_prediction":
            return np.asarray(np.float32(0.25) * np.log(sigmas), dtype=np.float32)
        return timesteps

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
        """
        check_step(self, model_output, sample)
        index = self._place(timestep)
        sigma, dtype = self.sigmas[index], sample.dtype
        sigma_hat = raised_sigma(sigma, len(self.timesteps), s_churn, s_tmin, s_tmax)
        sample = churned(widened(sample), sigma, sigma_hat, s_noise, generator, model_output.dtype)

        kind = self.config["prediction_type"]
        level = sigma_hat if kind == "epsilon" else sigma  # as diffusers has it: a velocity at the level before churn
        clean = denoised_at_sigma(kind, model_output, sample, level)
        derivative = derivative_at_sigma(kind, model_output, sample, clean, sigma_hat)
        moved = weighted_sum((1, self.sigmas[index + 1] - sigma_hat), (sample, derivative))
        previous_sample = np.asarray(moved, dtype=dtype)
        self._step_index = index + 1
        return SchedulerOutput(previous_sample, clean) if return_dict else (previous_sample, clean)
