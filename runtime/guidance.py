"""Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598)."""

import numpy as np

from .backends import Array


def guide(unconditional: Array, conditional: Array, guidance_scale: float, guidance_rescale: float = 0.0) -> Array:
    """The model output moved from the unconditional towards the conditional one, and past it.

    Args:
        unconditional: (batch, channels, height, width), predicted for the negative prompt.
        conditional: the same shape, predicted for the prompt.
        guidance_scale: w in the paper's Imagen form: 1 is the conditional output, above 1 goes past it.
        guidance_rescale: phi of section 3.4 of Lin et al. 2023 (arXiv:2305.08891): 0 leaves the output's standard
            deviation, 1 makes it the conditional output's.
    """
    guided = unconditional + np.float32(guidance_scale) * (conditional - unconditional)
    if guidance_rescale == 0:
        return guided
    axes = tuple(range(1, guided.ndim))
    ratio = conditional.std(axis=axes, keepdims=True) / guided.std(axis=axes, keepdims=True)
    return np.asarray(guided * (guidance_rescale * ratio + (1 - guidance_rescale)), dtype=guided.dtype)


def guidance_scale_embedding(guidance_scale: float, channels: int) -> Array:
    """What a latent consistency model is told of the guidance scale: sines and cosines of it, (1, channels), float32.

    Luo et al. 2023 (arXiv:2310.04378), section 4.2; the frequencies are those of
    `LatentConsistencyModelPipeline.get_guidance_scale_embedding` of diffusers.

    Args:
        guidance_scale: w of the paper: 0 is no guidance.
        channels: at least 4; an odd one ends in a zero.
    """
    half = channels // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(10000.0) / (half - 1)))
    angles = np.float32(guidance_scale * 1000) * frequencies
    return np.pad(np.concatenate([np.sin(angles), np.cos(angles)]), (0, channels % 2))[None].astype(np.float32)
