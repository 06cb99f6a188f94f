"""Prompts to the embeddings that steer the UNet."""

import logging
from collections.abc import Sequence

import numpy as np

from .backends import Array
from .networks import CLIPTextModel
from .tokenizer import CLIPTokenizer

logger = logging.getLogger(__name__)


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
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    prompts: Sequence[str],
    *,
    clip_skip: int | None = None,
    max_length: int | None = None,
) -> Array:
    """The embeddings of prompts: (len(prompts), max_length, width), float32.

    Args:
        tokenizer: the checkpoint's.
        text_encoder: the checkpoint's.
        prompts: what is longer than `max_length` is cut off, with a warning.
        clip_skip: how many of the text encoder's last layers to leave out.
        max_length: tokens in each; the tokenizer's length when None.
    """
    length = tokenizer.model_max_length if max_length is None else max_length
    for prompt in prompts:
        if removed := tokenizer.truncated(prompt, max_length=length):
            logger.warning("the text encoder takes %d tokens; this part of the prompt was cut off: %r", length, removed)
    input_ids = tokenizer.encode(prompts, max_length=length)
    if clip_skip is None:
        return text_encoder(input_ids).last_hidden_state
    return text_encoder.hidden_state(input_ids, clip_skip)


def check_embeddings(name: str, embeddings: Array, width: int) -> Array:
    """Embeddings that the caller brings, as float32.

    Raises:
        ValueError: they are not (batch, length, width).
    """
    array = np.asarray(embeddings, dtype=np.float32)
    if array.ndim != 3 or array.shape[2] != width:
        raise ValueError(f"{name} must be of shape (batch, length, {width}), got {tuple(array.shape)}")
    return array
