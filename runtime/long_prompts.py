"""Prompts with weights, and prompts longer than the text encoder: what `conditioning` does without either.

A long prompt is encoded in chunks that know nothing of each other, each with begin, end and padding; the UNet attends
to all of them. Each but the last is full, even if that cuts a word. compel 2.5.1 gives these embeddings with
`SplitLongTextMode.BRUTAL` (compared: to 5e-6); by default it ends a chunk at the last full stop in it, else at another
mark, else at a word's end. The webui of AUTOMATIC1111 ends one at the last comma, if that is one of its last 20 tokens.

Weights are used as in that webui ("Features: attention/emphasis" in its wiki): each token's embedding is multiplied by
its weight, and then the chunk by what brings its mean back to what it was. compel does it differently: it interpolates
between the prompt's embeddings and others.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .backends import Array
from .conditioning import PromptEmbeddings, PromptEncoder, encode_prompts
from .prompt_weights import parse_weights
from .tokenizer import CLIPTokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Chunk:
    """What the text encoder takes at once: special tokens and padding included."""

    token_ids: Array  # (length,), int64
    weights: Array  # (length,), float32; 1 for special tokens and padding


def encode_long_prompts(
    encoder: PromptEncoder,
    prompts: Sequence[str],
    *,
    weighted: bool,
    chunked: bool,
    clip_skip: int | None = None,
    max_length: int | None = None,
    min_chunks: int = 1,
) -> PromptEmbeddings:
    """The embeddings of prompts: `hidden` is (len(prompts), chunks * max_length, width), `pooled` the first chunk's.

    Args:
        encoder: the checkpoint's.
        prompts: at least one; those of fewer chunks than the longest are filled up with empty ones.
        weighted: brackets in the prompts are weights, see `prompt_weights`; otherwise they are text.
        chunked: what is longer than `max_length` goes on in another chunk; otherwise it is cut off, with a warning.
        clip_skip: how many of the text encoder's last layers to leave out.
        max_length: tokens in each chunk; the tokenizer's length when None.
        min_chunks: how many chunks there are at least, for embeddings that must be as long as others.

    Raises:
        ValueError: unbalanced brackets, a weight that is no number, or `max_length` leaves no room in a chunk.
    """
    if not weighted and not chunked:
        return encode_prompts(encoder, prompts, clip_skip=clip_skip, max_length=max_length)
    tokenizer = encoder.tokenizer
    length = tokenizer.model_max_length if max_length is None else max_length
    chunks = [list(_chunks(tokenizer, prompt, length, weighted=weighted, chunked=chunked)) for prompt in prompts]
    return _encode(encoder, chunks, max(min_chunks, *map(len, chunks)), clip_skip)


def chunk_count(tokenizer: CLIPTokenizer, prompts: Sequence[str], *, weighted: bool) -> int:
    """How many chunks the longest of some prompts needs.

    Raises:
        ValueError: unbalanced brackets or a weight that is no number, if `weighted`.
    """
    length = tokenizer.model_max_length
    return max(len(list(_chunks(tokenizer, one, length, weighted=weighted, chunked=True))) for one in prompts)


def _chunks(tokenizer: CLIPTokenizer, prompt: str, length: int, *, weighted: bool, chunked: bool) -> Iterator[_Chunk]:
    """The chunks of a prompt, at least one."""
    room = length - 2  # besides the begin and end tokens
    if chunked and room < 1:
        raise ValueError(f"a chunk must have room for begin, end and one token more, got max_length {length}")
    parts = parse_weights(prompt) if weighted else [(prompt, 1.0)]
    token_ids: list[int] = []
    weights: list[float] = []
    removed: list[str] = []
    for text, weight in parts:
        ids = tokenizer.token_ids(text)
        if not chunked:
            fitting = max(room - len(token_ids), 0)
            removed.append(tokenizer.truncated(text, max_length=fitting + 2))
            ids = ids[:fitting]
        token_ids += ids
        weights += [weight] * len(ids)
    if cut_off := " ".join(filter(None, removed)):
        logger.warning("the text encoder takes %d tokens; this part of the prompt was cut off: %r", length, cut_off)
    for start in range(0, max(len(token_ids), 1), max(room, 1)):
        yield _chunk(tokenizer, token_ids[start : start + room], weights[start : start + room], length)


def _chunk(tokenizer: CLIPTokenizer, token_ids: Sequence[int], weights: Sequence[float], length: int) -> _Chunk:
    """A chunk of at most `length - 2` tokens, between begin and end, padded as the tokenizer pads."""
    padded_ids = np.full(length, tokenizer.pad_token_id, np.int64)
    padded_ids[: len(token_ids) + 2] = [tokenizer.bos_token_id, *token_ids, tokenizer.eos_token_id]
    padded_weights = np.ones(length, np.float32)
    padded_weights[1 : len(weights) + 1] = weights
    return _Chunk(padded_ids, padded_weights)


def _encode(
    encoder: PromptEncoder, chunks: Sequence[Sequence[_Chunk]], count: int, clip_skip: int | None
) -> PromptEmbeddings:
    """The embeddings of prompts in chunks, each filled up to `count`: (len(chunks), count * length, width)."""
    length = len(chunks[0][0].token_ids)
    empty = _chunk(encoder.tokenizer, [], [], length)
    flat = [chunk for prompt in chunks for chunk in [*prompt, *[empty] * (count - len(prompt))]]
    embeddings = encoder(np.stack([chunk.token_ids for chunk in flat]), clip_skip)  # of len(chunks) * count chunks
    weighted = [_weighted(one, chunk.weights) for one, chunk in zip(embeddings.hidden, flat, strict=True)]
    hidden = np.stack(weighted).reshape(len(chunks), count * length, -1)
    return PromptEmbeddings(hidden, None if embeddings.pooled is None else embeddings.pooled[::count])


def _weighted(embeddings: Array, weights: Array) -> Array:
    """A chunk's embeddings times their tokens' weights, their mean as before: (length, width), from (length,)."""
    if np.all(weights == 1):
        return embeddings
    result = embeddings * weights[:, None]
    mean = result.mean()
    return result if mean == 0 else np.asarray(result * (embeddings.mean() / mean))
