"""What a model predicts, turned into what a sampler needs: the clean sample, and the noise.

A noisy sample is alpha * clean + sigma * noise, with alpha**2 + sigma**2 = 1. A model predicts the noise ("epsilon"),
the clean sample ("sample"), or alpha * noise - sigma * clean ("v_prediction", Salimans and Ho, arXiv:2202.00512).
"""

import numpy as np

from ..random import Array
from .weighted_sum import weighted_sum

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


def denoised(prediction_type: str, model_output: Array, sample: Array, alpha: np.float32, sigma: np.float32) -> Array:
    """The clean sample that a model's output stands for, of the sample's shape."""
    if prediction_type == "epsilon":
        clean = weighted_sum((1, -sigma), (sample, model_output))
        clean /= alpha
        return clean
    if prediction_type == "v_prediction":
        return weighted_sum((alpha, -sigma), (sample, model_output))
    return model_output


def noise(prediction_type: str, model_output: Array, sample: Array, alpha: np.float32, sigma: np.float32) -> Array:
    """The noise that a model's output stands for, of the sample's shape."""
    if prediction_type == "epsilon":
        return model_output
    if prediction_type == "v_prediction":
        return weighted_sum((alpha, sigma), (model_output, sample))
    predicted = weighted_sum((1, -alpha), (sample, model_output))
    predicted /= sigma
    return predicted


def denoised_at_sigma(prediction_type: str, model_output: Array, sample: Array, sigma: np.float32) -> Array:
    """The clean sample that a model's output stands for, beside a sample that is clean + sigma * noise."""
    if prediction_type == "epsilon":
        return weighted_sum((1, -sigma), (sample, model_output))
    if prediction_type == "v_prediction":
        variance = sigma**2 + 1
        return weighted_sum((1 / variance, -sigma / variance ** np.float32(0.5)), (sample, model_output))
    return model_output


def derivative_at_sigma(
    prediction_type: str, model_output: Array, sample: Array, clean: Array, sigma: np.float32
) -> Array:
    """The sample's derivative by sigma, (sample - clean) / sigma, which is the noise (Karras et al., equation 3).

    Args:
        prediction_type: "epsilon" predicts it, which saves two passes over the sample.
        model_output: of the sample's shape.
        sample: clean + sigma * noise.
        clean: as `denoised_at_sigma` gives it.
        sigma: of the sample.
    """
    if prediction_type == "epsilon":
        return model_output
    derivative = sample - clean
    derivative /= sigma
    return derivative


def dynamic_threshold(sample: Array, ratio: float, most: float) -> Array:
    """The sample clipped at a quantile of its own magnitudes and scaled to [-1, 1] (Imagen, arXiv:2205.11487).

    Args:
        sample: (batch, ...).
        ratio: the quantile, of each image.
        most: the largest that the clip may be; the least is 1.
    """
    magnitudes = np.abs(sample).reshape(len(sample), -1)
    limit = np.clip(np.quantile(magnitudes, ratio, axis=1), 1, most).astype(sample.dtype)
    limit = limit.reshape(-1, *[1] * (sample.ndim - 1))
    return np.asarray(np.clip(sample, -limit, limit) / limit)
