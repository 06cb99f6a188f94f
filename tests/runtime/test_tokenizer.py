"""The tokenizer against transformers, on the bundled vocabulary and on one of a few thousand merges made here."""

import json
import random
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer as TransformersTokenizer

from safelight.runtime.tokenizer import CLIPTokenizer

BUNDLED = Path(__file__).parents[2] / "reference" / "emoji" / "checkpoint" / "tokenizer"
FLAGS = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
ALL_FILES = ["merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"]

EDGE_CASES = [
    "",
    " ",
    "\t\n\r\v\f",
    "\x00",
    "a\x00b\x1f\x7f\x85\u2028c",
    "  two  spaces \u00a0\u2003\u3000\u200b\ufeff around ",
    "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m",
    unicodedata.normalize("NFD", "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m"),
    "\u0130stanbul I\u0307 \u1e9e stra\u00dfe \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2 \u01c5",
    "\U0001f431 \U0001f469\u200d\U0001f680 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1eb\U0001f1f7 1\ufe0f\u20e3",
    "\u732b\u306e\u7d75 \uace0\uc591\uc774 \u0642\u0637\u0629",
    "\u0e41\u0e21\u0e27 \u05d7\u05ea\u05d5\u05dc \u092c\u093f\u0932\u094d\u0932\u0940",
    "3.14159 1,000,000 v2 \u00bd \u2167 \u0663 \u00b2 4k 8K",
    "what's it's don't we're I've I'm they'll he'd O'Neil 'S 'T rock'n'roll \u2019s",
    "!!! ... ?!? --- ((cat:1.3)) [dog|fox] <lora:x:0.8> @#$%^&*()_+={}\\/~`",
    "<|endoftext|>",
    "<|startoftext|>",
    "a cat <|endoftext|> a dog",
    "a cat<|endoftext|>a dog<|startoftext|>",
    " <|EndOfText|> <|ENDOFTEXT|> <|STARTOFTEXT|>x",
    "<|endoftext <|endof text|> <|pad|> </w> a</w>b",
    "<cat-toy> on a beach, <CAT-TOY>!<cat-toy>",
    "\U0010ffff\ue000\ufffd",
    "e\u0301" * 40,
    "z" * 500,
    "\U0001f600" * 100,
]


@pytest.fixture(scope="module")
def words() -> list[str]:
    chooser = random.Random(0)
    letters = "aaabcdeeeeefghiiijklmnnoooprrsstttuvwxyz\u00e9\u00fc\u03bb\u03bf\u043a"
    syllables = ["".join(chooser.choices(letters, k=chooser.randint(2, 4))) for _ in range(300)]
    return ["".join(chooser.choices(syllables, k=chooser.randint(1, 4))) for _ in range(6000)]


@pytest.fixture(scope="module")
def vocab_and_merges(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> Path:
    """A folder with `vocab.json` and `merges.txt` of 4,000 merges, laid out as CLIP's: bytes, bytes + </w>, merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    split = pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.train_from_iterator(
        [" ".join(words[i : i + 10]) for i in range(0, len(words), 10)],
        trainers.BpeTrainer(
            vocab_size=4300,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
            special_tokens=[],
        ),
    )
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    assert len(merges) > 3000
    tokens = dict.fromkeys([*alphabet, *(letter + "</w>" for letter in alphabet), *map("".join, merges)])
    tokens |= dict.fromkeys(["<|startoftext|>", "<|endoftext|>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = "".join(f"{first} {second}\n" for first, second in merges)
    (folder / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
    return folder


@pytest.fixture(
    scope="module",
    params=[
        "bundled",
        "bundled-vocab-merges",
        "bare",
        "sd1",
        "sd2",
        "added-tokens-json",
        "tokenizer-json-only",
        "added-tokens-decoder",
    ],
)
def folder(request: pytest.FixtureRequest, vocab_and_merges: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every layout that a checkpoint's tokenizer comes in."""
    if request.param == "bundled":
        return BUNDLED
    folder = tmp_path_factory.mktemp(request.param)
    source = BUNDLED if request.param.startswith("bundled") else vocab_and_merges
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(source / name, folder / name)
    begin, end = ({"content": token, **FLAGS} for token in ("<|startoftext|>", "<|endoftext|>"))
    config = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"}
    match request.param:
        case "bundled-vocab-merges":
            config["model_max_length"] = 32
        case "sd1":
            typed = {"__type": "AddedToken"}
            config |= {"bos_token": begin | typed, "eos_token": end | typed, "unk_token": end | typed}
            special = {"bos_token": begin, "eos_token": end, "pad_token": "<|endoftext|>", "unk_token": end}
            (folder / "special_tokens_map.json").write_text(json.dumps(special))
        case "sd2":
            special = {"bos_token": begin, "eos_token": end, "pad_token": "!", "unk_token": end}
            (folder / "special_tokens_map.json").write_text(json.dumps(special))
        case "added-tokens-json":
            size = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
            (folder / "added_tokens.json").write_text(json.dumps({"<cat-toy>": size}))
        case "tokenizer-json-only":
            complete(folder, config, added="<cat-toy>")
            (folder / "vocab.json").unlink()
            (folder / "merges.txt").unlink()
        case "added-tokens-decoder":
            config["additional_special_tokens"] = ["<cat-toy>"]
            vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            config["pad_token"] = "!"
            config["added_tokens_decoder"] = {
                "0": {"content": "!", **FLAGS, "special": True, "normalized": False},
                str(vocabulary["<|startoftext|>"]): begin | {"special": True},
                str(vocabulary["<|endoftext|>"]): end | {"special": True, "normalized": False},
            }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def complete(folder: Path, config: dict[str, object], added: str) -> None:
    """Writes `tokenizer.json` with transformers, a token added."""
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = TransformersTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([added])
    tokenizer.save_pretrained(folder)


def prompts(folder: Path, words: list[str]) -> list[str]:
    """Some 3,000 prompts, the same every time."""
    chooser = random.Random(1)
    vocabulary = list(CLIPTokenizer.from_pretrained(folder)._files.vocabulary)
    pieces = [*(token.replace("</w>", "") for token in vocabulary), *words, *EDGE_CASES]
    scripts = [
        (0x20, 0x7F),
        (0xA0, 0x24F),
        (0x300, 0x36F),
        (0x370, 0x5FF),
        (0x900, 0x97F),
        (0x1100, 0x11FF),
        (0x2000, 0x206F),
    ]
    scripts += [
        (0x2600, 0x27BF),
        (0x3040, 0x30FF),
        (0x4E00, 0x4FFF),
        (0xAC00, 0xADFF),
        (0xFE00, 0xFE0F),
        (0x1F300, 0x1F6FF),
    ]
    result = list(EDGE_CASES)
    for count in range(1500):
        text = chooser.choice([" ", "", ", ", "\n", "'s "]).join(chooser.choices(pieces, k=chooser.randint(1, 12)))
        result.append(chooser.choice([str, str.upper, str.title])(text) if count % 3 else text)
    for _ in range(1500):
        low, high = chooser.choice(scripts)
        text = "".join(chr(chooser.randint(low, high)) for _ in range(chooser.randint(1, 20)))
        result.append(chooser.choice(["", "a cat, ", "3"]) + text + chooser.choice(["", " \u0301", "!"]))
    return result


def test_ids_equal_transformers(folder: Path, words: list[str]) -> None:
    tokenizer, oracle = CLIPTokenizer.from_pretrained(folder), TransformersTokenizer.from_pretrained(folder)
    texts = prompts(folder, words)
    length = oracle.model_max_length
    expected = oracle(texts, padding="max_length", max_length=length, truncation=True)["input_ids"]
    actual = tokenizer.encode(texts)
    assert actual.dtype == np.int64
    assert actual.shape == (len(texts), length)
    differing = [text for text, ours, theirs in zip(texts, actual.tolist(), expected, strict=True) if ours != theirs]
    assert differing == []


def test_special_ids_and_sizes_equal_transformers(folder: Path) -> None:
    tokenizer, oracle = CLIPTokenizer.from_pretrained(folder), TransformersTokenizer.from_pretrained(folder)
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "model_max_length")
    assert {name: getattr(tokenizer, name) for name in names} == {name: getattr(oracle, name) for name in names}
    assert len(tokenizer) == len(oracle)


def test_decoded_text_equals_transformers(folder: Path, words: list[str]) -> None:
    tokenizer, oracle = CLIPTokenizer.from_pretrained(folder), TransformersTokenizer.from_pretrained(folder)
    for row in tokenizer.encode(prompts(folder, words)[:300]):
        assert tokenizer.decode(row) == oracle.decode(row.tolist())
        assert tokenizer.decode(row, skip_special_tokens=True) == oracle.decode(row.tolist(), skip_special_tokens=True)


@pytest.mark.parametrize("tokens", [0, 1, 29, 30, 31, 32, 33, 90])
def test_begin_and_end_stay_at_every_length(tokens: int) -> None:
    row = CLIPTokenizer.from_pretrained(BUNDLED).encode("cat " * tokens)[0].tolist()
    kept = min(tokens, 30)
    assert row[0] == 2263
    assert row[1 : 1 + kept] == [454] * kept
    assert row[1 + kept :] == [2264] * (31 - kept)


def test_published_ids_of_the_bundled_vocabulary() -> None:
    ids = CLIPTokenizer.from_pretrained(BUNDLED)(["cat face on a blue background"])
    assert ids[0, :8].tolist() == [2263, 454, 316, 298, 274, 334, 304, 2264]


def test_truncated_is_what_encode_leaves_out() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED)
    assert tokenizer.truncated("cat " * 30) == ""
    assert tokenizer.truncated("") == ""
    assert tokenizer.truncated("cat " * 30 + "Grinning FACE, \u00e9t\u00e9") == "Grinning FACE, \u00e9t\u00e9"
    assert tokenizer.truncated("cat face", max_length=3) == "face"
    prompt = "Grinning face with SMILING eyes " * 9
    kept = prompt.removesuffix(" " + tokenizer.truncated(prompt) + " ")
    np.testing.assert_array_equal(tokenizer.encode(kept), tokenizer.encode(prompt))
    assert tokenizer.truncated(kept) == ""


def test_max_length_argument() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED)
    assert tokenizer.encode(["cat", "cat face"], max_length=4).tolist() == [
        [2263, 454, 2264, 2264],
        [2263, 454, 316, 2264],
    ]
    assert tokenizer.encode("cat", max_length=2).tolist() == [[2263, 2264]]
    assert tokenizer.encode([]).shape == (0, 32)
    with pytest.raises(ValueError, match=r"at least 2.* got 1"):
        tokenizer.encode("cat", max_length=1)
    with pytest.raises(TypeError, match="must be an integer, got float"):
        tokenizer.encode("cat", max_length=3.0)  # type: ignore[arg-type]


def test_saved_folder_is_whole_and_reads_the_same(folder: Path, words: list[str], tmp_path: Path) -> None:
    CLIPTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "added_tokens.json") == ALL_FILES
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    texts = prompts(folder, words)[:400]
    expected = CLIPTokenizer.from_pretrained(folder).encode(texts)
    np.testing.assert_array_equal(CLIPTokenizer.from_pretrained(tmp_path).encode(texts), expected)
    oracle = TransformersTokenizer.from_pretrained(tmp_path)
    padded = oracle(texts, padding="max_length", max_length=oracle.model_max_length, truncation=True)["input_ids"]
    np.testing.assert_array_equal(padded, expected)


def test_a_folder_is_completed_in_place(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(BUNDLED / name, tmp_path / name)
    CLIPTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ALL_FILES
    assert (tmp_path / "tokenizer.json").read_bytes() == (BUNDLED / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").unlink()  # what is left is what transformers 4 reads
    texts = ["red heart on a pink background", *EDGE_CASES]
    expected = CLIPTokenizer.from_pretrained(BUNDLED).encode(texts)
    np.testing.assert_array_equal(CLIPTokenizer.from_pretrained(tmp_path).encode(texts), expected)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (7, "prompt must be a string or a list of strings, got int"),
        (None, "prompt must be a string or a list of strings, got NoneType"),
        (b"cat", "prompt must be a string or a list of strings, got bytes"),
        (["cat", None], "prompt must be a string or a list of strings, got a list with NoneType at 1"),
    ],
)
def test_wrong_prompt_type(prompt: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        CLIPTokenizer.from_pretrained(BUNDLED).encode(prompt)  # type: ignore[arg-type]


def test_lone_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prompt is not valid Unicode: 'cat .ud800'"):
        CLIPTokenizer.from_pretrained(BUNDLED).encode("cat \ud800")


@pytest.mark.parametrize("token_ids", [[-1], [2265], [[1, 2]], [0.5]])
def test_decode_refuses_what_is_no_row_of_ids(token_ids: list[int]) -> None:
    with pytest.raises(ValueError, match="token"):
        CLIPTokenizer.from_pretrained(BUNDLED).decode(token_ids)


def damaged(tmp_path: Path, name: str, text: str) -> Path:
    shutil.copytree(BUNDLED, tmp_path / "tokenizer")
    if name in ("vocab.json", "merges.txt"):
        (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    (tmp_path / "tokenizer" / name).write_text(text, encoding="utf-8")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json is not valid JSON"),
        ("tokenizer.json", "[]", "tokenizer.json holds no JSON object"),
        ("tokenizer.json", "{}", "tokenizer.json holds a tokenizer of type None; CLIP's is BPE"),
        ("tokenizer.json", '{"model": {"type": "Unigram"}}', "holds a tokenizer of type Unigram; CLIP's is BPE"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 0}}}', "holds no list model.merges"),
        (
            "tokenizer.json",
            '{"model": {"vocab": {"a": 0}, "merges": [["a"]]}}',
            "merge 1: a merge is two tokens .* got 'a'",
        ),
        (
            "tokenizer.json",
            '{"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": [1]}',
            "added_tokens must be a list",
        ),
        ("tokenizer_config.json", "nonsense", "tokenizer_config.json is not valid JSON"),
        ("tokenizer_config.json", '{"model_max_length": "77"}', "model_max_length must be an integer .* got '77'"),
        ("tokenizer_config.json", '{"padding_side": "left"}', "padding_side must be 'right', got 'left'"),
        ("tokenizer_config.json", '{"bos_token": 3}', "a special token must be a string .* got 3"),
        ("tokenizer_config.json", "{}", "does not say model_max_length in tokenizer_config.json"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"x": {"content": "a"}}}',
            "id of an added token .* got 'x'",
        ),
        ("vocab.json", "{}", "vocab.json holds no vocabulary"),
        ("vocab.json", '{"a": "b"}', "the id of 'a' must be a non-negative integer, got 'b'"),
        ("vocab.json", '{"a": 0, "b": 0}', "vocab.json gives one id to several tokens"),
        (
            "merges.txt",
            "#version: 0.2\na c\nabc\n",
            "merges.txt, line 3: a merge is two tokens with a space between, got 'abc'",
        ),
        ("merges.txt", "#version: 0.2\na c\n\ng r\n", "merges.txt, line 3: a merge is two tokens"),
        ("merges.txt", "a \u732b", "merges 'a' and '\u732b', but '\u732b' is not in the vocabulary"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLIPTokenizer.from_pretrained(damaged(tmp_path, name, text))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer folder .*nowhere"):
        CLIPTokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"missing vocab\.json and merges\.txt"):
        CLIPTokenizer.from_pretrained(tmp_path)
    shutil.copyfile(BUNDLED / "vocab.json", tmp_path / "vocab.json")
    with pytest.raises(FileNotFoundError, match=r"missing merges\.txt"):
        CLIPTokenizer.from_pretrained(tmp_path)


def test_folder_without_a_config_needs_the_length(tmp_path: Path) -> None:
    shutil.copyfile(BUNDLED / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="pass from_pretrained"):
        CLIPTokenizer.from_pretrained(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, model_max_length=32)
    np.testing.assert_array_equal(
        tokenizer.encode("red heart"), CLIPTokenizer.from_pretrained(BUNDLED).encode("red heart")
    )


def test_windows_line_ends_in_merges(tmp_path: Path) -> None:
    merges = (BUNDLED / "merges.txt").read_bytes().replace(b"\n", b"\r\n").decode()
    tokenizer = CLIPTokenizer.from_pretrained(damaged(tmp_path, "merges.txt", merges))
    np.testing.assert_array_equal(
        tokenizer.encode("red heart"), CLIPTokenizer.from_pretrained(BUNDLED).encode("red heart")
    )


def test_repr_tells_the_sizes() -> None:
    assert repr(CLIPTokenizer.from_pretrained(BUNDLED)) == (
        "CLIPTokenizer(vocab_size=2265, model_max_length=32, bos_token_id=2263, eos_token_id=2264, pad_token_id=2264)"
    )


def test_import_does_not_load_the_tokenizers_library() -> None:
    code = "import sys, safelight.runtime.tokenizer; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
