"""Churn: noise that is added before a step, to a higher level than the schedule's (Karras et al., arXiv:2206.00364)."""

import numpy as np

from ..random import randn
from .base import Array, Generators, require_generator

_MOST = 2**0.5 - 1  # of sigma


def raised_sigma(sigma: np.float32, steps: int, s_churn: float, s_tmin: float, s_tmax: float) -> np.float32:
    """The level that a step starts from: algorithm 2, line 5, with gamma as in its line 4.

    Args:
        sigma: the schedule's.
        steps: in how many the churn is spread.
        s_churn: how much of it there is.
        s_tmin: none below this sigma.
        s_tmax: none above this sigma.
    """
    gamma = min(s_churn / steps, _MOST) if s_tmin <= sigma <= s_tmax else 0.0
    return sigma * np.float32(1 + gamma)


def churned(
    sample: Array,
    sigma: np.float32,
    sigma_hat: np.float32,
    s_noise: float,
    generator: Generators | None,
    dtype: np.dtype[np.generic],
) -> Array:
    """The sample at the raised level: algorithm 2, line 6. Draws nothing where both levels are the same.

    Args:
        sample: (batch, ...), at the level `sigma`.
        sigma: the schedule's.
        sigma_hat: from `raised_sigma`.
        s_noise: the standard deviation of the noise.
        generator: where it comes from.
        dtype: in which it is drawn: the model output's.
    """
    if sigma_hat <= sigma:
        return sample
    noise = randn(sample.shape, require_generator(generator), dtype) * np.float32(s_noise)
    return np.asarray(sample + noise * (sigma_hat**2 - sigma**2) ** np.float32(0.5))
