"""A UNet with all that it is conditioned on: what the loop calls."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends import Array
from ..guidance import guide
from ..networks import UNet2DConditionModel
from ..step_reuse import StepReuse

#: what callbacks call a condition -> its name in the graph
CONDITIONS: Mapping[str, str] = {
    "prompt_embeds": "encoder_hidden_states",
    "add_text_embeds": "text_embeds",
    "add_time_ids": "time_ids",
}


@dataclass
class GuidedUNet:
    """The UNet with its conditions. A callback may change them, and the scale, in between.

    Guidance takes several branches, which the UNet sees as one batch: the first half is what to move away from.
    """

    unet: UNet2DConditionModel
    conditions: dict[str, Array]  # the UNet's further inputs by the graph's names, each (branches * batch, ...)
    guidance_scale: float
    guidance_rescale: float = 0.0
    channels: Array | None = None  # (batch or branches * batch, channels, height, width): appended to the latents
    calls: int = 1  # that a picture takes: one for each of the loop's timesteps
    done: int = 0  # of these
    guided: Container[int] | None = None  # the calls with guidance, the others are conditional; None: all are guided
    reuse: StepReuse | None = None  # which of the calls take the last prediction again; None: none does

    @property
    def branches(self) -> int:
        """How many predictions guidance takes."""
        return 2 if self.guidance_scale > 1 else 1

    @property
    def conditional(self) -> int:
        """Which of the branches is the prediction without guidance."""
        return self.branches - 1

    @property
    def batch(self) -> int:
        """How many pictures it is for."""
        return len(self.conditions["encoder_hidden_states"]) // self.branches

    def __call__(self, sample: Array, timestep: float) -> Array:
        """The guided prediction for latents, (batch, latent channels, height, width)."""
        index = self.done
        self.done += 1
        guided = self.guided is None or index in self.guided
        if self.reuse is None:
            return self._predicted(sample, timestep, guided)
        steering = (guided, self.guidance_scale, *map(id, self.conditions.values()))  # a callback may change them
        return self.reuse(index, sample, steering, lambda: self._predicted(sample, timestep, guided))

    def _predicted(self, sample: Array, timestep: float, guided: bool) -> Array:
        """The prediction, with guidance or of the conditional branch alone."""
        if guided:
            return self.combined(self._computed(sample, timestep, range(self.branches)))
        (conditional,) = self._computed(sample, timestep, [self.conditional])
        return conditional

    def _computed(self, sample: Array, timestep: float, branches: Sequence[int]) -> list[Array]:
        """The predictions of some of the branches."""
        batch = len(sample)
        samples = np.concatenate([sample] * len(branches))
        if self.channels is not None:
            own = len(self.channels) > batch
            each = [_part(self.channels, branch, batch) if own else self.channels for branch in branches]
            samples = np.concatenate([samples, np.concatenate(each)], axis=1)
        others = dict(self.conditions)
        if len(branches) < self.branches:
            others = {name: _part(value, self.conditional, batch) for name, value in others.items()}
        hidden = others.pop("encoder_hidden_states")
        options: dict[str, Any] = {}
        if "timestep_cond" in others:
            options["timestep_cond"] = others.pop("timestep_cond")
        if others:
            options["added_cond_kwargs"] = others
        output = self.unet(samples, timestep, hidden, **options).sample
        return np.split(output, len(branches))

    def combined(self, predictions: list[Array]) -> Array:
        """One prediction from those of the branches."""
        if len(predictions) == 1:
            return predictions[0]
        unconditional, conditional = predictions
        return guide(unconditional, conditional, self.guidance_scale, self.guidance_rescale)


def _part(array: Array, branch: int, batch: int) -> Array:
    """What of an array, (branches * batch, ...), is for one of the branches."""
    return array[branch * batch : (branch + 1) * batch]
