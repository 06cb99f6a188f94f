"""Denoising diffusion implicit models (Song et al. 2021, arXiv:2010.02502)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..random import randn
from . import prediction
from .base import Array, Generators, Scheduler, SchedulerOutput, check_step, require_generator
from .spacing import check_steps, spaced_timesteps
from .weighted_sum import mixture


class DDIMScheduler(Scheduler):
    """DDIM: deterministic with `eta` 0, DDPM's noise with 1. Checked against diffusers step by step."""

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        """See diffusers' `DDIMScheduler` for the options; they have its names, defaults and meanings."""
        super().__init__(locals())
        self.final_alpha_cumprod = np.float32(1.0) if set_alpha_to_one else self.alphas_cumprod[0]

    def set_timesteps(self, num_inference_steps: int | None = None, device: object = None) -> None:
        """Chooses the timesteps to visit.

        Raises:
            ValueError: below 1, or more than the model was trained with.
        """
        del device
        steps = check_steps(num_inference_steps, len(self))
        spacing = self.config["timestep_spacing"]
        self.timesteps = integer_timesteps(spacing, len(self), steps, self.config["steps_offset"])
        self.num_inference_steps = steps

    def step(
        self,
        model_output: Array,
        timestep: float,
        sample: Array,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators | None = None,
        variance_noise: Array | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample at the previous timestep: equation 12, with the noise of equation 16.

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: of the sample.
            sample: (batch, ...).
            eta: 0 for none of DDPM's noise, 1 for all of it.
            use_clipped_model_output: derive the noise again from the clipped clean sample.
            generator: where the noise comes from.
            variance_noise: the noise itself, instead.
            return_dict: a `SchedulerOutput` when true, else the tuple of its fields.
        """
        check_step(self, model_output, sample)
        assert self.num_inference_steps is not None
        time = training_timestep(self, timestep)
        previous = time - len(self) // self.num_inference_steps
        alpha_bar = self.alphas_cumprod[time]
        alpha_bar_previous = self.alphas_cumprod[previous] if previous >= 0 else self.final_alpha_cumprod
        alpha, sigma = alpha_bar ** np.float32(0.5), (1 - alpha_bar) ** np.float32(0.5)

        kind = self.config["prediction_type"]
        clean = prediction.denoised(kind, model_output, sample, alpha, sigma)
        clipped = clip_prediction(self, clean)
        noise = prediction.noise(kind, model_output, sample, alpha, sigma)
        if use_clipped_model_output:
            noise = (sample - alpha * clipped) / sigma

        variance = (1 - alpha_bar_previous) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_previous)
        deviation = np.float32(eta) * variance ** np.float32(0.5)  # equation 16
        direction = (1 - alpha_bar_previous - deviation**2) ** np.float32(0.5)
        previous_sample = mixture(alpha_bar_previous ** np.float32(0.5), clipped, direction, noise)  # equation 12
        if eta > 0:
            if variance_noise is not None and generator is not None:
                raise ValueError("give generator or variance_noise, not both")
            if variance_noise is None:
                variance_noise = randn(sample.shape, require_generator(generator), sample.dtype)
            previous_sample += deviation * variance_noise
        previous_sample = np.asarray(previous_sample, dtype=sample.dtype)
        return SchedulerOutput(previous_sample, clipped) if return_dict else (previous_sample, clipped)


def integer_timesteps(spacing: str, train_steps: int, steps: int, offset: int) -> Array:
    """Timesteps to visit, rounded to whole ones, int64, from noisy to clean."""
    return np.round(spaced_timesteps(spacing, train_steps, steps, offset)).astype(np.int64)


def training_timestep(scheduler: Scheduler, timestep: float) -> int:
    """A timestep as an index of the training's.

    Raises:
        ValueError: the model was not trained with it.
    """
    time = int(timestep)
    if time != timestep or not 0 <= time < len(scheduler):
        raise ValueError(f"timestep must be a whole number from 0 to {len(scheduler) - 1}, got {timestep}")
    return time


def clip_prediction(scheduler: Scheduler, clean: Array) -> Array:
    """The predicted clean sample as the configuration wants it: thresholded, clipped, or as it is."""
    config = scheduler.config
    if config["thresholding"]:
        ratio, most = config["dynamic_thresholding_ratio"], config["sample_max_value"]
        return prediction.dynamic_threshold(clean, ratio, most)
    if config["clip_sample"]:
        return np.clip(clean, -config["clip_sample_range"], config["clip_sample_range"])
    return clean
