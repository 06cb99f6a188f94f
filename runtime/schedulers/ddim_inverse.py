"""DDIM run backwards: from a clean sample to the noise that DDIM would make it of (arXiv:2010.02502, section 4.3)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import prediction
from .base import Array, Scheduler, SchedulerOutput, check_step
from .ddim import integer_timesteps, training_timestep
from .spacing import check_steps
from .weighted_sum import mixture


class DDIMInverseScheduler(Scheduler):
    """DDIM's steps from clean to noisy, as editing of real images needs them. Checked against diffusers step by step.

    The timesteps rise. The model is asked at the level that a step leads to, as DDIM is when it returns: with the same
    predictions DDIM's step takes the sample back to where it was.
    """

    interchangeable = ()

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
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        """See diffusers' `DDIMInverseScheduler` for the options; they have its names, defaults and meanings."""
        super().__init__(locals())
        self.timesteps = self.timesteps[::-1].copy()
        self.initial_alpha_cumprod = np.float32(1.0) if set_alpha_to_one else self.alphas_cumprod[0]

    def _choices(self) -> dict[str, tuple[str, ...]]:
        return {"timestep_spacing": ("leading", "trailing")}

    def set_timesteps(self, num_inference_steps: int | None = None, device: object = None) -> None:
        """Chooses the timesteps to visit, from clean to noisy: DDIM's, turned round.

        Raises:
            ValueError: below 1, or more than the model was trained with.
        """
        del device
        steps = check_steps(num_inference_steps, len(self))
        spacing = self.config["timestep_spacing"]
        self.timesteps = integer_timesteps(spacing, len(self), steps, self.config["steps_offset"])[::-1].copy()
        self.num_inference_steps = steps

    def step(self, model_output: Array, timestep: float, sample: Array, return_dict: bool = True) -> Any:
        """The sample at this timestep, from the one before it: equation 12 without noise, towards more of it.

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: where the step leads.
            sample: (batch, ...), at the timestep before; the first one is clean.
            return_dict: a `SchedulerOutput` when true, else the tuple of its fields.

        Raises:
            ValueError: the sample is wholly clean, and the model predicts no noise but the clean sample again.
        """
        check_step(self, model_output, sample)
        assert self.num_inference_steps is not None
        time_next = training_timestep(self, timestep)
        time = time_next - len(self) // self.num_inference_steps
        alpha_bar = self.alphas_cumprod[time] if time >= 0 else self.initial_alpha_cumprod
        alpha_bar_next = self.alphas_cumprod[time_next]
        root = np.float32(0.5)
        alpha, sigma = alpha_bar**root, (1 - alpha_bar) ** root

        kind = self.config["prediction_type"]
        if kind == "sample" and sigma == 0:
            raise ValueError("prediction_type 'sample' tells no noise at the first step: use set_alpha_to_one=False")
        clean = prediction.denoised(kind, model_output, sample, alpha, sigma)
        noise = prediction.noise(kind, model_output, sample, alpha, sigma)
        if self.config["clip_sample"]:
            clean = np.clip(clean, -self.config["clip_sample_range"], self.config["clip_sample_range"])
        moved = mixture(alpha_bar_next**root, clean, (1 - alpha_bar_next) ** root, noise)
        next_sample = np.asarray(moved, dtype=sample.dtype)
        return SchedulerOutput(next_sample, clean) if return_dict else (next_sample, clean)
