"""Pseudo numerical methods for diffusion models (Liu et al. 2022, arXiv:2202.09778)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import prediction
from .base import Array, Scheduler, SchedulerOutput, check_step
from .ddim import integer_timesteps, training_timestep
from .spacing import check_steps
from .weighted_sum import weighted_sum

_RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)  # the weights of its four evaluations
#: Adams-Bashforth: the weights of the newest model output and those before it, by how many there are
_MULTISTEP = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


class PNDMScheduler(Scheduler):
    """PLMS, after Runge-Kutta steps or without them (`skip_prk_steps`, as Stable Diffusion has it).

    Without them the first step is taken twice, so the model is called once more than there are steps. Checked against
    diffusers step by step.
    """

    prediction_types = ("epsilon", "v_prediction")

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        skip_prk_steps: bool = False,
        set_alpha_to_one: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
    ) -> None:
        """See diffusers' `PNDMScheduler` for the options; they have its names, defaults and meanings."""
        super().__init__(locals())
        self.final_alpha_cumprod = np.float32(1.0) if set_alpha_to_one else self.alphas_cumprod[0]
        self._restart(0)

    def _restart(self, runge_kutta_calls: int) -> None:
        """Forgets the model outputs of an earlier picture."""
        self._runge_kutta_calls = runge_kutta_calls
        self._call = 0
        self._outputs: list[Array] = []  # the newest last, four at the most
        self._start: Array | None = None  # the sample that a Runge-Kutta step, or the doubled first step, started from
        self._evaluations: list[Array] = []  # of a Runge-Kutta step

    def set_timesteps(self, num_inference_steps: int | None = None, device: object = None) -> None:
        """Chooses the timesteps to visit.

        Raises:
            ValueError: below 1, more than the model was trained with, or fewer than Runge-Kutta steps need.
        """
        del device
        steps = check_steps(num_inference_steps, len(self))
        config = self.config
        rising = integer_timesteps(config["timestep_spacing"], len(self), steps, config["steps_offset"])[::-1]
        if config["skip_prk_steps"]:
            runge_kutta = rising[:0]
            multistep = np.concatenate([rising[:-1], rising[-2:-1], rising[-1:]])[::-1]
        else:
            if len(rising) < 4:
                raise ValueError(f"PNDMScheduler needs at least 4 steps with Runge-Kutta steps, got {steps}")
            halves = np.repeat(rising[-4:], 2) + np.tile([0, len(self) // steps // 2], 4)
            runge_kutta = np.repeat(halves[:-1], 2)[1:-1][::-1]
            multistep = rising[:-3][::-1]
        self._runge_kutta_timesteps = runge_kutta
        self.timesteps = np.concatenate([runge_kutta, multistep]).astype(np.int64)
        self.num_inference_steps = steps
        self._restart(len(runge_kutta))

    def step(self, model_output: Array, timestep: float, sample: Array, return_dict: bool = True) -> Any:
        """The sample at the next timestep of the schedule.

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: the schedule's, in order: the steps before are remembered.
            sample: (batch, ...).
            return_dict: a `SchedulerOutput` when true, else a tuple.
        """
        check_step(self, model_output, sample)
        advance = self._runge_kutta if self._call < self._runge_kutta_calls else self._multistep
        previous_sample = advance(model_output, training_timestep(self, timestep), sample)
        self._call += 1
        return SchedulerOutput(previous_sample) if return_dict else (previous_sample,)

    def _runge_kutta(self, model_output: Array, time: int, sample: Array) -> Array:
        """One of the four evaluations of a Runge-Kutta step (equation 13)."""
        assert self.num_inference_steps is not None
        stage = self._call % 4
        half = 0 if self._call % 2 else len(self) // self.num_inference_steps // 2
        if stage == 0:
            self._outputs.append(model_output)
            self._start, self._evaluations = sample, []
        self._evaluations.append(model_output)
        direction = weighted_sum(_RUNGE_KUTTA, self._evaluations) if stage == 3 else model_output
        assert self._start is not None
        first = int(self._runge_kutta_timesteps[self._call // 4 * 4])
        return self._transfer(self._start, first, time - half, direction)

    def _multistep(self, model_output: Array, time: int, sample: Array) -> Array:
        """One step of the linear multistep method (equation 12)."""
        assert self.num_inference_steps is not None
        stride = len(self) // self.num_inference_steps
        previous = time - stride
        if self._call == 1 and not self._runge_kutta_calls:  # the first step once more, from its own start
            assert self._start is not None
            direction, sample = (model_output + self._outputs[-1]) / 2, self._start
            time, previous = time + stride, time
        else:
            self._outputs = [*self._outputs[-3:], model_output]
            weights = _MULTISTEP.get(len(self._outputs), (1.0,))
            direction = weighted_sum(weights, self._outputs[::-1])
            self._start = sample
        return self._transfer(sample, time, previous, direction)

    def _transfer(self, sample: Array, time: int, previous: int, model_output: Array) -> Array:
        """From one timestep to another along a direction: equation 9."""
        if not 0 <= time < len(self):
            raise ValueError(f"PNDMScheduler cannot start at timestep {time}: use more steps, or steps_offset 0")
        alpha_bar = self.alphas_cumprod[time]
        alpha_bar_previous = self.alphas_cumprod[previous] if previous >= 0 else self.final_alpha_cumprod
        root = np.float32(0.5)
        kind = self.config["prediction_type"]
        noise = prediction.noise(kind, model_output, sample, alpha_bar**root, (1 - alpha_bar) ** root)
        scale = (alpha_bar_previous / alpha_bar) ** root
        denominator = (
            alpha_bar * (1 - alpha_bar_previous) ** root + (alpha_bar * (1 - alpha_bar) * alpha_bar_previous) ** root
        )
        moved = weighted_sum((scale, -(alpha_bar_previous - alpha_bar) / denominator), (sample, noise))
        return np.asarray(moved, dtype=sample.dtype)
