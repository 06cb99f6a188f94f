"""The files of a checkpoint's `tokenizer/` folder: what they say, whichever of the two layouts they are in.

Transformers 4 writes `vocab.json` + `merges.txt`, transformers 5 only `tokenizer.json`. Which file has the last word on
the special tokens follows transformers 5.23 (`PreTrainedTokenizerBase._from_pretrained`), so that ids agree with it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .text_files import LARGEST_VOCABULARY, read_json_object, read_text

VOCABULARY = "vocab.json"
MERGES = "merges.txt"
TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"

# transformers' CLIPTokenizer takes these where no file says otherwise; the order decides which spelling of a token wins
DEFAULT_SPECIAL_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "sep_token": None,
    "pad_token": "<|endoftext|>",
    "cls_token": None,
    "mask_token": None,
}
_ADDED_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_NO_LIMIT = 1_000_000  # transformers writes 1e30 where a tokenizer has no model_max_length


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token that is cut out of the prompt before byte-pair encoding; `flags` are those of `tokenizers.AddedToken`."""

    content: str
    flags: Mapping[str, bool]


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """What a tokenizer folder says."""

    folder: Path
    vocabulary: dict[str, int]
    merges: list[tuple[str, str]]
    special_tokens: dict[str, str]  # "bos_token", "eos_token", "unk_token", "pad_token" and others that the files name
    added_tokens: list[AddedToken]  # in the order in which they are added
    model_max_length: int | None


def read_tokenizer_files(folder: str | Path) -> TokenizerFiles:
    """The contents of a tokenizer folder.

    Args:
        folder: Holds `tokenizer.json`, or `vocab.json` and `merges.txt`; the first is preferred, as transformers does.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing (the error names it).
        ValueError: a file is corrupt, or describes a tokenizer that is not CLIP's.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no tokenizer folder {folder}")
    vocabulary, merges, listed = _read_model(folder)
    config = _read_optional(folder / CONFIG)
    for side in ("padding_side", "truncation_side"):
        if config.get(side, "right") != "right":
            raise ValueError(f"{folder / CONFIG}: {side} must be 'right', got {config[side]!r}")

    named: dict[str, Any] = DEFAULT_SPECIAL_TOKENS | _special_tokens(config)
    extra = config.get("extra_special_tokens", config.get("additional_special_tokens"))
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        for index, token in _entries(config["added_tokens_decoder"], folder / CONFIG):
            added[_token_id(index, folder / CONFIG)] = _added_token(token, folder / CONFIG)
    else:
        special_map = _read_optional(folder / SPECIAL_TOKENS)
        named |= _special_tokens(special_map)
        extra = special_map.get("extra_special_tokens", special_map.get("additional_special_tokens", extra))
        special = {_content(token, folder) for token in [*named.values(), *_listed(extra)] if token}
        for content, index in _read_optional(folder / ADDED_TOKENS).items():
            flags = {"normalized": content not in special, "special": content in special}
            added[_token_id(index, folder / ADDED_TOKENS)] = AddedToken(content=content, flags=flags)
        for token in listed:
            added[_token_id(token.get("id"), folder / TOKENIZER)] = _added_token(token, folder / TOKENIZER)

    special_tokens = {key: _content(token, folder) for key, token in named.items() if token}
    tokens = [added[index] for index in sorted(added)]
    already_added = {token.content for token in tokens}
    candidates = [token for token in [*named.values(), *_listed(extra)] if token]
    tokens += [
        _added_token(_special(token), folder) for token in candidates if _content(token, folder) not in already_added
    ]
    tokens = [_marked_special(token) if token.content in special_tokens.values() else token for token in tokens]
    return TokenizerFiles(
        folder=folder,
        vocabulary=vocabulary,
        merges=merges,
        special_tokens=special_tokens,
        added_tokens=tokens,
        model_max_length=_model_max_length(config, folder / CONFIG),
    )


def _read_model(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], list[dict[str, Any]]]:
    """Vocabulary, merges, and the added tokens that `tokenizer.json` lists."""
    path = folder / TOKENIZER
    if path.is_file():
        tokenizer = read_json_object(path, limit=LARGEST_VOCABULARY)
        model = tokenizer.get("model")
        kind = model.get("type", "BPE") if isinstance(model, dict) else None
        if kind != "BPE":
            raise ValueError(f"{path} holds a tokenizer of type {kind}; CLIP's is BPE")
        assert isinstance(model, dict)
        merges = [
            _merge(pair.split(" ") if isinstance(pair, str) else pair, f"{path}, merge {number}")
            for number, pair in enumerate(_list(model.get("merges"), path, "model.merges"), start=1)
        ]
        vocabulary = _vocabulary(model.get("vocab"), path)
        listed = _list(tokenizer.get("added_tokens", []), path, "added_tokens")
        if not all(isinstance(token, dict) for token in listed):
            raise ValueError(f"{path}: added_tokens must be a list of objects")
    else:
        missing = [name for name in (VOCABULARY, MERGES) if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder} is missing {' and '.join(missing)}: "
                f"a tokenizer needs {TOKENIZER}, or {VOCABULARY} and {MERGES}"
            )
        path = folder / MERGES
        vocabulary = _vocabulary(read_json_object(folder / VOCABULARY, limit=LARGEST_VOCABULARY), folder / VOCABULARY)
        merges = list(_read_merges(path))
        listed = []
    for first, second in merges:
        for token in (first, second, first + second):
            if token not in vocabulary:
                raise ValueError(f"{path} merges {first!r} and {second!r}, but {token!r} is not in the vocabulary")
    return vocabulary, merges, listed


def _read_merges(path: Path) -> Iterator[tuple[str, str]]:
    text = read_text(path, limit=LARGEST_VOCABULARY)
    # not splitlines: it would also split at characters that tokens may hold
    for number, line in enumerate(text.rstrip("\r\n").split("\n"), start=1):
        if not line.startswith("#version"):
            yield _merge(line.rstrip("\r").split(" "), f"{path}, line {number}")


def _merge(pair: Any, place: str) -> tuple[str, str]:
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) and part for part in pair)):
        text = " ".join(map(str, pair)) if isinstance(pair, list) else str(pair)
        raise ValueError(f"{place}: a merge is two tokens with a space between, got {text[:80]!r}")
    return pair[0], pair[1]


def _vocabulary(value: Any, path: Path) -> dict[str, int]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{path} holds no vocabulary")
    for token, index in value.items():
        if type(index) is not int or not 0 <= index < 2**32:
            raise ValueError(f"{path}: the id of {token!r} must be a non-negative integer, got {index!r}")
    if len(set(value.values())) != len(value):
        raise ValueError(f"{path} gives one id to several tokens")
    return value


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in DEFAULT_SPECIAL_TOKENS and value is not None}


def _special(token: Any) -> Any:
    """A special token as the files spell it (a string, or an object with flags), marked special."""
    return {**token, "special": True} if isinstance(token, dict) else token


def _marked_special(token: AddedToken) -> AddedToken:
    return AddedToken(content=token.content, flags={**token.flags, "special": True})


def _added_token(token: Any, path: Path) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(content=token, flags={"special": True})
    content = _content(token, path)
    return AddedToken(content=content, flags={k: bool(token[k]) for k in _ADDED_TOKEN_FLAGS if k in token})


def _content(token: Any, path: Path) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str) or not content:
        raise ValueError(f"{path}: a special token must be a string or an object with 'content', got {token!r}")
    return content


def _listed(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value or [])


def _list(value: Any, path: Path, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{path} holds no list {name}")
    return value


def _entries(value: Any, path: Path) -> Iterator[tuple[Any, Any]]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: added_tokens_decoder must be an object, got {type(value).__name__}")
    return iter(value.items())


def _token_id(value: Any, path: Path) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: the id of an added token must be an integer, got {value!r}") from None


def _model_max_length(config: Mapping[str, Any], path: Path) -> int | None:
    length = config.get("model_max_length", config.get("max_len"))
    if length is None or (isinstance(length, int | float) and length > _NO_LIMIT):
        return None
    if type(length) is not int or length < 2:
        raise ValueError(f"{path}: model_max_length must be an integer of at least 2, got {length!r}")
    return length
