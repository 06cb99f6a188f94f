"""What the schedulers of flow matching share (Lipman et al. 2022, arXiv:2210.02747; Liu et al. 2022, arXiv:2209.03003).

A sample is (1 - sigma) * clean + sigma * noise, with sigma from 1 to 0, and the model predicts its velocity,
noise - clean. The timestep is sigma times the number of training timesteps.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .base import Array
from .sigma_scheduler import SigmaScheduler


def shifted(sigmas: Array, shift: float) -> Array:
    """Noise levels moved towards noise, as large pictures need it (Esser et al., arXiv:2403.03206, equation 23)."""
    return np.asarray(shift * sigmas / (1 + (shift - 1) * sigmas))


def stretched(sigmas: Array, last: float) -> Array:
    """Noise levels stretched away from 1 so that the last is this one, as LTX has them.

    A last level of 1, which a single step has, cannot be stretched, and stays.
    """
    if sigmas[-1] == 1:
        return sigmas
    scale = (1 - sigmas[-1]) / (1 - last)
    return np.asarray(1 - (1 - sigmas) / scale)


class FlowMatchScheduler(SigmaScheduler, abstract=True):
    """A scheduler whose samples lie on the line between clean and noise; there are no betas.

    Attributes:
        sigma_min: the noise level of the first training timestep, shifted.
        sigma_max: of the last.
    """

    interchangeable = ()

    def __init__(self, options: Mapping[str, Any], shift: float) -> None:
        """Keeps the configuration and makes the training's noise levels."""
        super().__init__(options)
        falling = np.arange(len(self), 0, -1).astype(np.float32)
        self.sigmas = shifted(falling / len(self), shift)
        self.timesteps = self.sigmas * len(self)
        self.sigma_min, self.sigma_max = float(self.sigmas[-1]), float(self.sigmas[0])

    def _even_sigmas(self, steps: int) -> Array:
        """(steps,) from `sigma_max` to `sigma_min`, of float64."""
        return np.linspace(self.sigma_max, self.sigma_min, steps)

    def _alpha_sigma(self, sigma: Array) -> tuple[Array, Array]:
        return 1 - sigma, sigma


def moved(sample: Array, velocity: Array, width: Any) -> Array:
    """The sample after a step of a width in sigma, in its dtype; one new array is made."""
    result: Array = np.multiply(velocity, width, dtype=sample.dtype)
    result += sample
    return result
