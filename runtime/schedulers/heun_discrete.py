"""Heun's method on the probability-flow ODE (Karras et al. 2022, arXiv:2206.00364, algorithm 1)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import Array
from .betas import BETA_SCHEDULES
from .discrete_levels import Sigmas, Timesteps, discrete_levels, own_levels
from .second_order import SecondOrderScheduler
from .sigmas import check_spacers, training_sigmas
from .spacing import check_steps


class HeunDiscreteScheduler(SecondOrderScheduler):
    """Heun steps between noise levels: Euler's, then again with the mean of the derivatives at both ends.

    Checked against diffusers step by step. Each step but the last has two timesteps, its two calls of the model; a loop
    that starts at the second of them is refused, where diffusers goes on with the levels shifted by half a step.
    """

    beta_schedules = (*BETA_SCHEDULES, "exp")

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
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:
        """See diffusers' `HeunDiscreteScheduler` for the options; they have its names, defaults and meanings."""
        super().__init__(locals())
        check_spacers(self.config)
        self._training_sigmas = training_sigmas(self.alphas_cumprod)
        self._visit_levels(*discrete_levels(self.config, self._training_sigmas, len(self)))

    def _visit_levels(self, levels: Sigmas, timesteps: Timesteps) -> None:
        self._visit(levels, timesteps, middles=levels[1:], middle_timesteps=timesteps[1:])

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: object = None,
        num_train_timesteps: int | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Chooses the noise levels to visit: so many, or those of the caller's own timesteps, falling.

        Args:
            num_inference_steps: how many steps; there are twice as many timesteps less one.
            device: means nothing here.
            num_train_timesteps: how many training timesteps to spread them over; all when None.
            timesteps: to visit instead, one per step.

        Raises:
            ValueError: both are given, or neither is possible.
        """
        del device
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("give exactly one of num_inference_steps and timesteps")
        if timesteps is None:
            steps = check_steps(num_inference_steps, num_train_timesteps or len(self))
            levels, visited = discrete_levels(self.config, self._training_sigmas, steps, num_train_timesteps)
        else:
            levels, visited = own_levels(self.config, self._training_sigmas, timesteps)
        self._visit_levels(levels, visited)
        self.num_inference_steps = len(visited)
        self._restart()

    def _clipped(self, clean: Array) -> Array:
        most = self.config["clip_sample_range"]
        return np.clip(clean, -most, most) if self.config["clip_sample"] else clean

    def _moved(self, start: Array, by: np.float32, first: Array, second: Array) -> Array:
        moved: Array = np.add(first, second, dtype=np.result_type(start, second))  # of float16 outputs in float32
        moved *= by / 2
        moved += start
        return moved

    def step(self, model_output: Array, timestep: float, sample: Array, return_dict: bool = True) -> Any:
        """The sample for the next call of the model, which twice in turn is at the next noise level.

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: the schedule's, in order: the first call of a step is remembered.
            sample: (batch, ...), not scaled.
            return_dict: a `SchedulerOutput` when true, else the tuple of its fields.
        """
        return self._output(*self._advance(model_output, timestep, sample), sample, return_dict)
