"""Noise levels as sigma: the noise's deviation beside a sample of variance 1 (Karras et al., arXiv:2206.00364)."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RHO = 7.0  # of Karras et al., equation 5
_BETA = 0.6  # both parameters of the beta distribution


def training_sigmas(alphas_cumprod: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sigma of each training timestep, (train_steps,), from clean to noisy."""
    return np.asarray(((1 - alphas_cumprod) / alphas_cumprod) ** np.float32(0.5), dtype=np.float32)


def karras_sigmas(sigma_min: float, sigma_max: float, steps: int) -> NDArray[np.float64]:
    """Equation 5 of Karras et al., from high to low, (steps,)."""
    return karras_levels(np.linspace(0, 1, steps), sigma_min, sigma_max)


def karras_levels(ramp: NDArray[Any], sigma_min: float, sigma_max: float, rho: float = _RHO) -> NDArray[Any]:
    """Equation 5 of Karras et al. at positions from 0 (`sigma_max`) to 1, in their shape and dtype."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return np.asarray((high + ramp * (low - high)) ** rho)


def exponential_sigmas(sigma_min: float, sigma_max: float, steps: int) -> NDArray[np.float64]:
    """Evenly spaced logarithms, from high to low, (steps,)."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), steps))


def beta_sigmas(sigma_min: float, sigma_max: float, steps: int) -> NDArray[np.float64]:
    """Quantiles of a beta distribution (arXiv:2407.12173), from high to low, (steps,).

    Raises:
        ModuleNotFoundError: scipy is not installed.
    """
    try:
        from scipy.stats import beta
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("use_beta_sigmas needs scipy: pip install 'safelight[scipy]'") from error
    quantiles = beta.ppf(1 - np.linspace(0, 1, steps), _BETA, _BETA)
    return np.asarray(sigma_min + quantiles * (sigma_max - sigma_min))


#: option of a scheduler -> what spaces its noise levels when the option is true
SPACERS: Mapping[str, Callable[[float, float, int], NDArray[np.float64]]] = MappingProxyType(
    {
        "use_karras_sigmas": karras_sigmas,
        "use_exponential_sigmas": exponential_sigmas,
        "use_beta_sigmas": beta_sigmas,
    }
)


def check_spacers(config: Mapping[str, Any]) -> None:
    """Refuses a configuration that spaces its noise levels in two ways.

    Raises:
        ValueError: more than one of `SPACERS` is true.
    """
    if sum(bool(config.get(option)) for option in SPACERS) > 1:
        raise ValueError(f"only one of {', '.join(SPACERS)} can be true")


def respaced_sigmas(config: Mapping[str, Any], lowest: float, highest: float, steps: int) -> NDArray[np.float64] | None:
    """The noise levels as a configuration's `use_..._sigmas` spaces them, from high to low; None if it does not.

    Args:
        config: of a scheduler; its `sigma_min` and `sigma_max`, where it has them, take the place of the next two.
        lowest: of the levels that they replace.
        highest: likewise.
        steps: how many.
    """
    spacer = next((spacer for option, spacer in SPACERS.items() if config.get(option)), None)
    if spacer is None:
        return None
    own_lowest, own_highest = config.get("sigma_min"), config.get("sigma_max")
    return spacer(lowest if own_lowest is None else own_lowest, highest if own_highest is None else own_highest, steps)


def interpolated_sigmas(timesteps: NDArray[np.floating], training: NDArray[np.float32]) -> NDArray[np.float64]:
    """The noise levels of timesteps between those of the training, and of its ends beyond them; (steps,).

    Args:
        timesteps: (steps,), need not be whole.
        training: the levels of the training timesteps, from clean to noisy.
    """
    return np.asarray(np.interp(timesteps, np.arange(len(training)), training))


def log_linear_sigmas(sigma_min: float, sigma_max: float, steps: int) -> NDArray[np.float32]:
    """As `exponential_sigmas`, in float32, from low to high."""
    return np.exp(
        np.linspace(np.float32(math.log(sigma_min)), np.float32(math.log(sigma_max)), steps, dtype=np.float32)
    )


def timestep_of_sigma(sigma: NDArray[np.floating], log_sigmas: NDArray[np.float32]) -> NDArray[np.float64]:
    """Fractional training timesteps of noise levels, by interpolating the training levels' logarithms; (steps,)."""
    log_sigma = np.log(np.maximum(sigma, 1e-10))
    below = np.clip(np.searchsorted(log_sigmas, log_sigma, side="right") - 1, 0, len(log_sigmas) - 2)
    low, high = log_sigmas[below], log_sigmas[below + 1]
    weight = np.clip((low - log_sigma) / (low - high), 0, 1)
    return np.asarray((1 - weight) * below + weight * (below + 1), dtype=np.float64)
