"""DPM-Solver++ with multistep updates (Lu et al., arXiv:2211.01095) in EDM's formulation (arXiv:2206.00364)."""

from typing import Any

import numpy as np

from ..random import randn
from . import prediction
from .base import Array, Generators, SchedulerOutput, check_step, require_generator
from .betas import linspace
from .dpm_solver import ALIASES
from .dpm_solver_updates import SOLVER_TYPES, Level, multistep_order, multistep_update, noise_level
from .edm import EDMScheduler
from .precision import widened
from .spacing import check_steps

_ORDERS = (1, 2, 3)


class EDMDPMSolverMultistepScheduler(EDMScheduler):
    """DPM-Solver++(2M) and its relatives between EDM's noise levels. Checked against diffusers step by step.

    Attributes:
        model_outputs: the clean samples that the next step may use, newest last.
    """

    model_outputs: list[Array]

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        sigma_schedule: str = "karras",
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        rho: float = 7.0,
        solver_order: int = 2,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        final_sigmas_type: str = "zero",
    ) -> None:
        """See diffusers' `EDMDPMSolverMultistepScheduler` for the options.

        Raises:
            ValueError: an option has a value that is not known.
        """
        algorithm_type = ALIASES["algorithm_type"].get(algorithm_type, algorithm_type)
        solver_type = ALIASES["solver_type"].get(solver_type, solver_type)
        super().__init__(locals())
        if solver_order not in _ORDERS:
            raise ValueError(f"solver_order must be one of {', '.join(map(str, _ORDERS))}, got {solver_order}")
        self._visit(self._even_levels(num_train_timesteps), 0.0)
        self.model_outputs = []

    def _choices(self) -> dict[str, tuple[str, ...]]:
        algorithms = ("dpmsolver++", "sde-dpmsolver++")
        return {**super()._choices(), "algorithm_type": algorithms, "solver_type": SOLVER_TYPES}

    def _even_levels(self, steps: int) -> Array:
        """Noise levels at even positions, (steps,), of float32 all the way as diffusers has them."""
        return self._levels_at(linspace(0, 1, steps))

    def set_timesteps(self, num_inference_steps: int | None = None, device: object = None) -> None:
        """Chooses the noise levels to visit.

        Raises:
            ValueError: below 1, or more than the model was trained with.
        """
        del device
        steps = check_steps(num_inference_steps, len(self))
        last = 0.0 if self.config["final_sigmas_type"] == "zero" else self.config["sigma_min"]
        self._visit(self._even_levels(steps), last)
        self.num_inference_steps = steps
        self.model_outputs = []
        self._restart()

    def convert_model_output(self, model_output: Array, sample: Array) -> Array:
        """The clean sample that a model's output stands for at the current place; thresholded if asked for.

        Args:
            model_output: what the model predicts, of the sample's shape.
            sample: (batch, ...), not scaled.
        """
        clean = self.precondition_outputs(sample, model_output, self.sigmas[self._step_index or 0])
        if self.config["thresholding"]:
            ratio, most = self.config["dynamic_thresholding_ratio"], self.config["sample_max_value"]
            clean = prediction.dynamic_threshold(clean, ratio, most)
        return clean

    def step(
        self,
        model_output: Array,
        timestep: float,
        sample: Array,
        generator: Generators | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample at the next noise level.

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: the schedule's, in order: the steps before are remembered.
            sample: (batch, ...), not scaled.
            generator: where the noise of "sde-dpmsolver++" comes from.
            return_dict: a `SchedulerOutput` when true, else a tuple.
        """
        check_step(self, model_output, sample)
        index = self._place(timestep)
        wide = widened(sample)
        clean = self.convert_model_output(widened(model_output), wide)
        self.model_outputs = [*self.model_outputs, clean][-self.config["solver_order"] :]
        order, noise = multistep_order(self.config, len(self.model_outputs), index, len(self.timesteps)), None
        if self.config["algorithm_type"] == "sde-dpmsolver++":
            noise = randn(model_output.shape, require_generator(generator), model_output.dtype)
        previous_sample = multistep_update(
            self.config["algorithm_type"],
            self.config["solver_type"],
            [self._level(place) for place in range(index - order + 1, index + 2)],
            self.model_outputs[-order:],
            wide,
            noise,
        ).astype(sample.dtype, copy=False)
        self._step_index = index + 1
        return SchedulerOutput(previous_sample) if return_dict else (previous_sample,)

    def _level(self, index: int) -> Level:
        return noise_level(np.float32(1), self.sigmas[index])
