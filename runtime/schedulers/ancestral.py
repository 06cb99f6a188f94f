"""Ancestral sampling: a step that goes further down than asked for, and adds noise up to the level asked for."""

from typing import Any

import numpy as np


def ancestral_levels(sigma: Any, sigma_next: Any) -> tuple[Any, Any]:
    """The noise level to step down to, and the deviation of the noise to add then: sigma_down and sigma_up.

    Of DDPM's posterior (Ho et al., arXiv:2006.11239, equation 7), for samples that are clean + sigma * noise, as in
    k-diffusion's `get_ancestral_step`: sigma_down**2 + sigma_up**2 = sigma_next**2. Diffusers takes sigma_down from
    that sum, where little of it is left in float32 after a long step; here it is the same in closed form.

    Args:
        sigma: the level of a sample, a number or an array; above 0.
        sigma_next: the level after the step, not above it.
    """
    up = sigma_next * np.sqrt((sigma - sigma_next) * (sigma + sigma_next)) / sigma
    return sigma_next * (sigma_next / sigma), up
