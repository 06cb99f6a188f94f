"""Steps of second order: the model is called at a noise level, and again at a middle one where the first call leads.

Heun's method and DPM-Solver-2 differ in the middle level, and in what they make of the two derivatives. The step to
level 0 is Euler's, of one call.
"""

from typing import Any

import numpy as np

from .base import Array, SchedulerOutput, check_step
from .precision import widened
from .prediction import denoised_at_sigma, derivative_at_sigma
from .sigma_scheduler import VarianceExplodingScheduler
from .weighted_sum import weighted_sum


class SecondOrderScheduler(VarianceExplodingScheduler, abstract=True):
    """A scheduler that calls the model twice in each of its steps but the last; a timestep of it is a call.

    Attributes:
        first_call: the sample and the derivative that a half-done step started from; None between steps.
    """

    order = 2

    first_call: tuple[Array, Array] | None = None
    _starts: Array  # sigma at the start of each step, (steps,)
    _middles: Array  # of the second call, (steps,); 0 in the last step, which has none
    _ends: Array  # to step to, (steps,)

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call of the model is the first of a step."""
        return self.first_call is None

    def _visit(self, levels: Array, timesteps: Array, middles: Array, middle_timesteps: Array) -> None:
        """Sets the schedule.

        Args:
            levels: (steps + 1,), with the last one 0.
            timesteps: of the levels, (steps,).
            middles: levels of the second calls, (steps,), with the last one 0.
            middle_timesteps: theirs, (steps - 1,).
        """
        self._starts, self._middles, self._ends = levels[:-1], middles, levels[1:]
        self.sigmas = np.repeat(levels, 2)[1:-1]  # a second call is listed with the level that its step leads to
        self.timesteps = np.empty(2 * len(timesteps) - 1, np.float32)
        self.timesteps[::2], self.timesteps[1::2] = timesteps, middle_timesteps

    def _restart(self) -> None:
        super()._restart()
        self.first_call = None

    def _sigma_of_call(self, index: int) -> Any:
        """The noise level at which the model is called."""
        return (self._middles if index % 2 else self._starts)[index // 2]

    def _moved(self, start: Array, by: np.float32, first: Array, second: Array) -> Array:
        """The sample at the end of a whole step, along the second of its derivatives; the first is for others."""
        del first
        return weighted_sum((1, by), (start, second))

    def _clipped(self, clean: Array) -> Array:
        """The predicted clean sample as the configuration wants it."""
        return clean

    def _advance(self, model_output: Array, timestep: float, sample: Array) -> tuple[Array, Array]:
        """The sample where a call of the model leads, the middle or the end of its step, and the clean sample.

        Raises:
            ValueError: the loop starts in the middle of a step.
        """
        check_step(self, model_output, sample)
        index = self._place(timestep)
        sigma, sigma_start = self._sigma_of_call(index), self._starts[index // 2]
        if index % 2 and self.first_call is None:
            raise ValueError(f"timestep {timestep} is in the middle of a step: start at the one before or after it")
        sample = widened(sample)
        kind = self.config["prediction_type"]
        clean = denoised_at_sigma(kind, model_output, sample, sigma)
        clipped = self._clipped(clean)
        if clipped is not clean:
            kind = "sample"  # the model's own noise leads elsewhere
        derivative = derivative_at_sigma(kind, model_output, sample, clipped, sigma)
        if self.first_call is None:
            moved = weighted_sum((1, self._middles[index // 2] - sigma_start), (sample, derivative))
            self.first_call = sample, derivative
        else:
            start, first = self.first_call
            moved = self._moved(start, self._ends[index // 2] - sigma_start, first, derivative)
            self.first_call = None
        self._step_index = index + 1
        return moved, clipped

    @staticmethod
    def _output(moved: Array, clean: Array, sample: Array, return_dict: bool) -> Any:
        """What a step gives, in the sample's dtype."""
        moved, clean = (array.astype(sample.dtype, copy=False) for array in (moved, clean))
        return SchedulerOutput(moved, clean) if return_dict else (moved, clean)
