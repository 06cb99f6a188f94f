"""Heun's method (Karras et al. 2022, arXiv:2206.00364, algorithm 2) on the flow of flow matching."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import Array, Generators, SchedulerOutput, check_step
from .churn import churned, raised_sigma
from .flow_match import FlowMatchScheduler, moved, shifted
from .precision import widened
from .spacing import check_steps


@dataclass(frozen=True)
class _HalfStep:
    """Where an Euler step started, which the second evaluation of the model takes anew."""

    sample: Array
    derivative: Array
    width: Any  # in sigma


class FlowMatchHeunDiscreteScheduler(FlowMatchScheduler):
    """Steps of second order: an Euler step, and the mean of the velocities at its ends. Checked against diffusers.

    The model is called twice per step and once in the last. The noise levels are spaced evenly from the first training
    level to the last, which are shifted already, and shifted once more, as in diffusers.
    """

    order = 2

    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0) -> None:
        """See diffusers' `FlowMatchHeunDiscreteScheduler` for the options."""
        super().__init__(locals(), shift)
        self._half: _HalfStep | None = None

    def set_timesteps(self, num_inference_steps: int | None = None, device: object = None) -> None:
        """Chooses the noise levels to visit; all but the first are visited twice.

        Raises:
            ValueError: below 1, or more than the model was trained with.
        """
        del device
        steps = check_steps(num_inference_steps, len(self))
        levels = shifted(self._even_sigmas(steps), self.config["shift"]).astype(np.float32)
        visited = np.append(levels[:1], np.repeat(levels[1:], 2))
        self.timesteps = visited * len(self)
        self.sigmas = np.append(visited, np.float32(0))
        self.num_inference_steps = steps
        self._half = None
        self._restart()

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call is the first of a step's two."""
        return self._half is None

    def scale_noise(self, sample: Array, timestep: float, noise: Array) -> Array:
        """The clean sample with the noise of the loop's place, which starts at this timestep.

        Args:
            sample: (batch, ...), clean.
            timestep: of this schedule.
            noise: the sample's shape, of variance 1.
        """
        sigma = self.sigmas[self._place(timestep)]
        return np.asarray((1 - sigma) * sample + sigma * noise, dtype=sample.dtype)

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
        """The sample at the next noise level: predicted by the first call, corrected by the second.

        Args:
            model_output: the predicted velocity, of the sample's shape.
            timestep: the schedule's, in order.
            sample: (batch, ...).
            s_churn: how much noise to add before a step, spread over all of them.
            s_tmin: no churn below this sigma.
            s_tmax: no churn above this sigma.
            s_noise: the standard deviation of that noise.
            generator: where it comes from.
            return_dict: a `SchedulerOutput` when true, else a tuple.
        """
        check_step(self, model_output, sample)
        index = self._place(timestep)
        first, half = index if self._half is None else index - 1, self._half
        sigma, sigma_next = self.sigmas[first], self.sigmas[first + 1]
        sigma_hat = raised_sigma(sigma, len(self.sigmas) - 1, s_churn, s_tmin, s_tmax)
        dtype = sample.dtype  # at the second call churn has no effect, but its noise is drawn, as diffusers does
        sample = churned(widened(sample), sigma, sigma_hat, s_noise, generator, model_output.dtype)
        if half is None:
            derivative = _derivative(model_output, sample, sigma, sigma_hat)
            self._half = _HalfStep(sample, derivative, sigma_next - sigma_hat)
            previous_sample = moved(sample, derivative, sigma_next - sigma_hat)
        else:
            derivative = _derivative(model_output, sample, sigma_next, sigma_next)
            derivative += half.derivative
            self._half = None
            previous_sample = moved(half.sample, derivative, np.float32(0.5) * half.width)
        previous_sample = np.asarray(previous_sample, dtype=dtype)
        self._step_index = index + 1
        return SchedulerOutput(previous_sample) if return_dict else (previous_sample,)


def _derivative(model_output: Array, sample: Array, sigma: Any, sigma_hat: Any) -> Array:
    """The ODE's: the velocity, by way of the clean sample, whose rounding is diffusers' and counts at small sigmas."""
    derivative: Array = np.multiply(model_output, sigma, dtype=sample.dtype)
    np.subtract(sample, derivative, out=derivative)  # the clean sample
    np.subtract(sample, derivative, out=derivative)
    derivative /= sigma_hat
    return derivative
