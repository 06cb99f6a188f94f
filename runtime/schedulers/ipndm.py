"""Improved pseudo linear multistep (Zhang and Chen 2022, arXiv:2204.13902, after Liu et al., arXiv:2202.09778)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import betas as schedules
from .adams_bashforth import ADAMS_BASHFORTH
from .base import Array, SchedulerOutput, check_step
from .sigma_scheduler import SigmaScheduler
from .spacing import check_steps
from .weighted_sum import mixture, weighted_sum

_LEAST_ALPHA = np.float32(1e-8)  # it is divided by, and 0 where there is noise alone


class IPNDMScheduler(SigmaScheduler):
    """iPNDM: up to the fourth order from the start, with fewer outputs for the first three steps.

    The model predicts the velocity of a sample alpha * clean + sigma * noise that turns towards noise, with
    alpha**2 + sigma**2 = 1, and is told the angle, from 1 (noise) to 0. Checked against diffusers step by step;
    `add_noise`, which diffusers lacks here, follows from that.

    Attributes:
        betas: the noise levels to visit, sigma, from high to low; one more than there are timesteps.
        alphas: of the clean sample, likewise.
        ets: the noise that each model output stands for, newest last; four at the most.
    """

    interchangeable = ()

    def __init__(self, num_train_timesteps: int = 1000, trained_betas: Sequence[float] | None = None) -> None:
        """See diffusers' `IPNDMScheduler` for the options; they have its names, defaults and meanings.

        `trained_betas` are the noise levels to visit, whatever number of steps is set.
        """
        super().__init__(locals())
        self.set_timesteps(num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: object = None) -> None:  # type: ignore[override]
        """Chooses the noise levels to visit: angles spaced like a squared sine.

        Raises:
            ValueError: below 1, or more than the model was trained with.
        """
        del device
        self.num_inference_steps = check_steps(num_inference_steps, len(self))
        own = self.config["trained_betas"]
        if own is None:
            time = schedules.betas("linear", 1, 0, self.num_inference_steps + 1)
            self.betas = np.sin(time * np.float32(np.pi) / 2) ** 2
        else:
            self.betas = schedules.trained_betas(own)
        self.sigmas = self.betas
        self.alphas = (1 - self.betas**2) ** np.float32(0.5)
        self.timesteps = (np.arctan2(self.betas, self.alphas) / np.float32(np.pi) * 2)[:-1]
        self.ets: list[Array] = []
        self._restart()

    def step(self, model_output: Array, timestep: float, sample: Array, return_dict: bool = True) -> Any:
        """The sample at the next noise level: PNDM's equations 12 (the linear multistep method) and 9 (the transfer).

        Args:
            model_output: what the model predicts, of the sample's shape.
            timestep: the schedule's, in order: the steps before are remembered.
            sample: (batch, ...).
            return_dict: a `SchedulerOutput` when true, else a tuple.
        """
        check_step(self, model_output, sample)
        index = self._place(timestep)
        dtype = sample.dtype
        sample = sample.astype(np.result_type(dtype, np.float32), copy=False)  # a first alpha of 1e-8 is divided by
        alpha, alpha_next = self.alphas[index : index + 2]
        sigma, sigma_next = self.betas[index : index + 2]
        self.ets = [*self.ets[-3:], mixture(sigma, sample, alpha, model_output)]
        noise = weighted_sum(ADAMS_BASHFORTH[len(self.ets)], self.ets[::-1])
        clean = weighted_sum((1, -sigma), (sample, noise))  # times alpha; apart, since the two cancel near noise
        moved = mixture(alpha_next / max(alpha, _LEAST_ALPHA), clean, sigma_next, noise)
        previous_sample = np.asarray(moved, dtype=dtype)
        self._step_index = index + 1
        return SchedulerOutput(previous_sample) if return_dict else (previous_sample,)

    def _alpha_sigma(self, sigma: Array) -> tuple[Array, Array]:
        return (1 - sigma**2) ** 0.5, sigma
