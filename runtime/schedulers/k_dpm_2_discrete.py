"""DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, algorithm 1) as a midpoint method: `sample_dpm_2` of k-diffusion."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import Array
from .discrete_levels import Sigmas, discrete_levels
from .second_order import SecondOrderScheduler
from .sigmas import check_spacers, timestep_of_sigma, training_sigmas
from .spacing import check_steps


class DPMSolver2Scheduler(SecondOrderScheduler, abstract=True):
    """A step along the derivative at the middle of its log sigma."""

    prediction_types = ("epsilon", "v_prediction")

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:
        """See diffusers' scheduler of the same name for the options; they have its names, defaults and meanings."""
        super().__init__(locals())
        check_spacers(self.config)
        self._training_sigmas = training_sigmas(self.alphas_cumprod)
        self._visit_levels(len(self), None)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: object = None, num_train_timesteps: int | None = None
    ) -> None:
        """Chooses the noise levels to visit.

        Args:
            num_inference_steps: how many steps; there are twice as many timesteps less one.
            device: means nothing here.
            num_train_timesteps: how many training timesteps to spread them over; all when None.

        Raises:
            ValueError: below 1, or more than the model was trained with.
        """
        del device
        steps = check_steps(num_inference_steps, num_train_timesteps or len(self))
        self._visit_levels(steps, num_train_timesteps)
        self.num_inference_steps = steps
        self._restart()

    def _visit_levels(self, steps: int, train_steps: int | None) -> None:
        levels, timesteps = discrete_levels(self.config, self._training_sigmas, steps, train_steps)
        if self.config["use_karras_sigmas"]:
            timesteps = np.round(timesteps)
        ends = self._targets(levels)
        middles = np.sqrt(levels[:-2] * ends[:-1])  # in the middle of the logarithms
        between = timestep_of_sigma(middles, np.log(self._training_sigmas))
        self._visit(levels, timesteps, np.append(middles, np.float32(0)), between)
        self._ends = ends

    def _targets(self, levels: Sigmas) -> Sigmas:
        """Where the steps lead, (steps,): their next levels."""
        return levels[1:]


class KDPM2DiscreteScheduler(DPMSolver2Scheduler):
    """DPM-Solver-2 between noise levels. Checked against diffusers step by step.

    Each step but the last has two timesteps, its two calls of the model; a loop that starts at the second of them is
    refused, where diffusers goes on with the levels shifted by half a step.
    """

    def step(self, model_output: Array, timestep: float, sample: Array, return_dict: bool = True) -> Any:
        """The sample for the next call of the model: at the middle of the step, or at the next noise level.

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: the schedule's, in order: the first call of a step is remembered.
            sample: (batch, ...), not scaled.
            return_dict: a `SchedulerOutput` when true, else the tuple of its fields.
        """
        return self._output(*self._advance(model_output, timestep, sample), sample, return_dict)
