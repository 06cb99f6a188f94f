"""SA-Solver, stochastic Adams methods for the reverse SDE (Xue et al. 2023, arXiv:2309.05019)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..random import randn
from .base import Array, Generators, Scheduler, SchedulerOutput, check_step, require_generator
from .multistep_solver import MultistepSolver
from .solver_levels import solver_timesteps
from .spacing import check_steps
from .weighted_sum import weighted_sum

_MOST_ORDER = 4


class _Start(NamedTuple):
    """Where a step started: what its correction needs again."""

    sample: Array
    noise: Array
    tau: float


def _tau(timestep: float) -> float:
    """The strength of the noise where nobody chose one: none at either end."""
    return 1.0 if 200 <= timestep <= 800 else 0.0


class SASolverScheduler(MultistepSolver):
    """SA-Solver: each model call corrects the sample that it was made for and predicts the next, with noise.

    Checked against diffusers step by step, noise included. The weights are computed in float64; from the third order
    on diffusers' are small differences of large float32 numbers, and with 50 steps wrong in the fourth digit.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        predictor_order: int = 2,
        corrector_order: int = 2,
        prediction_type: str = "epsilon",
        tau_func: Callable[[float], float] | None = None,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "data_prediction",
        lower_order_final: bool = True,
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
        """See diffusers' `SASolverScheduler` for the options; they have its names, defaults and meanings.

        `tau_func` gives the strength of the noise at a timestep: 0 for the ODE, 1 for the SDE of DDPM.

        Raises:
            ValueError: an option has a value that is not known, or an order lies outside 1 to 4.
        """
        super().__init__(locals())
        for option in ("predictor_order", "corrector_order"):
            if not 1 <= self.config[option] <= _MOST_ORDER:
                raise ValueError(f"{option} must lie between 1 and {_MOST_ORDER}, got {self.config[option]}")
        self.tau_func = _tau if tau_func is None else tau_func
        self.predict_x0 = algorithm_type == "data_prediction"
        self._start: _Start | None = None

    def _choices(self) -> dict[str, tuple[str, ...]]:
        return {"algorithm_type": ("data_prediction", "noise_prediction")}

    def set_timesteps(self, num_inference_steps: int | None = None, device: object = None) -> None:
        """Chooses the noise levels to visit; none noisier than `lambda_min_clipped`.

        Raises:
            ValueError: the number is out of range.
        """
        del device
        steps = check_steps(num_inference_steps, len(self))
        alpha, sigma = np.sqrt(self.alphas_cumprod), np.sqrt(1 - self.alphas_cumprod)
        log_ratio = np.log(alpha) - np.log(sigma)
        clipped = int(np.searchsorted(log_ratio[::-1], np.float32(self.config["lambda_min_clipped"])))
        spacing, offset = self.config["timestep_spacing"], self.config["steps_offset"]
        timesteps = solver_timesteps(spacing, len(self), steps, offset, len(self) - clipped)
        self._visit(*self._spaced_levels(timesteps))
        self._start = None

    def step(
        self,
        model_output: Array,
        timestep: float,
        sample: Array,
        generator: Generators | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample at the next noise level; the one that is given is corrected first (algorithm 1).

        Args:
            model_output: what the model predicts, of the sample's shape; more channels where the variance is learned,
                which come last and mean nothing here.
            timestep: the schedule's, in order: the steps before are remembered.
            sample: (batch, channels, ...).
            generator: where the noise comes from.
            return_dict: a `SchedulerOutput` when true, else a tuple.
        """
        if self.config["variance_type"] in ("learned", "learned_range"):
            model_output = model_output[:, : sample.shape[1]]
        check_step(self, model_output, sample)
        index, dtype = self._place(timestep), sample.dtype
        output = self.convert_model_output(model_output, sample=sample)
        corrects = self._start is not None and self.sigmas[index] != self.sigmas[index - 1]
        if corrects:
            assert self._start is not None
            order = min(self.config["corrector_order"], len(self.model_outputs) + 1, self._left(index) + 2)
            sample = self._moved(index - 1, self._start, index, [output, *self.model_outputs[:-order:-1]])
        most = max(self.config["predictor_order"], self.config["corrector_order"] - 1)
        self._remember(output, most)
        noise = randn(sample.shape, require_generator(generator), model_output.dtype)
        self._start = _Start(sample, noise, float(self.tau_func(timestep)))
        order = self._usable(index, min(self.config["predictor_order"], self._left(index)))
        moved = self._moved(index, self._start, index, self.model_outputs[: -order - 1 : -1])
        previous_sample = np.asarray(moved, dtype=dtype)
        self._step_index = index + 1
        return SchedulerOutput(previous_sample) if return_dict else (previous_sample,)

    def _left(self, index: int) -> int:
        """How many steps are left, which bounds the order if the configuration says so."""
        return len(self.timesteps) - index if self.config["lower_order_final"] else _MOST_ORDER

    def convert_model_output(self, model_output: Array, *, sample: Array) -> Array:
        """What the solver works on: the predicted clean sample, or the predicted noise, as `algorithm_type` says."""
        convert = self._clean_output if self.predict_x0 else self._noise_output
        return convert(model_output, sample, threshold=self.config["thresholding"])

    def add_noise(self, original_samples: Array, noise: Array, timesteps: Array | Sequence[float]) -> Array:
        """Clean samples with the noise of timesteps of the training, whatever is visited; as `DDPMScheduler` has it."""
        return Scheduler.add_noise(self, original_samples, noise, np.asarray(timesteps))

    def _moved(self, index: int, start: _Start, newest: int, outputs: Sequence[Array]) -> Array:
        """The sample at the place after one in the schedule: the paper's SA-Predictor, or its SA-Corrector.

        Args:
            index: where the step starts.
            start: the sample there, and the step's noise.
            newest: the place of the first of the model outputs: the start, or the next for the correction.
            outputs: newest first; their number is the order.
        """
        order, tau = len(outputs), start.tau
        places = [index + 1, index, *range(newest, newest - order, -1)]
        alpha, sigma = self._alpha_sigma(self.sigmas[places].astype(np.float64))
        log_ratio = np.log(alpha / sigma)  # lambda
        h, nodes = log_ratio[0] - log_ratio[1], log_ratio[2:] - log_ratio[0]
        if self.predict_x0:
            keep, gain = np.exp(-(tau**2) * h) * sigma[0] / sigma[1], (1 + tau**2) * alpha[0]
            deviation = sigma[0] * np.sqrt(-np.expm1(-2 * tau**2 * h))
            integrals = _integrals(order, h, 1 + tau**2)
            if order == 2:  # the slope's as if its weight were even, for few steps, as UniPC's
                integrals[1] = h**2 / 2 - h * integrals[0]
        else:
            keep, gain = alpha[0] / alpha[1], -(1 + tau**2) * sigma[0]
            deviation = tau * sigma[0] * np.sqrt(np.expm1(2 * h))
            integrals = _integrals(order, h, -1.0)
        weights = gain * np.linalg.solve(np.vander(nodes, increasing=True).T, integrals)
        factors, arrays = [keep, *weights], [start.sample, *outputs]
        if deviation:
            factors, arrays = [*factors, deviation], [*arrays, start.noise]
        return weighted_sum(factors, arrays)


def _integrals(count: int, h: float, rate: float) -> Array:
    """Of exp(rate * u) * u**k over u from -h to 0, for k from 0 to count - 1; by parts."""
    integrals = [-np.expm1(-rate * h) / rate]
    for power in range(1, count):
        integrals.append(-((-h) ** power * np.exp(-rate * h) + power * integrals[-1]) / rate)
    return np.array(integrals)
