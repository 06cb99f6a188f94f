"""DPM-Solver with singlestep updates (Lu et al., arXiv:2206.00927), and DPM-Solver++'s (arXiv:2211.01095)."""

from collections.abc import Sequence
from typing import Any

from ..random import randn
from .base import Array, Generators, SchedulerOutput, check_step, require_generator
from .dpm_solver import DPMSolverScheduler
from .dpm_solver_updates import singlestep_update
from .precision import widened


class DPMSolverSinglestepScheduler(DPMSolverScheduler):
    """Groups of as many steps as the order, each from the group's start. Checked against diffusers step by step.

    Attributes:
        order_list: the order of each step, which is its place in its group.
    """

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
        lower_order_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -float("inf"),
        variance_type: str | None = None,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        """See diffusers' `DPMSolverSinglestepScheduler` for the options; they have its names, defaults and meanings."""
        super().__init__(locals())
        self.order_list = self.get_order_list(num_train_timesteps)
        self._start: Array | None = None  # the sample that the group of steps started from

    def _choices(self) -> dict[str, tuple[str, ...]]:
        return {**super()._choices(), "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver++")}

    def get_order_list(self, num_inference_steps: int) -> list[int]:
        """The order of each of so many steps: 1, 2, 3, 1, 2, 3 and so on.

        The last is of order 1 where it goes to a noise level of 0, or with `lower_order_final` where it would be of
        the full one. (diffusers also switches that option on, for good, where groups do not fill the steps.)
        """
        full = self.config["solver_order"]
        orders = [index % full + 1 for index in range(num_inference_steps)]
        filled = num_inference_steps % full == 0
        if self.config["final_sigmas_type"] == "zero" or (filled and self.config["lower_order_final"]):
            orders[-1] = 1
        return orders

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
        self._set_levels(num_inference_steps, timesteps, mu)
        self.order_list = self.get_order_list(len(self.timesteps))
        self._start = None

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
            model_output: what the model predicts, of the sample's shape; with a `variance_type`, channels after the
                sample's are left out.
            timestep: the schedule's, in order: the steps before are remembered.
            sample: (batch, channels, ...).
            generator: where the noise of "sde-dpmsolver++" comes from.
            return_dict: a `SchedulerOutput` when true, else a tuple.
        """
        model_output = self._without_variance(model_output, sample)
        check_step(self, model_output, sample)
        index = self._place(timestep)
        wide = widened(sample)
        self._remember(self.convert_model_output(widened(model_output), wide), self.config["solver_order"])
        order = min(self.order_list[index], len(self.model_outputs))  # image to image may start within a group
        if order == 1:
            self._start = wide
        assert self._start is not None
        noise = None
        if self.config["algorithm_type"].startswith("sde-"):
            noise = randn(sample.shape, require_generator(generator), sample.dtype)
        previous_sample = singlestep_update(
            self.config["algorithm_type"],
            self.config["solver_type"],
            [self._level(place) for place in range(index - order + 1, index + 2)],
            self.model_outputs[-order:],
            self._start,
            noise,
        ).astype(sample.dtype, copy=False)
        self._step_index = index + 1
        return SchedulerOutput(previous_sample) if return_dict else (previous_sample,)
