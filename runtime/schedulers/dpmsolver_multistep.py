"""DPM-Solver++ with multistep updates (Lu et al., arXiv:2211.01095), and DPM-Solver's (arXiv:2206.00927)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..random import randn
from .base import Array, Generators, SchedulerOutput, check_step, require_generator
from .dpm_solver import DPMSolverScheduler
from .dpm_solver_updates import multistep_order, multistep_update
from .precision import widened


class MultistepDPMSolver(DPMSolverScheduler, abstract=True):
    """A walk that takes the slope of the model's predictions from the steps before."""

    def step(
        self,
        model_output: Array,
        timestep: float,
        sample: Array,
        generator: Generators | None = None,
        variance_noise: Array | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample at the next noise level.

        Args:
            model_output: what the model predicts, of the sample's shape; with a `variance_type`, channels after the
                sample's are left out.
            timestep: the schedule's, in order: the steps before are remembered.
            sample: (batch, channels, ...).
            generator: where the "sde-" algorithms' noise comes from.
            variance_noise: that noise itself, instead.
            return_dict: a `SchedulerOutput` when true, else a tuple.
        """
        model_output = self._without_variance(model_output, sample)
        check_step(self, model_output, sample)
        index = self._place(timestep)
        wide = widened(sample)
        self._remember(self.convert_model_output(widened(model_output), wide), self.config["solver_order"])
        order = multistep_order(self.config, len(self.model_outputs), index, len(self.timesteps))
        previous_sample = multistep_update(
            self.config["algorithm_type"],
            self.config["solver_type"],
            [self._level(place) for place in range(index - order + 1, index + 2)],
            self.model_outputs[-order:],
            wide,
            self._noise(sample, generator, variance_noise),
        ).astype(sample.dtype, copy=False)
        self._step_index = index + 1
        return SchedulerOutput(previous_sample) if return_dict else (previous_sample,)

    def _noise(self, sample: Array, generator: Generators | None, variance_noise: Array | None) -> Array | None:
        """What a stochastic algorithm adds, of variance 1."""
        if not self.config["algorithm_type"].startswith("sde-"):
            return None
        if variance_noise is not None:
            return variance_noise
        return randn(sample.shape, require_generator(generator), np.float32)


class DPMSolverMultistepScheduler(MultistepDPMSolver):
    """DPM-Solver++(2M) and its relatives, one call of the model per step. Checked against diffusers step by step."""

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        solver_order: int = 2,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -float("inf"),
        variance_type: str | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        """See diffusers' `DPMSolverMultistepScheduler` for the options; they have its names, defaults and meanings."""
        super().__init__(locals())

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: object = None,
        mu: float | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Chooses the noise levels to visit: so many, or those of the caller's own timesteps.

        Args:
            num_inference_steps: how many.
            device: accepted, and means nothing here.
            mu: with `use_dynamic_shifting`, the logarithm of the shift of flow sigmas, of these steps alone.
            timesteps: instead of how many, falling.

        Raises:
            ValueError: not exactly one of the two is given, or it is not possible.
        """
        del device
        self._set_levels(
            num_inference_steps,
            timesteps,
            mu,
            spacing=self.config["timestep_spacing"],
            offset=self.config["steps_offset"],
            rounded=self.config["beta_schedule"] != "squaredcos_cap_v2",
        )
