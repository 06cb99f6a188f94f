"""The loop: from noise to latents, one timestep after the other."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from .backends import Array
from .schedulers import Scheduler

#: (latents as the model takes them, timestep) -> model output; both (batch, channels, height, width)
Predict = Callable[[Array, float], Array]
#: (index of the step, timestep, latents) -> the latents to go on with
OnStep = Callable[[int, float, Array], Array]


def denoise(
    predict: Predict,
    scheduler: Scheduler,
    latents: Array,
    timesteps: Iterable[float],
    *,
    on_step: OnStep = lambda _index, _timestep, latents: latents,
    interrupted: Callable[[], bool] = lambda: False,
    **step_options: Any,
) -> Array:
    """The latents after the last timestep.

    Args:
        predict: the model, guided or not.
        scheduler: its timesteps are set.
        latents: noise, times the scheduler's `init_noise_sigma`.
        timesteps: the scheduler's, or the tail of them.
        on_step: called after each step.
        interrupted: asked after each step; true ends the loop there.
        step_options: for the scheduler's `step`; those that it does not know are left out.
    """
    options = known_options(scheduler, step_options)
    for index, timestep in enumerate(timesteps):
        model_output = predict(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(model_output, timestep, latents, **options).prev_sample
        latents = on_step(index, timestep, latents)
        if interrupted():
            break
    return latents


def known_options(scheduler: Scheduler, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that the scheduler's `step` takes: `eta` means something to DDIM and nothing to Euler."""
    known = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in options.items() if name in known}
