"""Multistep consistency sampling (Song et al. 2023, arXiv:2303.01469, algorithm 1)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..random import randn
from .base import Array, Generators, SchedulerOutput, check_step, require_generator
from .edm import scaled_input, scalings
from .precision import widened
from .sigma_scheduler import VarianceExplodingScheduler
from .sigmas import karras_levels
from .spacing import check_steps
from .weighted_sum import mixture


class CMStochasticIterativeScheduler(VarianceExplodingScheduler):
    """Denoises at once, adds the noise of the next level, and so on. Checked against diffusers step by step.

    Training timesteps count from the noisy end: 0 is `sigma_max`.
    """

    interchangeable = ()

    def __init__(
        self,
        num_train_timesteps: int = 40,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        s_noise: float = 1.0,
        rho: float = 7.0,
        clip_denoised: bool = True,
    ) -> None:
        """See diffusers' `CMStochasticIterativeScheduler` for the options."""
        super().__init__(locals())
        self.sigmas = self._levels_of(np.arange(num_train_timesteps))
        self.timesteps = self.sigma_to_t(self.sigmas)

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation that the starting noise must have."""
        return float(self.config["sigma_max"])

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: object = None, timesteps: Sequence[int] | None = None
    ) -> None:
        """Chooses the noise levels to visit: so many, or those of the caller's own training timesteps, falling.

        Raises:
            ValueError: not exactly one of the two is given, or it is not possible.
        """
        del device
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("give exactly one of num_inference_steps and timesteps")
        if timesteps is None:
            steps = check_steps(num_inference_steps, len(self))
            rising = np.arange(steps) * (len(self) // steps)
        else:
            rising = np.asarray(timesteps, dtype=np.int64)[::-1]
            if rising.ndim != 1 or not rising.size or np.any(np.diff(rising) <= 0):
                raise ValueError("timesteps must be a row that falls")
            if rising[0] < 0 or rising[-1] >= len(self):
                raise ValueError(f"timesteps must lie between 0 and {len(self) - 1}")
        levels = self._levels_of(rising)
        self.timesteps = self.sigma_to_t(levels)
        self.sigmas = np.append(levels, self.config["sigma_min"]).astype(np.float32)
        self.num_inference_steps = len(levels)
        self._restart()

    def _levels_of(self, timesteps: Array) -> Array:
        """The noise levels of training timesteps, (steps,) of float64."""
        config = self.config
        ramp = timesteps / max(len(self) - 1, 1)
        return karras_levels(ramp, config["sigma_min"], config["sigma_max"], config["rho"])

    def sigma_to_t(self, sigmas: float | Array) -> Array:
        """The noise levels as the model takes them: a quarter of their logarithm, times 1000."""
        return np.asarray(250 * np.log(np.asarray(sigmas, dtype=np.float64) + 1e-44))

    def scale_model_input(self, sample: Array, timestep: float | None = None) -> Array:
        """The sample at variance 1, as the model was trained."""
        if timestep is None:
            raise ValueError(f"{type(self).__name__} needs the timestep to scale its input")
        return scaled_input(sample, self.sigmas[self._place(timestep)], self.config["sigma_data"])

    def get_scalings(self, sigma: Any) -> tuple[Any, Any]:
        """EDM's c_skip and c_out."""
        return scalings(sigma, self.config["sigma_data"])

    def get_scalings_for_boundary_condition(self, sigma: Any) -> tuple[Any, Any]:
        """c_skip and c_out of a consistency model, which leaves a sample at `sigma_min` as it is (appendix C)."""
        sigma_data, above = self.config["sigma_data"], sigma - self.config["sigma_min"]
        c_skip, _ = scalings(above, sigma_data)
        return c_skip, above * sigma_data / (sigma**2 + sigma_data**2) ** np.float32(0.5)

    def step(
        self,
        model_output: Array,
        timestep: float,
        sample: Array,
        generator: Generators | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample at the next noise level; the clean one after the last.

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: the schedule's, in order.
            sample: (batch, ...), not scaled.
            generator: of the noise that is added, unless there is one step alone.
            return_dict: a `SchedulerOutput` when true, else a tuple.
        """
        check_step(self, model_output, sample)
        index = self._place(timestep)
        scales = self.get_scalings_for_boundary_condition(self.sigmas[index])
        previous_sample = mixture(scales[0], widened(sample), scales[1], model_output)
        if self.config["clip_denoised"]:
            np.clip(previous_sample, -1, 1, out=previous_sample)
        if len(self.timesteps) > 1:
            noise = widened(randn(model_output.shape, require_generator(generator), model_output.dtype))
            noise *= noise.dtype.type(self.config["s_noise"] * self._noise_at(index + 1))
            previous_sample += noise
        previous_sample = previous_sample.astype(sample.dtype, copy=False)
        self._step_index = index + 1
        return SchedulerOutput(previous_sample) if return_dict else (previous_sample,)

    def _noise_at(self, index: int) -> np.float32:
        """The deviation of the noise above `sigma_min`, at a place in the schedule."""
        lowest, highest = self.config["sigma_min"], self.config["sigma_max"]
        sigma = np.clip(self.sigmas[index], np.float32(lowest), np.float32(highest))
        return np.float32(np.sqrt(max(sigma**2 - np.float32(lowest**2), 0)))
