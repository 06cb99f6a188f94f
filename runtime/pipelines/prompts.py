"""What a call says of where its pictures are to go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ..backends import Array
from ..conditioning import prompt_list
from .call import own_fields

Prompt = str | Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What a call says of where to go, and of what to move away from."""

    prompt: Prompt | None = None
    prompt_2: Prompt | None = None  # for the second text encoder
    negative_prompt: Prompt | None = None
    negative_prompt_2: Prompt | None = None
    prompt_embeds: Array | None = None
    pooled_prompt_embeds: Array | None = None
    negative_prompt_embeds: Array | None = None
    negative_pooled_prompt_embeds: Array | None = None
    num_images_per_prompt: int = 1
    clip_skip: int | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Those of a pipeline's arguments, by name, that are fields here."""
        return cls(**own_fields(cls, arguments))

    def texts(self, encoders: int) -> list[list[str]]:
        """The prompts of each text encoder.

        Raises:
            TypeError: a prompt that is no string.
            ValueError: there is none, or different numbers for the encoders.
        """
        if self.prompt is None:
            raise ValueError("give either prompt or prompt_embeds, got neither")
        return _texts(encoders, prompt=self.prompt, prompt_2=self.prompt_2)

    def negative_texts(self, encoders: int) -> list[list[str]]:
        """The negative prompts of each text encoder; raises as `texts` does."""
        return _texts(encoders, negative_prompt=self.negative_prompt or "", negative_prompt_2=self.negative_prompt_2)


def _texts(encoders: int, **prompts: Prompt | None) -> list[list[str]]:
    """For each text encoder its own prompts, or the first's."""
    (first_name, first), (second_name, second) = prompts.items()
    assert first is not None
    every = [prompt_list(first_name, first)]
    if encoders > 1:
        every.append(prompt_list(second_name, second) if second else every[0])
        if len(every[1]) != len(every[0]):
            raise ValueError(f"{second_name} must be as many as {first_name}, got {len(every[1])} and {len(every[0])}")
    return every
