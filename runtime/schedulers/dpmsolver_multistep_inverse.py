"""DPM-Solver++ backwards, from a clean sample to the noise that it came from (Lu et al., arXiv:2211.01095)."""

from collections.abc import Sequence

import numpy as np

from .dpmsolver_multistep import MultistepDPMSolver
from .sigmas import respaced_sigmas, timestep_of_sigma
from .solver_levels import Sigmas, Timesteps, solver_levels, solver_timesteps
from .spacing import check_steps


class DPMSolverMultistepInverseScheduler(MultistepDPMSolver):
    """Multistep updates towards noise, deterministic ones. Checked against diffusers step by step."""

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
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        lambda_min_clipped: float = -float("inf"),
        variance_type: str | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ) -> None:
        """See diffusers' `DPMSolverMultistepInverseScheduler` for the options, which have its names and defaults.

        Raises:
            ValueError: an "sde-" algorithm is asked for: towards noise its variance is negative, and diffusers' NaN.
        """
        super().__init__(locals())
        self.sigmas = self._training_sigmas
        self.timesteps = self.timesteps[::-1].copy()

    def _choices(self) -> dict[str, tuple[str, ...]]:
        return {**super()._choices(), "algorithm_type": ("dpmsolver", "dpmsolver++")}

    def set_timesteps(self, num_inference_steps: int | None = None, device: object = None) -> None:
        """Chooses the noise levels to visit, from clean to noisy.

        A timestep that several levels share is visited once, while all the levels stay, as in diffusers: of Karras'
        levels, which are close at the clean end, the noisiest are then not reached.

        Raises:
            ValueError: below 1, or more than the model was trained with.
        """
        del device
        steps = check_steps(num_inference_steps, len(self))
        levels, last, timesteps = self._rising_levels(steps)
        self._visit(levels, last, timesteps)

    def _rising_levels(self, steps: int) -> tuple[Sigmas, float, Timesteps]:
        """The noise levels, that of the last step's end, and timesteps: those of sampling, the other way round."""
        training = self._training_sigmas
        if self.config["use_flow_sigmas"]:  # diffusers leaves these falling
            levels, timesteps = solver_levels(self.config, training, np.zeros(steps, np.int64))
            return levels, levels[-1], timesteps
        respaced = respaced_sigmas(self.config, float(training[-1]), float(training[0]), steps)
        if respaced is not None:
            visited = timestep_of_sigma(respaced, np.log(training))
            rounded = np.unique(visited.round()) if self.config["use_karras_sigmas"] else visited
            return respaced, respaced[-1], rounded.astype(np.int64)
        end = self._training_end()
        timesteps = rising_timesteps(
            self.config["timestep_spacing"], len(self), steps, self.config["steps_offset"], end
        )
        return np.interp(timesteps, np.arange(len(training)), training), float(training[end - 1]), np.unique(timesteps)


def rising_timesteps(spacing: str, train_steps: int, steps: int, offset: int, end: int) -> Timesteps:
    """Timesteps from clean to noisy, (steps,), without the noisy end; see `solver_timesteps`."""
    if spacing == "linspace":
        return np.linspace(0, end - 1, steps + 1).round()[:-1].astype(np.int64)
    if spacing == "leading":
        return np.arange(steps) * (end // (steps + 1)) + offset
    return solver_timesteps(spacing, train_steps, steps, offset, end)[::-1]
