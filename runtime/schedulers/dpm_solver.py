"""What DPM-Solver's schedulers have in common: their options, their noise levels, and what the model's output means."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Array
from .dpm_solver_updates import ALGORITHM_TYPES, SOLVER_TYPES, Level, noise_level
from .multistep_solver import FLOW, MultistepSolver
from .sigmas import SPACERS
from .solver_levels import solver_levels, solver_timesteps
from .spacing import check_steps

#: options of DEIS and UniPC, and what DPM-Solver makes of them, as diffusers does
ALIASES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "algorithm_type": {"deis": "dpmsolver++"},
        "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
    }
)
_ORDERS = (1, 2, 3)
_SPACED_LEVELS = (*SPACERS, "use_lu_lambdas", "use_flow_sigmas")  # options that leave no choice of timesteps


class DPMSolverScheduler(MultistepSolver, abstract=True):
    """A scheduler of DPM-Solver's formulas."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """As the parent's.

        Raises:
            ValueError: an option has a value that is not known, or two do not go together.
        """
        known = {option: names.get(options[option], options[option]) for option, names in ALIASES.items()}
        super().__init__({**options, **known})
        config = self.config
        if config["solver_order"] not in _ORDERS:
            raise ValueError(
                f"solver_order must be one of {', '.join(map(str, _ORDERS))}, got {config['solver_order']}"
            )
        if self._integrates_noise:
            if config["prediction_type"] == FLOW:
                raise ValueError(f"{FLOW} needs an algorithm_type of the clean sample, such as dpmsolver++")
            if config.get("final_sigmas_type") == "zero":
                raise ValueError(f"algorithm_type {config['algorithm_type']} needs final_sigmas_type sigma_min")

    def _choices(self) -> dict[str, tuple[str, ...]]:
        return {
            "algorithm_type": ALGORITHM_TYPES,
            "solver_type": SOLVER_TYPES,
            "final_sigmas_type": ("zero", "sigma_min"),
            "time_shift_type": ("exponential",),
        }

    @property
    def _integrates_noise(self) -> bool:
        """Whether the solver works on predictions of the noise, rather than of the clean sample."""
        return not self.config["algorithm_type"].endswith("++")

    def _training_end(self) -> int:
        """One past the noisiest timestep to visit: those whose lambda is below `lambda_min_clipped` are left out."""
        alpha_bar = self.alphas_cumprod
        log_ratio = np.log(np.sqrt(alpha_bar)) - np.log(np.sqrt(1 - alpha_bar))
        return len(self) - int(np.searchsorted(log_ratio[::-1], self.config["lambda_min_clipped"]))

    def _set_levels(
        self,
        num_inference_steps: int | None,
        timesteps: Sequence[int] | None,
        mu: float | None,
        *,
        spacing: str = "linspace",
        offset: int = 0,
        rounded: bool = True,
    ) -> None:
        """Chooses the noise levels, from the noisy end to the last one, and the timesteps that they belong to.

        Raises:
            ValueError: not exactly one of the first two is given, or it is not possible.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("give exactly one of num_inference_steps and timesteps")
        spaced_by_level = any(self.config.get(option) for option in _SPACED_LEVELS)
        if timesteps is not None:
            if spaced_by_level:
                raise ValueError("this scheduler's configuration spaces the noise levels: it takes no timesteps")
            visited = self._checked_timesteps(timesteps)
        else:
            steps = check_steps(num_inference_steps, len(self))
            visited = np.zeros(steps, dtype=np.int64)  # where the levels are spaced, their number is all that counts
            if not spaced_by_level:
                visited = solver_timesteps(spacing, len(self), steps, offset, self._training_end())
        config = {**self.config, **self._shift(mu)}
        levels, visited = solver_levels(config, self._training_sigmas, visited, rounded=rounded)
        last = float(self._training_sigmas[0]) if self.config["final_sigmas_type"] == "sigma_min" else 0.0
        self._visit(levels, last, visited)

    def _checked_timesteps(self, timesteps: Sequence[int]) -> NDArray[np.int64]:
        """The caller's own timesteps."""
        own = np.asarray(timesteps, dtype=np.int64)
        if own.ndim != 1 or not own.size or np.any(np.diff(own) >= 0) or own[0] >= len(self) or own[-1] < 0:
            raise ValueError(f"timesteps must fall, from below {len(self)} to 0 at the least")
        return own

    def _shift(self, mu: float | None) -> dict[str, float]:
        """The shift of the flow's noise levels that depends on the picture's size; nothing if it does not."""
        if mu is None:
            return {}
        if not self.config["use_dynamic_shifting"]:
            raise ValueError("mu needs a scheduler with use_dynamic_shifting")
        return {"flow_shift": math.exp(mu)}

    def _level(self, index: int) -> Level:
        """The noise level at a place in the schedule."""
        alpha, sigma = self._alpha_sigma(self.sigmas[index])
        return noise_level(np.float32(alpha), np.float32(sigma))

    def convert_model_output(self, model_output: Array, sample: Array) -> Array:
        """The prediction that the solver integrates, of the noise or of the clean sample, at the current place.

        Args:
            model_output: what the model predicts, of the sample's shape.
            sample: (batch, ...).
        """
        threshold = self.config["thresholding"]
        if self._integrates_noise:
            return self._noise_output(model_output, sample, threshold=threshold)
        return self._clean_output(model_output, sample, threshold=threshold)

    def _without_variance(self, model_output: Array, sample: Array) -> Array:
        """The prediction of a model that predicts its variance too, in more channels: the solver needs none."""
        learned = self.config["variance_type"] in ("learned", "learned_range")
        if learned and self.config["prediction_type"] == "epsilon":
            return model_output[:, : sample.shape[1]]
        return model_output
