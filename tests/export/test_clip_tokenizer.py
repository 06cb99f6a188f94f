"""The tokenizer that single files are given: that of openai/clip-vit-large-patch14."""

import hashlib
import json
from pathlib import Path

import pytest
import transformers

from safelight.export.single_file import tokenizer
from safelight.runtime.tokenizer import CLIPTokenizer

#: published token ids
IDS = {
    "a photo of a cat": [49406, 320, 1125, 539, 320, 2368, 49407],
    "": [49406, 49407],
    "hello world": [49406, 3306, 1002, 49407],
    "a photo of a dog": [49406, 320, 1125, 539, 320, 1929, 49407],
}
PROMPTS = [*IDS, "Hello, World! It's 日本, naïve café 🐱", "a!b ! c", "x" * 300, "<|endoftext|> a", "1234 don't"]


@pytest.fixture(scope="module", params=["<|endoftext|>", "!"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "tokenizer"
    tokenizer.write_tokenizer(path, pad_token=request.param)
    return path


def test_vocabulary_is_the_published_one(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert len(vocabulary) == 49408
    assert sorted(vocabulary.values()) == list(range(49408))
    known = {"!": 0, "a</w>": 320, "cat</w>": 2368, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    assert {token: vocabulary[token] for token in known} == known
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert len(merges) == 1 + 48894
    assert merges[1] == "i n"


def test_the_bundled_file_is_openais() -> None:
    content = (Path(tokenizer.__file__).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    digest = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    assert hashlib.sha256(content).hexdigest() == digest


@pytest.mark.parametrize("prompt", IDS)
def test_ids_are_the_published_ones(folder: Path, prompt: str) -> None:
    ours = CLIPTokenizer.from_pretrained(folder)
    ids = ours.encode(prompt)[0].tolist()
    length = len(IDS[prompt])
    assert ids[:length] == IDS[prompt]
    assert len(ids) == 77
    pad = json.loads((folder / "special_tokens_map.json").read_text())["pad_token"]
    assert set(ids[length:]) == {49407 if pad == "<|endoftext|>" else 0}


def test_transformers_and_the_runtime_read_the_same_tokenizer(folder: Path) -> None:
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    ours = CLIPTokenizer.from_pretrained(folder)
    assert len(theirs) == len(ours) == 49408
    assert theirs.model_max_length == ours.model_max_length == 77
    for prompt in PROMPTS:
        expected = theirs(prompt, padding="max_length", max_length=77, truncation=True).input_ids
        assert ours.encode(prompt)[0].tolist() == expected
