"""DPM-Solver's formulas, from one noise level to another (Lu et al., arXiv:2206.00927 and arXiv:2211.01095).

Between two levels the linear part of the ODE is solved exactly. What is left is an integral of the model's prediction,
seen as a polynomial in lambda = log(alpha / sigma): its slope and curvature come from predictions at several levels,
and the integrals of its terms are known.

An update is linear in the predictions. So it is worked out on their unit vectors m0, m1, m2, which gives each one's
weight, and the arrays are passed over once.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .base import Array
from .weighted_sum import weighted_sum

Weights = NDArray[np.float32]

#: those with "++" work on predictions of the clean sample, the others on predictions of the noise; "sde-" adds noise
ALGORITHM_TYPES = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
#: how the slope's integral is taken: "midpoint" approximates it (at the second order), "heun" does not
SOLVER_TYPES = ("midpoint", "heun")

_FEW_STEPS = 15  # with fewer, `lower_order_final` steadies the last two


class Level(NamedTuple):
    """A noise level: samples there are alpha * clean + sigma * noise."""

    alpha: np.float32
    sigma: np.float32
    log_ratio: np.float32  # lambda = log(alpha / sigma), half of the log-SNR


def noise_level(alpha: np.float32, sigma: np.float32) -> Level:
    """The level of samples that are alpha * clean + sigma * noise; sigma may be 0."""
    return Level(alpha, sigma, _log(alpha) - _log(sigma))


def multistep_order(config: Mapping[str, Any], remembered: int, index: int, steps: int) -> int:
    """The order of a multistep update: lower in the beginning, for want of predictions, and at the end if asked for.

    Args:
        config: of the scheduler: `lower_order_final`, `euler_at_final`, `final_sigmas_type`.
        remembered: how many predictions there are.
        index: of the step.
        steps: of the schedule.
    """
    left = steps - index
    steadied = config["lower_order_final"] and steps < _FEW_STEPS
    if left == 1 and (steadied or config["euler_at_final"] or config.get("final_sigmas_type") == "zero"):
        return 1
    return min(remembered, 2) if left == 2 and steadied else remembered


def multistep_update(
    algorithm_type: str,
    solver_type: str,
    levels: Sequence[Level],
    outputs: Sequence[Array],
    sample: Array,
    noise: Array | None = None,
) -> Array:
    """The sample at the next level, from predictions at this one and at those before it: as many as the order.

    Algorithm 2 of arXiv:2211.01095 at the second order. The curvature at the third is half of what the polynomial has,
    as in the authors' code and in diffusers: it converges at the second order.

    Args:
        algorithm_type: one of `ALGORITHM_TYPES`.
        solver_type: one of `SOLVER_TYPES`.
        levels: of the outputs, then the next one.
        outputs: the predictions, newest last: one to three.
        sample: (batch, ...), at the newest output's level.
        noise: of variance 1, for the "sde-" algorithms.
    """
    start, *older = _apart(levels[-2::-1], outputs[::-1])
    step = _Step.between(algorithm_type, start.level, levels[-1])
    nodes = [start, *older] if step.h else [start]  # a step of no length has no other terms
    m0, *m = np.eye(len(nodes), dtype=np.float32)
    weights = step.first * m0
    if len(nodes) == 2:
        weights = weights + step.of_slope(solver_type) * (m[0] - m0) / step.ratio(nodes[1])
    elif len(nodes) == 3:
        r0, r1 = -step.ratio(nodes[1]), step.ratio(nodes[1]) - step.ratio(nodes[2])
        near, far = (m0 - m[0]) / r0, (m[0] - m[1]) / r1
        curve = (near - far) / (r0 + r1)
        weights = weights + step.second * (near + r0 * curve) + step.third * curve
    return step.applied(sample, weights, nodes, noise)


def singlestep_update(
    algorithm_type: str,
    solver_type: str,
    levels: Sequence[Level],
    outputs: Sequence[Array],
    sample: Array,
    noise: Array | None = None,
) -> Array:
    """The sample at the next level, from where the oldest of the predictions was made: as many as the order.

    Algorithms 1 and 2 of arXiv:2206.00927, 1 of arXiv:2211.01095. At the third order "midpoint" takes the slope from
    the first prediction and the last alone, as the papers do, where the last is two thirds of the way.

    Args:
        algorithm_type: one of `ALGORITHM_TYPES`.
        solver_type: one of `SOLVER_TYPES`.
        levels: of the outputs, then the next one.
        outputs: the predictions, newest last: one to three.
        sample: (batch, ...), at the oldest output's level.
        noise: of variance 1, for the "sde-" algorithms.
    """
    start, *newer = _apart(levels[:-1], outputs)
    step = _Step.between(algorithm_type, start.level, levels[-1])
    nodes = [start, *newer] if step.h else [start]
    m0, *m = np.eye(len(nodes), dtype=np.float32)
    weights = step.first * m0
    if len(nodes) == 2:
        weights = weights + step.of_slope(solver_type) * (m[0] - m0) / step.ratio(nodes[1])
    elif len(nodes) == 3:
        r1, r0 = step.ratio(nodes[1]), step.ratio(nodes[2])
        near, far = (m[0] - m0) / r1, (m[1] - m0) / r0
        if solver_type == "midpoint":
            weights = weights + step.second * far
        else:
            slope, curve = (r0 * near - r1 * far) / (r0 - r1), 2 * (far - near) / (r0 - r1)
            weights = weights + step.second * slope + step.third * curve
    return step.applied(sample, weights, nodes, noise)


class _Node(NamedTuple):
    """A prediction, and where it was made."""

    level: Level
    output: Array


def _apart(levels: Sequence[Level], outputs: Sequence[Array]) -> list[_Node]:
    """The predictions without those at a level that an earlier one in the list has: they tell nothing of the slope."""
    nodes: dict[float, _Node] = {}
    for level, output in zip(levels, outputs, strict=True):
        nodes.setdefault(float(level.log_ratio), _Node(level, output))
    return list(nodes.values())


class _Step(NamedTuple):
    """The way from one level to another: scale * sample + weight * integrals + deviation * noise."""

    start: np.float32  # lambda
    h: np.float32  # how far the next lambda is
    z: np.float32  # the integrals are of exp, from 0 to here
    scale: np.float32
    weight: np.float32
    deviation: np.float32 | None = None  # of the noise that is added, if any is
    half: np.float32 = np.float32(0.5)

    @classmethod
    def between(cls, algorithm_type: str, start: Level, end: Level) -> "_Step":
        """Proposition 3.1 of arXiv:2206.00927, 4.1 of arXiv:2211.01095, and section 6 there for the SDE.

        Third order of "sde-dpmsolver++": diffusers has the sign of a half wrong, and so have its pictures and these.
        """
        begin, h = start.log_ratio, end.log_ratio - start.log_ratio
        noise_left, clean_left = end.sigma / start.sigma, end.alpha / start.alpha
        if algorithm_type == "dpmsolver":
            return cls(begin, h, h, clean_left, -end.sigma)
        if algorithm_type == "dpmsolver++":
            return cls(begin, h, -h, noise_left, -end.alpha)
        if algorithm_type == "sde-dpmsolver":
            return cls(begin, h, h, clean_left, -2 * end.sigma, end.sigma * np.sqrt(_exp(2 * h) - 1))
        deviation = end.sigma * np.sqrt(1 - _exp(-2 * h))
        return cls(begin, h, -2 * h, noise_left * _exp(-h), -end.alpha, deviation, np.float32(-0.5))

    @property
    def first(self) -> np.float32:
        """The integral of the prediction's value."""
        return _exp(self.z) - 1

    @property
    def second(self) -> np.float32:
        """The integral of its slope."""
        return self.first / self.z - 1

    @property
    def third(self) -> np.float32:
        """The integral of its curvature."""
        return (self.first - self.z) / self.z**2 - self.half

    def of_slope(self, solver_type: str) -> np.float32:
        """The integral of the slope, as a second-order solver takes it."""
        return self.first / 2 if solver_type == "midpoint" else self.second

    def ratio(self, node: _Node) -> np.float32:
        """Where a prediction was made: 0 at the start of the step, 1 at its end, negative before it."""
        return (node.level.log_ratio - self.start) / self.h

    def applied(self, sample: Array, weights: Weights, nodes: Sequence[_Node], noise: Array | None) -> Array:
        """The sample at the end of the step, from the weights of the predictions."""
        factors = [self.scale, *(self.weight * weights)]
        arrays = [sample, *(node.output for node in nodes)]
        if self.deviation is not None:
            assert noise is not None
            factors, arrays = [*factors, self.deviation], [*arrays, noise]
        return weighted_sum(factors, arrays)


def _log(value: np.float32) -> np.float32:
    return np.float32(math.log(value) if value > 0 else -math.inf)


def _exp(value: np.float32) -> np.float32:
    return np.float32(math.exp(value))
