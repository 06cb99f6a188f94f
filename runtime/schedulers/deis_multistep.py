"""DEIS, the diffusion exponential integrator sampler (Zhang and Chen 2022, arXiv:2204.13902)."""

from collections.abc import Sequence
from math import exp
from typing import Any

import numpy as np

from .base import Array, SchedulerOutput, check_step
from .multistep_solver import MultistepSolver
from .solver_levels import solver_timesteps
from .spacing import check_steps
from .weighted_sum import weighted_sum

_OTHER_ALGORITHM_TYPES = ("dpmsolver", "dpmsolver++")  # of DPM-Solver: the default here, as in diffusers
_OTHER_SOLVER_TYPES = ("midpoint", "heun", "bh1", "bh2")  # of DPM-Solver and UniPC, likewise
_FEW_STEPS = 15  # fewer end with steps of lower order


class DEISMultistepScheduler(MultistepSolver):
    """DEIS with a polynomial in log rho through the newest predictions of the noise: rhoAB-DEIS, of orders 1 to 3.

    Checked against diffusers step by step. `mu` shifts the flow sigmas of one picture; diffusers keeps it for those
    after that, hidden in the configuration.
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
        algorithm_type: str = "deis",
        solver_type: str = "logrho",
        lower_order_final: bool = True,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ) -> None:
        """See diffusers' `DEISMultistepScheduler` for the options; they have its names, defaults and meanings."""
        if algorithm_type in _OTHER_ALGORITHM_TYPES:
            algorithm_type = "deis"
        if solver_type in _OTHER_SOLVER_TYPES:
            solver_type = "logrho"
        super().__init__(locals())
        if solver_order < 1:
            raise ValueError(f"solver_order must be 1 or more, got {solver_order}")

    def _choices(self) -> dict[str, tuple[str, ...]]:
        return {"algorithm_type": ("deis",), "solver_type": ("logrho",), "time_shift_type": ("exponential",)}

    def set_timesteps(self, num_inference_steps: int, device: object = None, mu: float | None = None) -> None:  # type: ignore[override]
        """Chooses the noise levels to visit.

        Args:
            num_inference_steps: how many.
            device: means nothing here.
            mu: the logarithm of the shift of flow sigmas, in the place of `flow_shift`.

        Raises:
            ValueError: the number is out of range, or `mu` is given without `use_dynamic_shifting`.
        """
        del device
        steps = check_steps(num_inference_steps, len(self))
        config = dict(self.config)
        if mu is not None:
            if not config["use_dynamic_shifting"]:
                raise ValueError("mu needs use_dynamic_shifting")
            config["flow_shift"] = exp(mu)
        timesteps = solver_timesteps(config["timestep_spacing"], len(self), steps, config["steps_offset"])
        levels, last, visited = self._spaced_levels(timesteps, config)
        self._visit(levels, last, visited)

    def step(self, model_output: Array, timestep: float, sample: Array, return_dict: bool = True) -> Any:
        """The sample at the next noise level: the paper's rhoAB.

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: the schedule's, in order: the steps before are remembered.
            sample: (batch, ...).
            return_dict: a `SchedulerOutput` when true, else a tuple.
        """
        check_step(self, model_output, sample)
        index = self._place(timestep)
        self._remember(self.convert_model_output(model_output, sample=sample), self.config["solver_order"])
        order = min(self.config["solver_order"], 3)
        if self.config["lower_order_final"] and len(self.timesteps) < _FEW_STEPS:
            order = min(order, len(self.timesteps) - index)
        order = self._usable(index, order)
        alpha, sigma = self._alpha_sigma(self.sigmas[index + 1 - np.arange(order + 1)])  # next, this one, those before
        rho = sigma / alpha
        weights = [1 / alpha[1], *_integrals(rho[0], rho[1:])]
        arrays = [sample, *self.model_outputs[: -order - 1 : -1]]
        previous_sample = np.asarray(weighted_sum(alpha[0] * np.array(weights), arrays), dtype=sample.dtype)
        self._step_index = index + 1
        return SchedulerOutput(previous_sample) if return_dict else (previous_sample,)

    def convert_model_output(self, model_output: Array, *, sample: Array) -> Array:
        """What the solver works on: the predicted noise, beside the clean sample that is thresholded if need be."""
        return self._noise_output(model_output, sample, threshold=self.config["thresholding"])


def _integrals(end: Any, nodes: Array) -> list[Any]:
    """What the predictions at the nodes add to sample / alpha, from the first node to the end.

    A node's is the integral over rho of the polynomial in log rho that is 1 there and 0 at the others. In float32 as
    diffusers has them: with many steps they are small differences, and at the third order their rounding shows.

    Args:
        end: rho of the next level.
        nodes: rho of this level and of those before it, one to three.
    """
    if len(nodes) == 1:
        return [end - nodes[0]]
    antiderivative = _first_degree if len(nodes) == 2 else _second_degree
    rotations = [np.roll(nodes, -shift) for shift in range(len(nodes))]
    return [antiderivative(end, *nodes_) - antiderivative(nodes[0], *nodes_) for nodes_ in rotations]


def _first_degree(rho: Any, node: Any, other: Any) -> Any:
    """The integral of (log rho - log other) / (log node - log other)."""
    return rho * (-np.log(other) + np.log(rho) - 1) / (np.log(node) - np.log(other))


def _second_degree(rho: Any, node: Any, other: Any, another: Any) -> Any:
    """The integral of (log rho - log other) (log rho - log another), over the same with the node's log."""
    x, c, d = np.log(rho), np.log(other), np.log(another)
    integral = rho * (c * (d - x + 1) - d * x + d + x**2 - 2 * x + 2)
    return integral / ((np.log(node) - c) * (np.log(node) - d))
