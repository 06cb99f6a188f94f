"""What the schedulers of EDM share (Karras et al. 2022, arXiv:2206.00364): its noise levels and its preconditioning.

A sample is clean + sigma * noise, with data of deviation `sigma_data`. The model sees it scaled to variance 1, and its
output is a part of the clean sample that is scaled to variance 1 too (table 1, "Network and preconditioning").
"""

import math
from typing import Any

import numpy as np

from .base import Array
from .betas import linspace
from .sigma_scheduler import VarianceExplodingScheduler
from .sigmas import karras_levels
from .weighted_sum import weighted_sum

_QUARTER, _HALF = np.float32(0.25), np.float32(0.5)


def scalings(sigma: Any, sigma_data: float) -> tuple[Any, Any]:
    """c_skip and c_out: the clean sample is c_skip * sample + c_out * model_output."""
    variance = sigma**2 + sigma_data**2
    return sigma_data**2 / variance, sigma * sigma_data / variance**_HALF


def scaled_input(sample: Array, sigma: Any, sigma_data: float) -> Array:
    """The sample at variance 1, in its dtype: times c_in."""
    return np.asarray(sample * (1 / (sigma**2 + sigma_data**2) ** _HALF), dtype=sample.dtype)


class EDMScheduler(VarianceExplodingScheduler, abstract=True):
    """A scheduler of EDM's noise levels, which are chosen without betas."""

    prediction_types = ("epsilon", "v_prediction")
    interchangeable = ()

    def _choices(self) -> dict[str, tuple[str, ...]]:
        return {"sigma_schedule": ("karras", "exponential"), "final_sigmas_type": ("zero", "sigma_min")}

    def _levels_at(self, ramp: Array) -> Array:
        """Noise levels, (steps,) of float32, at positions from 0 (the highest) to 1.

        The exponential schedule is even, whatever the positions are, as in diffusers.
        """
        lowest, highest = self.config["sigma_min"], self.config["sigma_max"]
        if self.config["sigma_schedule"] == "exponential":
            logarithms = linspace(math.log(lowest), math.log(highest), len(ramp)).astype(np.float64)
            return np.exp(logarithms)[::-1].astype(np.float32)
        return karras_levels(ramp, lowest, highest, self.config["rho"]).astype(np.float32)

    def _visit(self, levels: Array, last: float) -> None:
        """Takes noise levels and the one that the last step ends at."""
        self.sigmas = np.append(levels, np.float32(last))
        self.timesteps = self.precondition_noise(levels)

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation that the starting noise must have."""
        return float((self.config["sigma_max"] ** 2 + 1) ** 0.5)

    def scale_model_input(self, sample: Array, timestep: float | None = None) -> Array:
        """The sample at variance 1, as the model was trained."""
        if timestep is None:
            raise ValueError(f"{type(self).__name__} needs the timestep to scale its input")
        return self.precondition_inputs(sample, self.sigmas[self._place(timestep)])

    def precondition_inputs(self, sample: Array, sigma: Any) -> Array:
        """The sample of a noise level as the model takes it: times c_in."""
        return scaled_input(sample, sigma, self.config["sigma_data"])

    def precondition_noise(self, sigma: Any) -> Array:
        """The noise level as the model takes it, c_noise, in float32."""
        logarithm = np.log(np.asarray(sigma, dtype=np.float64))  # the same on each processor, as float32's is not
        return np.asarray(_QUARTER * logarithm.astype(np.float32))

    def precondition_outputs(self, sample: Array, model_output: Array, sigma: Any) -> Array:
        """The clean sample that a model's output stands for; of the opposite sign where it predicts v."""
        c_skip, c_out = scalings(sigma, self.config["sigma_data"])
        if self.config["prediction_type"] == "v_prediction":
            c_out = -c_out
        return weighted_sum((c_skip, c_out), (sample, model_output))
