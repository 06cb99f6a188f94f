"""CLIP's tokenizer, which no single file holds: made from the vocabulary that OpenAI published."""

import gzip
from pathlib import Path

from safelight.runtime.tokenizer import CLIPTokenizer
from safelight.runtime.tokenizer_files import DEFAULT_SPECIAL_TOKENS, TokenizerFiles

_MERGES = Path(__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
#: the file has more of them; CLIP was trained with as many as make 49,408 tokens
_MERGE_COUNT = 48894
_WORD_END = "</w>"
#: bytes that the vocabulary writes as the Unicode character of that number; the others follow from U+0100 on
_PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_MODEL_MAX_LENGTH = 77


def write_tokenizer(folder: Path, *, pad_token: str) -> None:
    """Writes a `tokenizer/` folder, that of openai/clip-vit-large-patch14 but for the padding.

    Args:
        folder: is made.
        pad_token: "<|endoftext|>", or "!" as OpenCLIP pads.
    """
    special_tokens = {name: token for name, token in DEFAULT_SPECIAL_TOKENS.items() if token} | {"pad_token": pad_token}
    merges = _merges()
    contents = TokenizerFiles(
        folder=folder,
        vocabulary=_vocabulary(merges, special_tokens),
        merges=merges,
        special_tokens=special_tokens,
        added_tokens=[],
        model_max_length=_MODEL_MAX_LENGTH,
    )
    CLIPTokenizer(contents).save_pretrained(folder)


def _merges() -> list[tuple[str, str]]:
    with gzip.open(_MERGES, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 1 + _MERGE_COUNT]  # the first line names the version
    pairs = [line.split() for line in lines]
    return [(first, second) for first, second in pairs]


def _vocabulary(merges: list[tuple[str, str]], special_tokens: dict[str, str]) -> dict[str, int]:
    """Ids in the order of the training: bytes, bytes at the end of a word, merges, begin and end."""
    letters = [*map(chr, _PRINTABLE), *(chr(256 + number) for number in range(256 - len(_PRINTABLE)))]
    tokens = [*letters, *(letter + _WORD_END for letter in letters), *(first + second for first, second in merges)]
    tokens += [special_tokens["bos_token"], special_tokens["eos_token"]]
    return {token: number for number, token in enumerate(tokens)}
