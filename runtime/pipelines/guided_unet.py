"""A UNet with all that it is conditioned on: what the loop calls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends import Array
from ..guidance import guide
from ..networks import UNet2DConditionModel

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

    @property
    def branches(self) -> int:
        """How many predictions one step takes."""
        return 2 if self.guidance_scale > 1 else 1

    @property
    def batch(self) -> int:
        """How many pictures it is for."""
        return len(self.conditions["encoder_hidden_states"]) // self.branches

    def __call__(self, sample: Array, timestep: float) -> Array:
        """The guided prediction for latents, (batch, latent channels, height, width)."""
        self.done += 1
        samples = np.concatenate([sample] * self.branches)
        if self.channels is not None:
            channels = np.concatenate([self.channels] * (len(samples) // len(self.channels)))
            samples = np.concatenate([samples, channels], axis=1)
        others = {name: value for name, value in self.conditions.items() if name != "encoder_hidden_states"}
        options: dict[str, Any] = {}
        if "timestep_cond" in others:
            options["timestep_cond"] = others.pop("timestep_cond")
        if others:
            options["added_cond_kwargs"] = others
        output = self.unet(samples, timestep, self.conditions["encoder_hidden_states"], **options).sample
        return self.combined(np.split(output, self.branches))

    def combined(self, predictions: list[Array]) -> Array:
        """One prediction from those of the branches."""
        if len(predictions) == 1:
            return predictions[0]
        unconditional, conditional = predictions
        return guide(unconditional, conditional, self.guidance_scale, self.guidance_rescale)
