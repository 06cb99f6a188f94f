"""Long and weighted prompts, against what their chunks are when encoded alone."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from safelight.runtime import (
    CLIPTextModel,
    CLIPTokenizer,
    StableDiffusionPipeline,
    bundled_model,
    conditioning,
    long_prompts,
)
from safelight.runtime.backends import Array
from safelight.runtime.conditioning import PromptEncoder
from safelight.runtime.model_folder import open_model_folder
from safelight.runtime.networks import Engine, open_text_encoder
from safelight.runtime.pipelines.prompts import Prompts

ROOM = 30  # tokens in a chunk of the bundled model: 32 without begin and end
CATS = ("cat " * ROOM).strip()  # a chunk exactly


@pytest.fixture(scope="module")
def text_encoder() -> Iterator[CLIPTextModel]:
    model = open_text_encoder(open_model_folder(bundled_model()), Engine())
    yield model
    model.close()


@pytest.fixture
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(bundled_model() / "tokenizer")


def encode_prompts(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: list[str], **options: Any) -> Array:
    return conditioning.encode_prompts(PromptEncoder(tokenizer, text_encoder), prompts, **options).hidden


def encode_long_prompts(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompts: list[str], **options: Any
) -> Array:
    return long_prompts.encode_long_prompts(PromptEncoder(tokenizer, text_encoder), prompts, **options).hidden


def assert_close(actual: Array, expected: Array) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)  # of numbers up to 10


def rescaled(weighted: Array, original: Array) -> Array:
    return weighted * (original.astype(np.float64).mean() / weighted.astype(np.float64).mean())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("clip_skip", [None, 1])
def test_a_short_prompt_without_weights_is_encoded_as_ever(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, weighted: bool, chunked: bool, clip_skip: int | None
) -> None:
    prompts = ["cat face on a blue background", "", CATS]
    actual = encode_long_prompts(
        tokenizer, text_encoder, prompts, weighted=weighted, chunked=chunked, clip_skip=clip_skip
    )
    expected = encode_prompts(tokenizer, text_encoder, prompts, clip_skip=clip_skip)
    np.testing.assert_array_equal(actual, expected)
    shorter = encode_long_prompts(
        tokenizer, text_encoder, prompts[:2], weighted=weighted, chunked=chunked, max_length=9
    )
    np.testing.assert_array_equal(shorter, encode_prompts(tokenizer, text_encoder, prompts[:2], max_length=9))


def test_padding_is_the_tokenizers(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
    usual = encode_prompts(tokenizer, text_encoder, ["cat"])
    tokenizer.pad_token_id = 0  # as Stable Diffusion 2 pads
    expected = encode_prompts(tokenizer, text_encoder, ["cat"])
    assert np.abs(usual - expected).max() > 0.1
    actual = encode_long_prompts(tokenizer, text_encoder, ["cat"], weighted=True, chunked=True)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("clip_skip", [None, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_long_prompt_is_its_chunks_in_a_row(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, weighted: bool, clip_skip: int | None
) -> None:
    def encoded(*texts: str) -> Array:
        alone = [encode_prompts(tokenizer, text_encoder, [text], clip_skip=clip_skip) for text in texts]
        return np.concatenate(alone, axis=1)[0]

    prompts = [f"{CATS} {CATS} red heart", f"{CATS} dog", "red apple"]
    actual = encode_long_prompts(tokenizer, text_encoder, prompts, weighted=weighted, chunked=True, clip_skip=clip_skip)
    expected = [encoded(CATS, CATS, "red heart"), encoded(CATS, "dog", ""), encoded("red apple", "", "")]
    assert actual.shape == (3, 3 * 32, 96)
    assert_close(actual, np.stack(expected))


@pytest.mark.parametrize("pad", [None, "!"], ids=["as Stable Diffusion 1", "as Stable Diffusion 2"])
def test_chunks_are_those_of_compel(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, emoji_checkpoint: Path, pad: str | None
) -> None:
    """compel 2.5.1's formulation for `SplitLongTextMode.BRUTAL`, whose own numbers are within 5e-6 of these."""
    oracle = transformers.CLIPTokenizer.from_pretrained(emoji_checkpoint / "tokenizer")
    encoder = transformers.CLIPTextModel.from_pretrained(emoji_checkpoint / "text_encoder")
    if pad is not None:
        oracle.pad_token = pad
        tokenizer.pad_token_id = oracle.pad_token_id
    prompt = "Unbelievable watermelons, two caterpillars. " * 4
    token_ids = oracle(prompt, add_special_tokens=False).input_ids
    assert not oracle.convert_ids_to_tokens(token_ids[ROOM - 1]).endswith("</w>"), "the first chunk ends within a word"
    rows = [
        [oracle.bos_token_id, *token_ids[start : start + ROOM], oracle.eos_token_id]
        for start in range(0, len(token_ids), ROOM)
    ]
    rows = [row + [oracle.pad_token_id] * (ROOM + 2 - len(row)) for row in rows]
    with torch.no_grad():
        expected = encoder(torch.tensor(rows)).last_hidden_state.reshape(1, 3 * (ROOM + 2), -1).numpy()
    actual = encode_long_prompts(tokenizer, text_encoder, [prompt], weighted=False, chunked=True)
    assert_close(actual, expected)


def test_prompts_and_negative_prompts_have_as_many_chunks(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(bundled_model())
    pipeline.enable_long_prompts()

    def encoded(text: str, clip_skip: int | None) -> Array:
        return encode_prompts(tokenizer, text_encoder, [text], clip_skip=clip_skip)[0]

    for prompt, negative in ((f"{CATS} dog", "red"), ("dog", f"{CATS} red")):
        chunks = [
            [CATS, "dog"] if prompt != "dog" else ["dog", ""],
            [CATS, "red"] if negative != "red" else ["red", ""],
        ]
        prompts = Prompts(prompt=[prompt, "apple"], negative_prompt=negative, clip_skip=1)
        pair = [half.hidden for half in reversed(pipeline._halves(prompts, guided=True))]
        assert [half.shape for half in pair] == [(2, 64, 96), (2, 64, 96)]
        # the negative prompt keeps all layers
        for half, texts, skip in zip(pair, chunks, (1, None), strict=True):
            assert_close(half[0], np.concatenate([encoded(text, skip) for text in texts]))
        assert_close(pair[0][1], np.concatenate([encoded("apple", 1), encoded("", 1)]))


def test_text_can_be_made_as_long_as_given_embeddings(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
    actual = encode_long_prompts(tokenizer, text_encoder, ["cat"], weighted=False, chunked=True, min_chunks=3)
    expected = [encode_prompts(tokenizer, text_encoder, [text])[0] for text in ("cat", "", "")]
    assert_close(actual, np.concatenate(expected)[None])


@pytest.mark.parametrize("chunked", [False, True])
def test_weights_multiply_the_embeddings_of_their_tokens_and_the_mean_stays(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, chunked: bool
) -> None:
    plain = encode_prompts(tokenizer, text_encoder, ["red cat face", "dog"])
    weights = np.ones((2, 32, 1))
    weights[0, 1] = 1.5  # begin is 0
    weights[0, 3] = 1 / 1.1
    weights[1, 1] = 0.0
    actual = encode_long_prompts(
        tokenizer, text_encoder, ["(red:1.5) cat [face]", "(dog:0)"], weighted=True, chunked=chunked
    )
    expected = [rescaled(one * weight, one) for one, weight in zip(plain, weights, strict=True)]
    assert_close(actual, np.stack(expected))
    assert np.abs(actual - plain).max() > 0.5
    np.testing.assert_allclose(actual.mean(axis=(1, 2)), plain.mean(axis=(1, 2)), rtol=1e-4)


def test_weights_reach_over_the_end_of_a_chunk(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
    first, second = (encode_prompts(tokenizer, text_encoder, [text])[0] for text in (CATS, "dog red"))
    weights = np.ones((2, 32, 1))
    weights[0, ROOM] = weights[1, 1] = 1.3
    prompt = f"{CATS[:-4]} (cat dog:1.3) red"
    actual = encode_long_prompts(tokenizer, text_encoder, [prompt], weighted=True, chunked=True)[0]
    expected = [rescaled(one * weight, one) for one, weight in zip((first, second), weights, strict=True)]
    assert_close(actual, np.concatenate(expected))


def test_brackets_are_text_unless_weights_are_asked_for(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
    actual = encode_long_prompts(tokenizer, text_encoder, ["((cat:2)"], weighted=False, chunked=True)
    np.testing.assert_array_equal(actual, encode_prompts(tokenizer, text_encoder, ["((cat:2)"]))


@pytest.mark.parametrize(
    ("prompt", "kept", "removed"),
    [
        (f"{CATS} Dog (on a:1.2) [hill]", CATS, "Dog on a hill"),
        (f"{CATS[:-4]} (cat DOG:1.0) face", CATS, "DOG face"),
        (f"{CATS[:-8]} (cat:1.0) cat (red)", CATS, "red"),
    ],
)
def test_what_is_cut_off_is_said(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    caplog: pytest.LogCaptureFixture,
    prompt: str,
    kept: str,
    removed: str,
) -> None:
    with caplog.at_level(logging.WARNING, logger="safelight"):
        actual = encode_long_prompts(tokenizer, text_encoder, [prompt], weighted=True, chunked=False)
    assert caplog.messages == [f"the text encoder takes 32 tokens; this part of the prompt was cut off: {removed!r}"]
    np.testing.assert_array_equal(actual, encode_prompts(tokenizer, text_encoder, [kept]))


def test_nothing_is_cut_off_or_warned_of_in_chunks(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="safelight"):
        encode_long_prompts(tokenizer, text_encoder, [f"{CATS} dog"], weighted=True, chunked=True)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("(cat", {"weighted": True, "chunked": False}, r"unbalanced weight brackets: '\(' at position 0"),
        ("(cat:x)", {"weighted": True, "chunked": True}, "a weight must be a number"),
        (
            "cat",
            {"weighted": False, "chunked": True, "max_length": 2},
            "room for begin, end and one token more, got .*2",
        ),
    ],
)
def test_bad_input_is_refused(
    tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, prompt: str, options: dict[str, bool], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode_long_prompts(tokenizer, text_encoder, [prompt], **options)
