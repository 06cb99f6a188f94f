"""Euler's method on the flow of flow matching (Esser et al. 2024, arXiv:2403.03206): Stable Diffusion 3, Flux, LTX."""

from collections.abc import Sequence
from math import exp
from typing import Any

import numpy as np

from ..random import randn
from .base import Array, Generators, SchedulerOutput, check_step, require_generator
from .flow_match import FlowMatchScheduler, moved, shifted, stretched
from .precision import widened
from .sigmas import check_spacers, respaced_sigmas
from .spacing import check_steps

_SAME_LEVEL = 1e-6  # sigmas that differ by less are one level


class FlowMatchEulerDiscreteScheduler(FlowMatchScheduler):
    """Euler steps along the velocity that the model predicts. Checked against diffusers step by step.

    The noise levels are spaced evenly from the first training level to the last, which are shifted already, and shifted
    once more, as in diffusers.
    """

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
    ) -> None:
        """See diffusers' `FlowMatchEulerDiscreteScheduler` for the options; names, defaults and meanings are its.

        `base_shift`, `max_shift` and the sequence lengths are for a pipeline to make `mu` from.
        """
        super().__init__(locals(), 1.0 if use_dynamic_shifting else shift)
        check_spacers(self.config)
        self._shift = shift

    def _choices(self) -> dict[str, tuple[str, ...]]:
        return {"time_shift_type": ("exponential", "linear")}

    @property
    def shift(self) -> float:
        """How far the noise levels are shifted; 1 is not at all."""
        return self._shift

    def set_shift(self, shift: float) -> None:
        """Changes the shift for the next `set_timesteps`."""
        self._shift = shift

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: object = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Chooses the noise levels to visit: so many, or the caller's own.

        Args:
            num_inference_steps: how many.
            device: means nothing here.
            sigmas: own levels, from high to low and without the last, 0; they are shifted too.
            mu: the shift, or its logarithm (`time_shift_type`), for `use_dynamic_shifting`.
            timesteps: what the model is told; the levels too, shifted, if there are no `sigmas`.

        Raises:
            ValueError: none of them is given, their lengths differ, or `mu` is missing.
        """
        del device
        if self.config["use_dynamic_shifting"] and mu is None:
            raise ValueError("mu must be given where use_dynamic_shifting is true")
        own_sigmas, visited = _row("sigmas", sigmas), _row("timesteps", timesteps)
        steps = self._common_length(num_inference_steps, own_sigmas, visited)
        if own_sigmas is None:
            own_sigmas = self._even_sigmas(steps) if visited is None else visited / len(self)
        levels = self._spaced(own_sigmas, mu).astype(np.float32)
        if self.config["invert_sigmas"]:  # noise at 0, as Mochi has it
            levels, visited = 1 - levels, None
        self.timesteps = levels * len(self) if visited is None else visited
        self.sigmas = np.append(levels, np.float32(self.config["invert_sigmas"]))
        self.num_inference_steps = steps
        self._restart()

    def _common_length(self, num_inference_steps: int | None, *own: Array | None) -> int:
        """How many steps there are, on which all that is given must agree."""
        lengths = {len(listed) for listed in own if listed is not None}
        if num_inference_steps is not None:
            lengths.add(num_inference_steps if lengths else check_steps(num_inference_steps, len(self)))
        if len(lengths) != 1:
            raise ValueError("give num_inference_steps, sigmas or timesteps; those that are given must agree in number")
        return lengths.pop()

    def _spaced(self, sigmas: Array, mu: float | None) -> Array:
        """Noise levels as the configuration wants them: shifted, stretched, spaced anew."""
        if mu is not None and self.config["use_dynamic_shifting"]:
            sigmas = self.time_shift(mu, 1.0, sigmas)
        else:
            sigmas = shifted(sigmas, self.shift)
        if self.config["shift_terminal"]:
            sigmas = stretched(sigmas, self.config["shift_terminal"])
        respaced = respaced_sigmas(self.config, float(sigmas[-1]), float(sigmas[0]), len(sigmas))
        return sigmas if respaced is None else respaced

    def time_shift(self, mu: float, sigma: float, t: Array) -> Array:
        """Times in [0, 1] shifted by `mu`, or by its exponential (Flux): odds against noise divided by it.

        Args:
            mu: the shift or its logarithm, as `time_shift_type` says.
            sigma: an exponent of the odds.
            t: (steps,).
        """
        shift = exp(mu) if self.config["time_shift_type"] == "exponential" else mu
        towards_noise = shift * t**sigma
        return np.asarray(towards_noise / (towards_noise + (1 - t) ** sigma))

    def stretch_shift_to_terminal(self, t: Array) -> Array:
        """Times stretched so that the last is the configuration's `shift_terminal`."""
        return stretched(t, self.config["shift_terminal"])

    def scale_noise(self, sample: Array, timestep: Array | Sequence[float], noise: Array) -> Array:
        """Clean samples with the noise of timesteps of the schedule: what `add_noise` is elsewhere.

        Args:
            sample: (batch, ...), clean.
            timestep: (batch,) or (1,), of this schedule.
            noise: the sample's shape, of variance 1.
        """
        return self.add_noise(sample, noise, timestep)

    def step(
        self,
        model_output: Array,
        timestep: float,
        sample: Array,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generators | None = None,
        per_token_timesteps: Array | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample at the next noise level.

        Args:
            model_output: the predicted velocity, of the sample's shape; negated with `per_token_timesteps`, as
                diffusers and its pipelines have it.
            timestep: the schedule's, in order.
            sample: (batch, ...).
            s_churn: without effect, as in diffusers; so are `s_tmin`, `s_tmax` and `s_noise`.
            s_tmin: see `s_churn`.
            s_tmax: see `s_churn`.
            s_noise: see `s_churn`.
            generator: of the noise, with `stochastic_sampling`.
            per_token_timesteps: (batch, tokens), of a sample of shape (batch, tokens, channels) whose tokens are at
                different levels; each goes to the next level below its own.
            return_dict: a `SchedulerOutput` when true, else a tuple.
        """
        del s_churn, s_tmin, s_tmax, s_noise
        check_step(self, model_output, sample)
        index = self._place(timestep)
        sigma, sigma_next = self.sigmas[index], self.sigmas[index + 1]
        change = sigma_next - sigma
        if per_token_timesteps is not None:
            if np.shape(per_token_timesteps) != sample.shape[:-1] or sample.ndim != 3:
                raise ValueError("per_token_timesteps needs a sample of shape (batch, tokens, channels)")
            sigma, sigma_next = self._token_levels(per_token_timesteps)
            change = sigma - sigma_next
        dtype, sample = sample.dtype, widened(sample)
        if self.config["stochastic_sampling"]:
            previous_sample = moved(sample, model_output, -sigma)  # the clean sample
            previous_sample *= 1 - sigma_next
            noise = randn(sample.shape, require_generator(generator), np.float32)
            noise *= sigma_next
            previous_sample += noise
        else:
            previous_sample = moved(sample, model_output, change)
        previous_sample = np.asarray(previous_sample, dtype=dtype)
        self._step_index = index + 1
        return SchedulerOutput(previous_sample) if return_dict else (previous_sample,)

    def _token_levels(self, timesteps: Array) -> tuple[Array, Array]:
        """Sigma of each token and the schedule's next one below it, (batch, tokens, 1) each."""
        sigma = np.asarray(timesteps, dtype=np.float32)[..., None] / np.float32(len(self))
        below = self.sigmas < sigma - np.float32(_SAME_LEVEL)  # (batch, tokens, levels)
        return sigma, np.where(below, self.sigmas, 0).max(axis=-1, keepdims=True)


def _row(name: str, values: Sequence[float] | None) -> Array | None:
    """A caller's list, (steps,) of float32.

    Raises:
        ValueError: it is empty, or no row of numbers.
    """
    if values is None:
        return None
    row = np.asarray(values, dtype=np.float32)
    if row.ndim != 1 or not row.size or not np.isfinite(row).all():
        raise ValueError(f"{name} must be a row of one number or more")
    return row
