"""Textual inversion, against diffusers on the checkpoint that the bundled model was exported from."""

import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from safelight.runtime import CLIPTextModel, CLIPTokenizer, bundled_model
from safelight.runtime.backends import Array, open_network
from safelight.runtime.conditioning import PromptEncoder, encode_prompts
from safelight.runtime.model_folder import ModelFolder, open_model_folder
from safelight.runtime.networks import Engine, open_text_encoder
from safelight.runtime.textual_inversion import (
    TOKEN_EMBEDDING,
    TextualInversion,
    keep_textual_inversions,
    load_textual_inversion,
    read_textual_inversion,
)

WIDTH = 96
PROMPTS = [
    "a <cat-toy> on a beach",
    "a <CAT-TOY>, <cat-toy>s and<cat-toy>",
    "many-cats",
    "a red many-cats face with <cat-toy>",
    "cat face",
]


def vectors(*shape: int, seed: int = 0) -> Array:
    """Numbers that float16, in which the model's weights are stored, has too."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16).astype(np.float32)


@dataclass
class Model:
    """What a pipeline has of text."""

    folder: ModelFolder
    engine: Engine
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel

    def load(self, path: Path, token: str | None = None) -> TextualInversion:
        return load_textual_inversion(path, token=token, **vars(self))

    def encode(self, *prompts: str) -> Array:
        return encode_prompts(PromptEncoder(self.tokenizer, self.text_encoder), prompts).hidden


@pytest.fixture
def model() -> Iterator[Model]:
    folder, engine = open_model_folder(bundled_model()), Engine()
    tokenizer = CLIPTokenizer.from_pretrained(folder.folder("tokenizer"))
    model = Model(folder, engine, tokenizer, open_text_encoder(folder, engine))
    yield model
    model.text_encoder.close()


@pytest.fixture
def one_vector(tmp_path: Path) -> Path:
    save_file({"<cat-toy>": vectors(WIDTH)}, tmp_path / "cat.safetensors")
    return tmp_path / "cat.safetensors"


@pytest.fixture
def many_vectors(tmp_path: Path) -> Path:
    save_file({"emb_params": vectors(12, WIDTH, seed=1)}, tmp_path / "many-cats.safetensors")
    return tmp_path / "many-cats.safetensors"


def test_ids_and_embeddings_equal_diffusers(
    model: Model, one_vector: Path, many_vectors: Path, emoji_checkpoint: Path
) -> None:
    oracle = StableDiffusionPipeline.from_pretrained(emoji_checkpoint, safety_checker=None)
    oracle.load_textual_inversion(str(one_vector))
    oracle.load_textual_inversion(str(many_vectors), token="many-cats")
    before = model.encode("cat face")
    model.load(one_vector)
    model.load(many_vectors)

    texts = oracle.maybe_convert_prompt([prompt.lower() for prompt in PROMPTS], oracle.tokenizer)
    input_ids = oracle.tokenizer(texts, padding="max_length", return_tensors="pt")["input_ids"]
    np.testing.assert_array_equal(model.tokenizer.encode(PROMPTS), input_ids.numpy())
    assert len(model.tokenizer) == len(oracle.tokenizer)
    with torch.no_grad():
        expected = oracle.text_encoder(input_ids).last_hidden_state.numpy()
    np.testing.assert_allclose(model.encode(*PROMPTS), expected, rtol=0, atol=5e-5)
    np.testing.assert_allclose(model.encode("cat face"), before, rtol=0, atol=1e-6)  # the others stay as they were


def test_hidden_states_and_the_pooled_output_know_the_token(model: Model, one_vector: Path) -> None:
    matrix = model.folder.tensor("text_encoder", TOKEN_EMBEDDING)
    (cat,) = model.tokenizer.token_ids("cat")
    save_file({"<x>": matrix[cat]}, one_vector)  # another name of the cat
    model.load(one_vector)
    ids, renamed = model.tokenizer.encode("red cat"), model.tokenizer.encode("red <x>")
    assert (ids != renamed).sum() == 1
    for run in (model.text_encoder, lambda given: model.text_encoder(given).pooler_output):
        expected, actual = run(ids), run(renamed)
        np.testing.assert_array_equal(
            getattr(actual, "last_hidden_state", actual), getattr(expected, "last_hidden_state", expected)
        )
    np.testing.assert_array_equal(model.text_encoder.hidden_state(renamed, 1), model.text_encoder.hidden_state(ids, 1))


def test_callers_ids_are_not_written_to(model: Model, one_vector: Path) -> None:
    model.load(one_vector)
    input_ids = model.tokenizer.encode("<cat-toy>")
    copy = input_ids.copy()
    model.text_encoder(input_ids)
    np.testing.assert_array_equal(input_ids, copy)


def test_no_prompt_has_an_unused_token(model: Model) -> None:
    unused = set(model.tokenizer.unused_token_ids())
    assert len(unused) == 90
    characters = [chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000]
    for text in ("".join(characters), " ".join(characters), "a".join(characters), "".join(reversed(characters))):
        used = set(model.tokenizer.token_ids(text))
        assert len(used) > 250
        assert not used & unused


def test_a_text_encoder_opened_anew_keeps_what_was_learned(model: Model, one_vector: Path, many_vectors: Path) -> None:
    model.load(one_vector)
    model.load(many_vectors)
    expected = model.encode(*PROMPTS)
    reopened = open_text_encoder(model.folder, model.engine)
    model.text_encoder.close()
    keep_textual_inversions(model.text_encoder, reopened, folder=model.folder, engine=model.engine)
    model.text_encoder = reopened
    np.testing.assert_array_equal(model.encode(*PROMPTS), expected)


def is_closed(network: Any) -> bool:
    try:
        network({"input_ids": np.array([[1]])})
    except RuntimeError as error:
        return "is closed" in str(error)
    return False


def test_networks_that_are_replaced_or_in_vain_are_closed(
    model: Model, one_vector: Path, many_vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = [model.text_encoder.network]

    def spy(*arguments: Any, **options: Any) -> Any:
        opened.append(open_network(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr("safelight.runtime.networks.engine.open_network", spy)
    model.load(one_vector)
    with pytest.raises(ValueError, match="already"):
        model.load(many_vectors, "<cat-toy>")
    model.load(many_vectors)
    assert [is_closed(network) for network in opened] == [True, True, True, False]
    reopened = open_text_encoder(model.folder, model.engine)
    keep_textual_inversions(model.text_encoder, reopened, folder=model.folder, engine=model.engine)
    assert [is_closed(network) for network in opened[3:]] == [False, True, False]
    reopened.close()


def test_nothing_is_kept_where_nothing_was_learned(model: Model) -> None:
    reopened = open_text_encoder(model.folder, model.engine)
    network = reopened.network
    keep_textual_inversions(model.text_encoder, reopened, folder=model.folder, engine=model.engine)
    assert reopened.network is network
    reopened.close()


def test_a_multi_vector_token_is_cut_and_named_as_others(model: Model, many_vectors: Path) -> None:
    model.load(many_vectors)
    assert model.tokenizer.truncated("cat Many-Cats dog") == ""
    assert model.tokenizer.truncated("cat Many-Cats dog", max_length=15) == "dog"
    assert model.tokenizer.truncated("cat Many-Cats dog", max_length=14) == "Many-Cats dog"
    ids = model.tokenizer.token_ids("many-cats")
    assert [model.tokenizer.decode([one]) for one in ids[:2]] == ["many-cats", "many-cats_1"]


def test_a_saved_tokenizer_is_the_one_of_the_folder(tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):  # tokenizer.json is written anew
        shutil.copyfile(bundled_model() / "tokenizer" / name, tmp_path / name)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    size = len(tokenizer)
    assert tokenizer.add_token("<x>", 2) == [size, size + 1]
    tokenizer.save_pretrained(tmp_path / "saved")
    assert len(CLIPTokenizer.from_pretrained(tmp_path / "saved")) == size


@pytest.mark.parametrize(
    ("tensors", "token", "expected"),
    [
        ({"<cat>": vectors(WIDTH)}, None, ("<cat>", (1, WIDTH))),
        ({"<cat>": vectors(3, WIDTH)}, None, ("<cat>", (3, WIDTH))),
        ({"<cat>": vectors(WIDTH)}, "<dog>", ("<dog>", (1, WIDTH))),
        ({"emb_params": vectors(3, WIDTH)}, None, ("learned_embeds", (3, WIDTH))),
        ({"emb_params": vectors(3, WIDTH)}, "<dog>", ("<dog>", (3, WIDTH))),
    ],
)
def test_both_layouts_are_read(
    tmp_path: Path, tensors: dict[str, Array], token: str | None, expected: tuple[str, tuple[int, ...]]
) -> None:
    save_file(tensors, tmp_path / "learned_embeds.safetensors")
    for path in (tmp_path, tmp_path / "learned_embeds.safetensors"):
        inversion = read_textual_inversion(path, token)
        assert (inversion.token, inversion.vectors.shape) == expected
        np.testing.assert_array_equal(inversion.vectors, np.atleast_2d(next(iter(tensors.values()))))


def write(tensors: dict[str, Array]) -> Callable[[Path], None]:
    return lambda path: save_file(tensors, path)


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (
            write({"<x>": vectors(95)}),
            "x.safetensors",
            "a width of 96, those of '<x>' have 95: it was made for another",
        ),
        (write({"<x>": vectors(91, WIDTH)}), "x.safetensors", "'<x>' has 91 vectors, there is room for 90"),
        (write({"cat": vectors(0, WIDTH)}), "x.safetensors", r"got float32 \(0, 96\)"),
        (write({"<x>": vectors(1, 2, WIDTH)}), "x.safetensors", r"got float32 \(1, 2, 96\)"),
        (write({"<x>": np.zeros(WIDTH, np.int64)}), "x.safetensors", "floating-point numbers, got int64"),
        (write({"<x>": np.full(WIDTH, 1e6, np.float32)}), "x.safetensors", "not finite in float16"),
        (
            write({"clip_l": vectors(1, 4), "clip_g": vectors(1, 4)}),
            "x.safetensors",
            "has embeddings for the two text encoders of SDXL, and this model has one",
        ),
        (
            write({f"layer.{n}": vectors(1, 4) for n in range(9)}),
            "x.safetensors",
            r"got 9: layer.0, layer.1, layer.2, ...$",
        ),
        (write({}), "x.safetensors", "got 0: $"),
        (write({"<|EndOfText|>".lower(): vectors(WIDTH)}), "x.safetensors", "has a token '<|endoftext|>' already"),
        (write({"cat</w>": vectors(WIDTH)}), "x.safetensors", "has a token 'cat</w>' already"),
        (write({" ": vectors(WIDTH)}), "x.safetensors", "must have a name"),
        (
            lambda path: path.write_bytes(pickle.dumps({"<x>": [0.0]})),
            "x.safetensors",
            "cannot be read as a safetensors",
        ),
        (lambda path: path.write_bytes(pickle.dumps({"<x>": [0.0]})), "x.pt", "is a pickle, .* can run code"),
        (lambda path: path.write_bytes(pickle.dumps({"<x>": [0.0]})), "learned_embeds.bin", "is a pickle, .* can run"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(
    model: Model, tmp_path: Path, make: Callable[[Path], Any], name: str, message: str
) -> None:
    make(tmp_path / name)
    network, size = model.text_encoder.network, len(model.tokenizer)
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        model.load(tmp_path if name == "learned_embeds.bin" else tmp_path / name)
    assert (model.text_encoder.network, len(model.tokenizer)) == (network, size)
    assert model.encode("cat").shape == (1, 32, WIDTH)  # not closed


def test_bfloat16_is_refused_in_words(model: Model, tmp_path: Path) -> None:
    save_torch_file({"<x>": torch.zeros(WIDTH, dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"NumPy's dtypes|got bfloat16"):
        model.load(tmp_path / "x.safetensors")


def test_a_missing_file_is_named(model: Model, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no embedding .*nothing\.safetensors"):
        model.load(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match=r"there is no embedding .*learned_embeds\.safetensors"):
        model.load(tmp_path)


def test_a_token_is_loaded_once_and_the_first_stays(model: Model, one_vector: Path, many_vectors: Path) -> None:
    model.load(one_vector)
    expected = model.encode("a <cat-toy>")
    for path, token, taken in ((one_vector, None, "<cat-toy>"), (many_vectors, "<cat-toy>", "<cat-toy>")):
        with pytest.raises(ValueError, match=f"has a token '{taken}' already; choose another name"):
            model.load(path, token)
    np.testing.assert_array_equal(model.encode("a <cat-toy>"), expected)
    model.load(one_vector, "<other>")
    np.testing.assert_array_equal(model.encode("a <other>"), expected)
    model.load(one_vector, "<y>_1")
    with pytest.raises(ValueError, match="has a token '<y>_1' already"):
        model.load(one_vector, "<y>")


def test_tokens_that_prompts_do_not_tell_apart_are_refused(model: Model, one_vector: Path, many_vectors: Path) -> None:
    model.load(one_vector, "<Cat  Toy>")
    expected = model.encode("a <cat toy>", "a <CAT   Toy>")
    np.testing.assert_array_equal(expected[0], expected[1])
    for token in ("<cat toy>", "<CAT TOY>"):
        with pytest.raises(ValueError, match=f"has a token '{token}' already; choose another name"):
            model.load(many_vectors, token)
    np.testing.assert_array_equal(model.encode("a <cat toy>", "a <CAT   Toy>"), expected)


def test_room_is_counted_over_all_that_were_loaded(model: Model, tmp_path: Path) -> None:
    save_file({"<x>": vectors(75, WIDTH)}, tmp_path / "x.safetensors")
    model.load(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="'<y>' has 75 vectors, there is room for 15"):
        model.load(tmp_path / "x.safetensors", "<y>")


@pytest.mark.parametrize(
    "initializers",
    [
        {"nothing": np.zeros(3, np.float32)},
        {TOKEN_EMBEDDING: np.zeros((2265, WIDTH), np.float32)},
        {TOKEN_EMBEDDING: np.zeros((2266, WIDTH), np.float16)},
    ],
)
def test_a_backend_refuses_initializers_that_are_not_the_graphs(initializers: dict[str, Array]) -> None:
    with pytest.raises(ValueError, match=r"model\.onnx cannot be opened by ONNX Runtime: .*(initializer|Replacement)"):
        open_network(bundled_model() / "text_encoder" / "model.onnx", initializers=initializers)


def test_a_backend_takes_initializers_in_place_of_the_files(model: Model) -> None:
    zeros = np.zeros_like(model.folder.tensor("text_encoder", TOKEN_EMBEDDING))
    network = open_network(model.folder.graph("text_encoder"), initializers={TOKEN_EMBEDDING: zeros})
    first, second = (network({"input_ids": np.array([[one]])})["hidden_states.0"] for one in (1, 2))
    np.testing.assert_array_equal(first, second)
    network.close()
