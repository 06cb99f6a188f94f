"""UniPC, a predictor and a corrector of any order in log-SNR (Zhao et al. 2023, arXiv:2302.04867)."""

from collections.abc import Sequence
from math import exp, factorial
from typing import Any

import numpy as np

from .base import Array, Scheduler, SchedulerOutput, check_step
from .flow_match import shifted, stretched
from .multistep_solver import MultistepSolver
from .sigmas import respaced_sigmas
from .solver_levels import Sigmas, flow_levels, solver_timesteps
from .spacing import check_steps
from .weighted_sum import weighted_sum

SOLVER_TYPES = ("bh1", "bh2")

_OTHER_SOLVER_TYPES = ("midpoint", "heun", "logrho")  # of DPM-Solver and DEIS: the default here, as in diffusers
_MOST_NOISE = 1 - 1e-6  # of flow sigmas, so that log-SNR is finite


class UniPCMultistepScheduler(MultistepSolver):
    """UniPC in its B(h) version: each model call corrects the sample that it was made for and predicts the next.

    Checked against diffusers step by step. Where diffusers gives NaN, because a step ends without noise ("bh1",
    `predict_x0` false, `lower_order_final` false) or levels repeat, the order is lowered here.
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
        predict_x0: bool = True,
        solver_type: str = "bh2",
        lower_order_final: bool = True,
        disable_corrector: Sequence[int] = [],
        solver_p: Scheduler | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        final_sigmas_type: str = "zero",
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        shift_terminal: float | None = None,
    ) -> None:
        """See diffusers' `UniPCMultistepScheduler` for the options; they have its names, defaults and meanings.

        Raises:
            ValueError: an option has a value that is not known, or `shift_terminal` is given without flow sigmas.
        """
        if solver_type in _OTHER_SOLVER_TYPES:
            solver_type = "bh2"
        super().__init__(locals())
        if solver_order < 1:
            raise ValueError(f"solver_order must be 1 or more, got {solver_order}")
        if shift_terminal is not None and not use_flow_sigmas:
            raise ValueError("shift_terminal needs use_flow_sigmas")
        self.predict_x0, self.disable_corrector, self.solver_p = predict_x0, disable_corrector, solver_p
        self._start: tuple[Array, int] | None = None

    def _choices(self) -> dict[str, tuple[str, ...]]:
        return {
            "solver_type": SOLVER_TYPES,
            "final_sigmas_type": ("zero", "sigma_min"),
            "time_shift_type": ("exponential", "linear"),
        }

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: object = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Chooses the noise levels to visit: so many, or the caller's own.

        Args:
            num_inference_steps: how many.
            device: means nothing here.
            sigmas: own flow sigmas, from high to low and without the last, which are shifted too.
            mu: the logarithm of the shift ("exponential") or the shift ("linear"), for `use_dynamic_shifting`.

        Raises:
            ValueError: the number is out of range, `mu` is missing, or the configuration spaces the levels itself.
        """
        del device
        if self.config["use_dynamic_shifting"] and mu is None:
            raise ValueError("mu must be given where use_dynamic_shifting is true")
        own = None if sigmas is None else np.asarray(sigmas, dtype=np.float64)
        if own is not None and not self.config["use_flow_sigmas"]:
            raise ValueError("sigmas can be given with use_flow_sigmas only")
        steps = check_steps(num_inference_steps if own is None else len(own), len(self))
        if self.config["use_flow_sigmas"]:
            levels = self._flow_levels(steps, own, mu)
            last, visited = float(levels[-1]), (levels * len(self)).astype(np.int64)
        else:
            spacing, offset = self.config["timestep_spacing"], self.config["steps_offset"]
            levels, last, visited = self._spaced_levels(solver_timesteps(spacing, len(self), steps, offset))
        self._visit(levels, 0.0 if self.config["final_sigmas_type"] == "zero" else last, visited)
        self._start = None
        if self.solver_p is not None:
            self.solver_p.set_timesteps(steps)

    def _flow_levels(self, steps: int, own: Sigmas | None, mu: float | None) -> Sigmas:
        """Levels between clean (0) and noise (1), (steps,): spaced as others are, or evenly or the caller's, shifted.

        diffusers takes "exponential" and "beta" spaced levels as they are, above 1, and gives NaN.
        """
        ends = float(self._training_sigmas[0]), float(self._training_sigmas[-1])
        respaced = respaced_sigmas(self.config, *ends, steps)
        if respaced is not None:
            if own is not None:
                raise ValueError("this scheduler's configuration spaces the noise levels: it takes no sigmas")
            return flow_levels(respaced)
        even = np.linspace(1, 1 / len(self), steps + 1)[:-1]
        levels = self._shift(even if own is None else own, mu)
        if self.config["shift_terminal"]:
            levels = stretched(levels, self.config["shift_terminal"])
        return np.append(min(levels[0], _MOST_NOISE), levels[1:])

    def _shift(self, levels: Sigmas, mu: float | None) -> Sigmas:
        shift = self.config["flow_shift"]
        if self.config["use_dynamic_shifting"]:
            assert mu is not None
            shift = exp(mu) if self.config["time_shift_type"] == "exponential" else mu
        return shifted(levels, shift)

    def stretch_shift_to_terminal(self, t: Array) -> Array:
        """Levels stretched so that the last is the configuration's `shift_terminal`."""
        return stretched(t, self.config["shift_terminal"])

    def step(self, model_output: Array, timestep: float, sample: Array, return_dict: bool = True) -> Any:
        """The sample at the next noise level; the one that is given is corrected first (algorithms 1 and 2).

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: the schedule's, in order: the steps before are remembered.
            sample: (batch, ...).
            return_dict: a `SchedulerOutput` when true, else a tuple.
        """
        check_step(self, model_output, sample)
        index, dtype = self._place(timestep), sample.dtype
        output = self.convert_model_output(model_output, sample=sample)
        if self._start is not None and index - 1 not in self.disable_corrector:
            before, order = self._start
            weights = self._weights(index - 1, order, corrector=True)
            sample = weighted_sum(weights, [before, *self.model_outputs[: -order - 1 : -1], output])
        self._remember(output, self.config["solver_order"])
        left = len(self.timesteps) - index if self.config["lower_order_final"] else self.config["solver_order"]
        order = self._usable(index, left)
        if self.solver_p is not None:
            previous_sample = self.solver_p.step(model_output, timestep, sample).prev_sample
        else:
            weights = self._weights(index, order, corrector=False)
            previous_sample = weighted_sum(weights, [sample, *self.model_outputs[: -order - 1 : -1]])
        self._start = sample, order
        self._step_index = index + 1
        previous_sample = np.asarray(previous_sample, dtype=dtype)
        return SchedulerOutput(previous_sample) if return_dict else (previous_sample,)

    def convert_model_output(self, model_output: Array, *, sample: Array) -> Array:
        """What the solver works on: the predicted clean sample (`predict_x0`), or the predicted noise.

        The latter is not thresholded, as in diffusers.
        """
        convert = self._clean_output if self.predict_x0 else self._noise_output
        return convert(model_output, sample, threshold=self.predict_x0 and self.config["thresholding"])

    def _weights(self, index: int, order: int, *, corrector: bool) -> list[float]:
        """What the sample at a place in the schedule, and the model outputs there and before, add to the next sample.

        The paper's UniC for the corrector, which has the model output of the next place too, weighed last; its UniP for
        the predictor; for predicted noise or, likewise, predicted clean samples.
        """
        places = index + 1 - np.arange(order + 1)  # the next, this one, those before
        alpha, sigma = self._alpha_sigma(self.sigmas[places].astype(np.float64))
        predicted, other = (alpha, sigma) if self.predict_x0 else (sigma, alpha)
        keep = other[0] / other[1]
        first = predicted[0] - keep * predicted[1]  # of a polynomial of degree 0: -predicted[0] * (exp(h) - 1)
        if order == 1 and not corrector:
            return [keep, first]
        log_ratio = np.log(other / predicted)
        h = log_ratio[0] - log_ratio[1]
        ratios = (log_ratio[2:] - log_ratio[1]) / h  # 0 at this place, 1 at the next
        if corrector:
            ratios = np.append(ratios, 1.0)
        scale = h if self.config["solver_type"] == "bh1" else np.expm1(h)
        differences = -predicted[0] * scale * _combination(ratios, h, scale) / ratios
        return [keep, first - differences.sum(), *differences]


def _combination(ratios: Array, h: float, scale: float) -> Array:
    """The a of theorem 3.1: how the differences of model outputs go into a step of h; scale is B(h).

    Where there is one difference, it is 1/2 whatever B(h) is, as the authors have it.
    """
    if len(ratios) == 1:
        return np.array([0.5])
    phi, moments = np.expm1(h) / h, []
    for power in range(1, len(ratios) + 1):
        phi = (phi - 1 / factorial(power)) / h  # phi_(n+1) from phi_n
        moments.append(factorial(power) * h * phi / scale)
    return np.linalg.solve(np.vander(ratios, increasing=True).T, np.array(moments))
