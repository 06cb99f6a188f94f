"""Denoising diffusion probabilistic models (Ho et al. 2020, arXiv:2006.11239)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..random import randn
from . import prediction
from .base import Array, Generators, Scheduler, SchedulerOutput, check_step, require_generator
from .betas import BETA_SCHEDULES
from .ddim import clip_prediction, integer_timesteps, training_timestep
from .spacing import check_steps

VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")

_LEAST_VARIANCE = np.float32(1e-20)  # its logarithm is taken


class DDPMScheduler(Scheduler):
    """Ancestral sampling of DDPM. Checked against diffusers step by step, noise included."""

    beta_schedules = (*BETA_SCHEDULES, "sigmoid", "laplace")

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        """See diffusers' `DDPMScheduler` for the options; they have its names, defaults and meanings."""
        super().__init__(locals())

    def _choices(self) -> dict[str, tuple[str, ...]]:
        return {"variance_type": VARIANCE_TYPES}

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: object = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Chooses the timesteps to visit: so many, or the caller's own, falling.

        Raises:
            ValueError: both are given, or neither is possible.
        """
        del device
        if timesteps is None:
            steps = check_steps(num_inference_steps, len(self))
            spacing = self.config["timestep_spacing"]
            self.timesteps = integer_timesteps(spacing, len(self), steps, self.config["steps_offset"])
            self.num_inference_steps = steps
            return
        if num_inference_steps is not None:
            raise ValueError("give num_inference_steps or timesteps, not both")
        own = np.asarray(timesteps, dtype=np.int64)
        if own.ndim != 1 or not own.size or np.any(np.diff(own) >= 0) or own[0] >= len(self) or own[-1] < 0:
            raise ValueError(f"timesteps must fall, from below {len(self)} to 0 at the least")
        self.timesteps, self.num_inference_steps = own, len(own)

    def step(
        self,
        model_output: Array,
        timestep: float,
        sample: Array,
        generator: Generators | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample at the previous timestep, drawn from the posterior of equations 6 and 7.

        Args:
            model_output: what the model predicts, of the sample's shape; twice as many channels where the variance is
                learned, which is in the second half.
            timestep: of the sample.
            sample: (batch, channels, ...).
            generator: where the noise comes from; none is drawn at timestep 0.
            return_dict: a `SchedulerOutput` when true, else the tuple of its fields.
        """
        learned = None
        if self.config["variance_type"] in ("learned", "learned_range"):
            if model_output.shape[1] != 2 * sample.shape[1]:
                raise ValueError(
                    f"variance_type {self.config['variance_type']!r} needs a model_output of {2 * sample.shape[1]} "
                    f"channels, got {model_output.shape[1]}"
                )
            model_output, learned = np.split(model_output, 2, axis=1)
        check_step(self, model_output, sample, untimed=True)  # the quicktour does not set them
        time = training_timestep(self, timestep)
        previous = self.previous_timestep(time)
        alpha_bar = self.alphas_cumprod[time]
        alpha_bar_previous = self.alphas_cumprod[previous] if previous >= 0 else np.float32(1.0)
        alpha_now = alpha_bar / alpha_bar_previous
        beta_now = 1 - alpha_now

        alpha, sigma = alpha_bar ** np.float32(0.5), (1 - alpha_bar) ** np.float32(0.5)
        clean = prediction.denoised(self.config["prediction_type"], model_output, sample, alpha, sigma)
        clean = clip_prediction(self, clean)
        of_clean = alpha_bar_previous ** np.float32(0.5) * beta_now / (1 - alpha_bar)  # equation 7
        of_sample = alpha_now ** np.float32(0.5) * (1 - alpha_bar_previous) / (1 - alpha_bar)
        mean = of_clean * clean + of_sample * sample
        if time > 0:
            noise = randn(sample.shape, require_generator(generator), sample.dtype)
            small = (1 - alpha_bar_previous) / (1 - alpha_bar) * beta_now  # beta tilde, equation 7
            mean = mean + self._deviation(np.maximum(small, _LEAST_VARIANCE), beta_now, learned) * noise
        previous_sample = np.asarray(mean, dtype=sample.dtype)
        return SchedulerOutput(previous_sample, clean) if return_dict else (previous_sample, clean)

    def previous_timestep(self, timestep: int) -> int:
        """The timestep that follows in the schedule, which is less noisy; -1 after the last."""
        places = np.flatnonzero(self.timesteps == timestep)
        if not places.size:
            raise ValueError(f"timestep {timestep} is not in the schedule")
        after = places[0] + 1
        return int(self.timesteps[after]) if after < len(self.timesteps) else -1

    def _deviation(self, small: np.float32, large: np.float32, learned: Array | None) -> Any:
        """The standard deviation of the step's noise: of the posterior (small), of the forward step (large), learned.

        "fixed_large_log" takes the root of a logarithm, which is NaN: diffusers does, and no model asks for it.
        """
        kind = self.config["variance_type"]
        if kind == "fixed_small_log":
            return np.exp(np.float32(0.5) * np.log(small))
        if kind == "learned":
            assert learned is not None
            return learned ** np.float32(0.5)
        if kind == "learned_range":  # improved DDPM, arXiv:2102.09672, equation 15
            assert learned is not None
            fraction = (learned + 1) / 2
            return np.exp(np.float32(0.5) * (fraction * np.log(large) + (1 - fraction) * np.log(small)))
        variance = {"fixed_small": small, "fixed_large": large, "fixed_large_log": np.log(large)}[kind]
        return variance ** np.float32(0.5)
