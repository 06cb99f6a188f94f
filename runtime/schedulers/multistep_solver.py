"""What DEIS, UniPC and SA-Solver share: noise levels in log-SNR, and the memory of what the model predicted there."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import prediction
from .base import Array
from .prediction import PREDICTION_TYPES
from .sigma_scheduler import VariancePreservingScheduler
from .sigmas import check_spacers, training_sigmas
from .solver_levels import Sigmas, Timesteps, solver_levels

FLOW = "flow_prediction"  # the model predicts noise - clean (arXiv:2210.02747)


class MultistepSolver(VariancePreservingScheduler, abstract=True):
    """A scheduler that fits a polynomial in log-SNR through its newest model outputs.

    Attributes:
        model_outputs: what the model predicted, as the solver takes it, newest last; as many as the solver looks back.
    """

    prediction_types = (*PREDICTION_TYPES, FLOW)

    model_outputs: list[Array]

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Keeps the configuration and makes the training's noise levels."""
        super().__init__(options)
        check_spacers(self.config)
        if self.config.get("rescale_betas_zero_snr"):
            self.alphas_cumprod[-1] = 2.0**-24  # not 0, so that the first sigma is finite
        self._training_sigmas = training_sigmas(self.alphas_cumprod)
        self.sigmas = self._training_sigmas[::-1].copy()
        self.timesteps = self.timesteps.astype(np.float32)
        self.model_outputs = []

    def _visit(self, levels: Sigmas, last: float, timesteps: Timesteps) -> None:
        """Takes noise levels, the one that the last step ends at, and their timesteps; forgets an earlier picture."""
        self.sigmas = np.append(levels, last).astype(np.float32)
        self.timesteps = timesteps
        self.num_inference_steps = len(timesteps)
        self.model_outputs = []
        self._restart()

    def _spaced_levels(
        self, timesteps: Timesteps, config: Mapping[str, Any] | None = None
    ) -> tuple[Sigmas, float, Timesteps]:
        """The noise levels, where the last step ends, and the timesteps that the levels belong to.

        Of another configuration if one is given. The last step ends at the cleanest training level; at its own, so
        that it changes nothing, where the configuration spaces the levels: as in diffusers.
        """
        levels, visited = solver_levels(config or self.config, self._training_sigmas, timesteps)
        spaced = visited is not timesteps
        return levels, float(levels[-1] if spaced else self._training_sigmas[0]), visited

    def _remember(self, model_output: Array, most: int) -> None:
        """Keeps a model output, and forgets those that are too old."""
        self.model_outputs = [*self.model_outputs, model_output][-most:]

    def _usable(self, index: int, order: int) -> int:
        """An order for the step from a place in the schedule: lower where levels repeat or the next has no noise.

        Through two predictions at one level goes no polynomial, and log-SNR is infinite without noise: diffusers
        divides by zero there.
        """
        order = min(order, len(self.model_outputs))
        levels = self.sigmas[index - order + 1 : index + 2]
        while order > 1 and (levels[-1] == 0 or len(np.unique(levels)) < len(levels)):
            order, levels = order - 1, levels[1:]
        return order

    def _clean_output(self, model_output: Array, sample: Array, *, threshold: bool) -> Array:
        """The clean sample that a model's output stands for at the next step's place; thresholded if asked for."""
        kind, level = self.config["prediction_type"], self.sigmas[self._step_index or 0]
        if kind == FLOW:
            clean = np.asarray(sample - level * model_output)
        else:
            scales: tuple[Any, Any] = self._alpha_sigma(level)
            clean = prediction.denoised(kind, model_output, sample, *scales)
        if threshold:
            ratio, most = self.config["dynamic_thresholding_ratio"], self.config["sample_max_value"]
            clean = prediction.dynamic_threshold(clean, ratio, most)
        return clean

    def _noise_output(self, model_output: Array, sample: Array, *, threshold: bool) -> Array:
        """The noise that a model's output stands for; if asked for, beside the thresholded clean sample."""
        kind = self.config["prediction_type"]
        scales: tuple[Any, Any] = self._alpha_sigma(self.sigmas[self._step_index or 0])
        if kind == FLOW or threshold:
            clean = self._clean_output(model_output, sample, threshold=threshold)
            return np.asarray((sample - scales[0] * clean) / scales[1])
        return prediction.noise(kind, model_output, sample, *scales)
