"""Noise schedules of training: beta, the variance that each of the timesteps adds.

Everything is float32, computed in the order in which torch computes it: near the clean end the noise level is a
difference of numbers close to 1, and a last bit that differs there is a visible one later.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Betas = NDArray[np.float32]

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")

_MOST = 0.999  # of a beta, where a schedule would reach 1


def betas(schedule: str, beta_start: float, beta_end: float, steps: int) -> Betas:
    """The betas of a schedule, (steps,).

    Args:
        schedule: "linear" (DDPM, arXiv:2006.11239), "scaled_linear" (latent diffusion, arXiv:2112.10752),
            "squaredcos_cap_v2" (improved DDPM, arXiv:2102.09672, equation 17), "sigmoid" (GeoDiff, arXiv:2203.02923),
            "laplace" (arXiv:2407.03297) or "exp" (alpha bar falls as exp(-12 t)).
        beta_start: the first, where the schedule has one.
        beta_end: the last, likewise.
        steps: how many.
    """
    if schedule == "linear":
        return linspace(beta_start, beta_end, steps)
    if schedule == "scaled_linear":
        return linspace(beta_start**0.5, beta_end**0.5, steps) ** 2
    if schedule == "sigmoid":
        sigmoid = 1 / (1 + np.exp(-linspace(-6, 6, steps)))
        return np.asarray(sigmoid * np.float32(beta_end - beta_start) + np.float32(beta_start), dtype=np.float32)
    alpha_bar = {
        "squaredcos_cap_v2": _cosine_alpha_bar,
        "laplace": _laplace_alpha_bar,
        "exp": _exponential_alpha_bar,
    }[schedule]
    return _from_alpha_bar(alpha_bar, steps)


def trained_betas(values: Sequence[float] | NDArray[np.floating]) -> Betas:
    """Betas that a configuration lists.

    Raises:
        ValueError: they are not one row of numbers in [0, 1].
    """
    listed = np.asarray(values, dtype=np.float32)
    if listed.ndim != 1 or not listed.size or not np.all((listed >= 0) & (listed <= 1)):
        raise ValueError("trained_betas must be one row of numbers between 0 and 1")
    return listed


def zero_terminal_snr(betas: Betas) -> Betas:
    """The betas stretched so that the last timestep is noise alone (Lin et al., arXiv:2305.08891, algorithm 1)."""
    root = np.sqrt(alphas_cumprod(betas))
    first, last = root[0], root[-1]
    root = (root - last) * (first / (first - last))
    alpha_bar = root**2
    alphas = np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return np.asarray(1 - alphas, dtype=np.float32)


def alphas_cumprod(betas: Betas) -> NDArray[np.float32]:
    """Alpha bar, (steps,): how much of the clean sample's variance is left. Accumulated in float64, as torch does."""
    return np.cumprod((np.float32(1) - betas).astype(np.float64)).astype(np.float32)


def linspace(start: float, end: float, steps: int) -> Betas:
    """Evenly spaced numbers, (steps,), as torch makes them: from both ends, by fused multiply-adds of float32."""
    first, last = np.float32(start), np.float32(end)
    if steps == 1:
        return np.array([first])
    step = np.float64((last - first) / np.float32(steps - 1))
    index = np.arange(steps)
    up, down = first + step * index, last - step * (steps - 1 - index)  # fused: rounded once, to float32
    return np.where(index < steps // 2, up, down).astype(np.float32)


def _from_alpha_bar(alpha_bar: Callable[[float], float], steps: int) -> Betas:
    """The betas whose products of 1 - beta are alpha_bar(t) for t in [0, 1]."""
    ends = [(step / steps, (step + 1) / steps) for step in range(steps)]
    return np.array([min(1 - alpha_bar(after) / alpha_bar(before), _MOST) for before, after in ends], dtype=np.float32)


def _cosine_alpha_bar(time: float) -> float:
    return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace_alpha_bar(time: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - time) * math.log(1 - 2 * abs(0.5 - time) + 1e-6)
    snr = math.exp(log_snr)
    return math.sqrt(snr / (1 + snr))


def _exponential_alpha_bar(time: float) -> float:
    return math.exp(-12 * time)
