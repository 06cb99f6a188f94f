"""Schedulers that walk a list of noise levels: where the walk is, and what a noise level means.

A level is sigma, the noise's deviation beside a clean sample of variance 1 (Karras et al. 2022, arXiv:2206.00364). A
scheduler works on samples that are clean + sigma * noise (variance exploding), or on the same ones scaled down to
variance 1 (variance preserving), as the model was trained.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import Array, Scheduler


class IndexedScheduler(Scheduler, abstract=True):
    """A scheduler that knows where in its schedule the loop is, so that a timestep may stand there twice."""

    _step_index: int | None = None
    _begin_index: int | None = None

    @property
    def step_index(self) -> int | None:
        """The place in the schedule of the next step; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The place in the schedule where the loop starts; None where the first timestep says it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Says that the first timestep is this one of the schedule: image to image starts late."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: float, schedule_timesteps: Array | None = None) -> int:
        """Where a timestep is in the schedule; the second place if there are several, or the first of the schedule.

        Args:
            timestep: one of the schedule's.
            schedule_timesteps: the schedule's; those that were set when None.

        Raises:
            ValueError: it is not there.
        """
        timesteps = self.timesteps if schedule_timesteps is None else schedule_timesteps
        places = np.flatnonzero(timesteps == timesteps.dtype.type(timestep))
        if not places.size:
            raise ValueError(f"timestep {timestep} is not in the schedule")
        return int(places[min(1, len(places) - 1)]) if places[0] else 0  # diffusers' second is one too late there

    def _restart(self) -> None:
        """The next step is the first: called when the timesteps were set."""
        self._step_index = self._begin_index = None

    def _place(self, timestep: float) -> int:
        """Where the loop is in the schedule.

        Raises:
            ValueError: past its end.
        """
        if self._step_index is None:
            begin = self._begin_index
            self._step_index = self.index_for_timestep(timestep) if begin is None else begin
        if self._step_index >= len(self.timesteps):
            raise ValueError("the schedule is at its end: call set_timesteps before another picture")
        return self._step_index


class SigmaScheduler(IndexedScheduler, abstract=True):
    """A scheduler with noise levels.

    Attributes:
        sigmas: the noise levels to visit, from high to low; one more than there are timesteps.
    """

    sigmas: Array

    @abstractmethod
    def _alpha_sigma(self, sigma: Array) -> tuple[Array, Array]:
        """How much of the clean sample, and how much noise, a sample of a noise level has."""

    def add_noise(self, original_samples: Array, noise: Array, timesteps: Array | Sequence[float]) -> Array:
        """Clean samples with the noise of timesteps of the schedule.

        Args:
            original_samples: (batch, ...), clean.
            noise: the same shape, of variance 1.
            timesteps: (batch,) or (1,), of this schedule.
        """
        flat = np.asarray(timesteps).reshape(-1).tolist()
        if self._begin_index is None:
            places = [self.index_for_timestep(timestep) for timestep in flat]
        else:
            places = [self._begin_index if self._step_index is None else self._step_index] * len(flat)
        sigmas = self.sigmas[places].astype(original_samples.dtype).reshape(-1, *[1] * (original_samples.ndim - 1))
        alpha, sigma = self._alpha_sigma(sigmas)
        return np.asarray(alpha * original_samples + sigma * noise, dtype=original_samples.dtype)


class VarianceExplodingScheduler(SigmaScheduler, abstract=True):
    """A scheduler whose samples are clean + sigma * noise; the model's input is scaled to variance 1."""

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation that the starting noise must have."""
        highest = self.sigmas.max()
        if self.config["timestep_spacing"] in ("linspace", "trailing"):
            return float(highest)
        return float((highest**2 + 1) ** np.float32(0.5))

    def scale_model_input(self, sample: Array, timestep: float | None = None) -> Array:
        """The sample at variance 1, as the model was trained: divided by sqrt(sigma**2 + 1)."""
        if timestep is None:
            raise ValueError(f"{type(self).__name__} needs the timestep to scale its input")
        sigma = self._sigma_of_call(self._place(timestep))
        return np.asarray(sample / (sigma**2 + 1) ** np.float32(0.5), dtype=sample.dtype)

    def _alpha_sigma(self, sigma: Array) -> tuple[Array, Array]:
        return np.ones_like(sigma), sigma

    def _sigma_of_call(self, index: int) -> Any:
        """The noise level at which the model is called at a place in the schedule."""
        return self.sigmas[index]


class VariancePreservingScheduler(SigmaScheduler, abstract=True):
    """A scheduler whose samples have variance 1, or, with flow sigmas, lie between clean and noise."""

    def _alpha_sigma(self, sigma: Array) -> tuple[Array, Array]:
        if self.config.get("use_flow_sigmas"):
            return 1 - sigma, sigma
        alpha = 1 / (sigma**2 + 1) ** np.float32(0.5)
        return alpha, sigma * alpha
