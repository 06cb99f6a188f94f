"""Strategic stochastic sampling of trajectory consistency models (Zheng et al. 2024, arXiv:2402.19159)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..random import randn
from . import prediction
from .base import Array, Generators, SchedulerOutput, check_step, require_generator
from .ddim import training_timestep
from .distilled import DistilledScheduler, Timesteps
from .weighted_sum import mixture


@dataclass(frozen=True)
class TCDSchedulerOutput(SchedulerOutput):
    """What a step gives.

    Attributes:
        pred_noised_sample: the sample at the timestep s below the next, before noise takes it up there.
    """

    pred_noised_sample: Array | None = None


class TCDScheduler(DistilledScheduler):
    """Goes below the next timestep without noise, and back up to it with noise.

    Checked against diffusers step by step. Image to image with the caller's own timesteps (`strength` below 1) ends
    clean here; diffusers adds noise once more.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        trained_betas: Sequence[float] | None = None,
        original_inference_steps: int = 50,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        timestep_scaling: float = 10.0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        """See diffusers' `TCDScheduler` for the options; they have its names, defaults and meanings.

        As there, only the betas' options, `original_inference_steps` and `prediction_type` change anything: predictions
        are neither clipped nor thresholded.
        """
        super().__init__(locals())

    def _distilled_timesteps(self, original_inference_steps: int | None, strength: float) -> Timesteps:
        """The timesteps to choose from, from noisy to clean: all of the training, where the caller says how many."""
        if original_inference_steps is None:
            return super()._distilled_timesteps(None, strength)
        return np.arange(int(len(self) * strength))[::-1]

    def step(
        self,
        model_output: Array,
        timestep: float,
        sample: Array,
        eta: float = 0.3,
        generator: Generators | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample at the next timestep: DDIM to the one below, and new noise.

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: the schedule's, in order.
            sample: (batch, ...).
            eta: the paper's gamma, how much noise: 0 is DDIM, 1 goes to the clean end and back.
            generator: where the noise comes from; none is drawn in the last step.
            return_dict: a `TCDSchedulerOutput` when true, else a tuple of `prev_sample` and `pred_noised_sample`.

        Raises:
            ValueError: eta is below 0 or above 1.
        """
        check_step(self, model_output, sample)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie between 0 and 1, got {eta}")
        index = self._place(timestep)
        last = index + 1 == len(self.timesteps)
        time_next = 0 if last else self.timesteps[index + 1]
        time_below = int(np.float32(1 - eta) * np.float32(time_next))  # s of the paper, rounded down
        times = [training_timestep(self, timestep), time_below, time_next]
        alpha_bar, alpha_bar_below, alpha_bar_next = self.alphas_cumprod[times]
        root = np.float32(0.5)
        alpha, sigma = alpha_bar**root, (1 - alpha_bar) ** root

        kind = self.config["prediction_type"]
        clean = prediction.denoised(kind, model_output, sample, alpha, sigma)
        noise = prediction.noise(kind, model_output, sample, alpha, sigma)
        below = mixture(alpha_bar_below**root, clean, (1 - alpha_bar_below) ** root, noise)
        next_sample = below
        if eta > 0 and not last:
            kept = alpha_bar_next / alpha_bar_below
            fresh = randn(sample.shape, require_generator(generator), sample.dtype)
            next_sample = mixture(kept**root, below, (1 - kept) ** root, fresh)
        next_sample = next_sample.astype(sample.dtype, copy=False)
        self._step_index = index + 1
        if not return_dict:
            return next_sample, below
        return TCDSchedulerOutput(next_sample, clean, below)
