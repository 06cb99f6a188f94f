"""Multistep sampling of latent consistency models (Luo et al. 2023, arXiv:2310.04378)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..random import randn
from . import prediction
from .base import Array, Generators, SchedulerOutput, check_step, require_generator
from .ddim import clip_prediction, training_timestep
from .distilled import DistilledScheduler
from .weighted_sum import mixture

_DATA_DEVIATION = 0.5  # sigma_data of consistency models


@dataclass(frozen=True)
class LCMSchedulerOutput(SchedulerOutput):
    """What a step gives; diffusers calls the predicted clean sample `denoised`."""

    @property
    def denoised(self) -> Array | None:
        """The clean sample as predicted at this timestep."""
        return self.pred_original_sample


class LCMScheduler(DistilledScheduler):
    """Predicts the clean sample, and makes it noisy again for the next timestep.

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
        """See diffusers' `LCMScheduler` for the options; they have its names, defaults and meanings.

        As there, `set_alpha_to_one`, `steps_offset` and `timestep_spacing` change nothing.
        """
        super().__init__(locals())

    def get_scalings_for_boundary_condition_discrete(self, timestep: float) -> tuple[float, float]:
        """The weights of the sample and of its prediction, by which timestep 0 changes nothing."""
        time = float(timestep) * self.config["timestep_scaling"]
        variance = _DATA_DEVIATION**2
        return variance / (time**2 + variance), time / (time**2 + variance) ** 0.5

    def step(
        self,
        model_output: Array,
        timestep: float,
        sample: Array,
        generator: Generators | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample at the next timestep: predicted clean, and with new noise.

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: the schedule's, in order.
            sample: (batch, ...).
            generator: where the noise comes from; none is drawn in the last step.
            return_dict: an `LCMSchedulerOutput` when true, else the tuple of its fields.
        """
        check_step(self, model_output, sample)
        index = self._place(timestep)
        time = training_timestep(self, timestep)
        alpha_bar = self.alphas_cumprod[time]
        root = np.float32(0.5)
        kind = self.config["prediction_type"]
        predicted = prediction.denoised(kind, model_output, sample, alpha_bar**root, (1 - alpha_bar) ** root)
        of_sample, of_prediction = self.get_scalings_for_boundary_condition_discrete(time)
        denoised = mixture(of_prediction, clip_prediction(self, predicted), of_sample, sample)

        next_sample = denoised
        if index + 1 < len(self.timesteps):
            alpha_bar_next = self.alphas_cumprod[self.timesteps[index + 1]]
            noise = randn(sample.shape, require_generator(generator), sample.dtype)
            next_sample = mixture(alpha_bar_next**root, denoised, (1 - alpha_bar_next) ** root, noise)
        next_sample = next_sample.astype(sample.dtype, copy=False)
        self._step_index = index + 1
        return LCMSchedulerOutput(next_sample, denoised) if return_dict else (next_sample, denoised)
