"""Prompts to the embeddings that steer the UNet."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .backends import Array
from .networks import CLIPTextModel, CLIPTextModelWithProjection
from .tokenizer import CLIPTokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptEmbeddings:
    """What a text encoder makes of prompts: arrays of float32."""

    hidden: Array  # (prompts, length, width)
    pooled: Array | None = None  # (prompts, projection_dim), of a text encoder with a projection


@dataclass(frozen=True)
class PromptEncoder:
    """A tokenizer, its text encoder, and which of its layers the UNet attends to.

    Stable Diffusion's UNet sees the last layer's output through the final norm; SDXL's sees that of the last layer but
    one as it is.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel | CLIPTextModelWithProjection
    penultimate: bool = False

    def __call__(self, input_ids: Array, clip_skip: int | None = None) -> PromptEmbeddings:
        """The embeddings of (prompts, length) token ids.

        Args:
            input_ids: int64.
            clip_skip: how many layers more to leave out.
        """
        encoder = self.text_encoder
        if self.penultimate:
            names = [encoder.layer_output(clip_skip or 0, left_out=1)]
            if isinstance(encoder, CLIPTextModelWithProjection):
                names.append("text_embeds")
            return PromptEmbeddings(*encoder.outputs(input_ids, names))
        assert isinstance(encoder, CLIPTextModel)
        if clip_skip is None:
            return PromptEmbeddings(encoder(input_ids).last_hidden_state)
        return PromptEmbeddings(encoder.hidden_state(input_ids, clip_skip))


def prompt_list(name: str, prompt: str | Sequence[str]) -> list[str]:
    """A prompt or several, as a list.

    Raises:
        TypeError: it is neither; the message names what it is.
        ValueError: the list is empty.
    """
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list | tuple):
        raise TypeError(f"{name} must be a string or a list of strings, got {type(prompt).__name__}")
    for item in prompt:
        if not isinstance(item, str):
            raise TypeError(f"{name} must be a string or a list of strings, got a list with {type(item).__name__}")
    if not prompt:
        raise ValueError(f"{name} must not be an empty list")
    return list(prompt)


def encode_prompts(
    encoder: PromptEncoder,
    prompts: Sequence[str],
    *,
    clip_skip: int | None = None,
    max_length: int | None = None,
) -> PromptEmbeddings:
    """The embeddings of prompts: `hidden` is (len(prompts), max_length, width).

    Args:
        encoder: the checkpoint's.
        prompts: what is longer than `max_length` is cut off, with a warning.
        clip_skip: how many of the text encoder's last layers to leave out.
        max_length: tokens in each; the tokenizer's length when None.
    """
    tokenizer = encoder.tokenizer
    length = tokenizer.model_max_length if max_length is None else max_length
    for prompt in prompts:
        if removed := tokenizer.truncated(prompt, max_length=length):
            logger.warning("the text encoder takes %d tokens; this part of the prompt was cut off: %r", length, removed)
    return encoder(tokenizer.encode(prompts, max_length=length), clip_skip)


def check_embeddings(name: str, embeddings: Array, width: int, *, rank: int = 3) -> Array:
    """Embeddings that the caller brings, as float32.

    Args:
        name: of the argument.
        embeddings: (batch, length, width); or (batch, width), pooled ones.
        width: of each.
        rank: 3 or, of pooled ones, 2.

    Raises:
        ValueError: they are of another shape.
    """
    array = np.asarray(embeddings, dtype=np.float32)
    if array.ndim != rank or array.shape[-1] != width:
        expected = f"(batch, length, {width})" if rank == 3 else f"(batch, {width})"
        raise ValueError(f"{name} must be of shape {expected}, got {tuple(array.shape)}")
    return array
