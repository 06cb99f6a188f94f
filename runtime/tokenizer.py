"""From prompts to token ids: CLIP's byte-pair encoding, on the `tokenizers` library."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import tokenizer_files as files

if TYPE_CHECKING:
    import tokenizers

Array = np.ndarray[Any, np.dtype[np.int64]]

_WORD_END = "</w>"
# special tokens whole, English contractions, runs of letters, single digits, runs of anything else that is not space
_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

# letters become small and spaces go before bytes are looked at; the others are in no UTF-8 text (RFC 3629, section 1)
_UNUSED_BYTES = (*b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *b"\t\n\v\f\r ", 0xC0, 0xC1, *range(0xF5, 0x100))
# how a vocabulary writes them: spaces and control characters from U+0100 on, the others as the character of that number
_BYTE_LETTERS = {byte: chr(byte + 0x100 if byte <= 0x20 else byte) for byte in _UNUSED_BYTES}


class CLIPTokenizer:
    """Turns prompts into token ids and back; its ids are those of transformers 5.23's `CLIPTokenizer`.

    Attributes:
        model_max_length: Tokens in an encoded prompt, begin and end included.
        bos_token_id: Opens every prompt.
        eos_token_id: Closes every prompt.
        pad_token_id: Fills up to the length; Stable Diffusion 2 pads with 0 ("!"), 1.x with the end token.
        vocab_size: Size of the vocabulary without the tokens that were added later; `len(tokenizer)` counts them too.
    """

    def __init__(self, contents: files.TokenizerFiles, *, model_max_length: int | None = None) -> None:
        length = contents.model_max_length if model_max_length is None else model_max_length
        if length is None:
            raise ValueError(
                f"{contents.folder} does not say model_max_length in {files.CONFIG}: pass "
                "from_pretrained(folder, model_max_length=...), the text encoder's max_position_embeddings"
            )
        self.model_max_length = _checked_length(length)
        self.vocab_size = len(contents.vocabulary)
        self._files = contents
        self._tokenizer = _build(contents)
        self._further_ids: dict[int, list[int]] = {}  # the first id of an added token -> the others
        self.bos_token_id = _token_id(self._tokenizer, contents.special_tokens["bos_token"])
        self.eos_token_id = _token_id(self._tokenizer, contents.special_tokens["eos_token"])
        self.pad_token_id = _token_id(self._tokenizer, contents.special_tokens["pad_token"])

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, model_max_length: int | None = None) -> "CLIPTokenizer":
        """The tokenizer of a checkpoint's `tokenizer/` folder.

        Args:
            folder: Holds `tokenizer.json`, or `vocab.json` and `merges.txt`.
            model_max_length: Overrides what the folder says; needed when it says nothing.

        Raises:
            FileNotFoundError: the folder or a file of it is missing.
            ValueError: a file is corrupt, is of another kind of tokenizer, or gives no length.
        """
        return cls(files.read_tokenizer_files(folder), model_max_length=model_max_length)

    def encode(self, prompts: str | Sequence[str], *, max_length: int | None = None) -> Array:
        """Token ids, (batch, max_length) int64: begin, the prompt cut to fit, end, padding.

        Args:
            prompts: One prompt or several.
            max_length: `model_max_length` when None.

        Raises:
            TypeError: a prompt is no string.
            ValueError: `max_length` is less than 2, or a prompt is not valid Unicode (a lone surrogate).
        """
        length = self.model_max_length if max_length is None else _checked_length(max_length)
        prompts = _checked_prompts(prompts)
        token_ids = np.full((len(prompts), length), self.pad_token_id, np.int64)
        for row, prompt in zip(token_ids, prompts, strict=True):
            kept = self.token_ids(prompt)[: length - 2]
            row[: len(kept) + 2] = [self.bos_token_id, *kept, self.eos_token_id]
        return token_ids

    __call__ = encode

    def token_ids(self, prompt: str) -> list[int]:
        """All ids of one prompt, without begin and end, neither cut nor padded.

        Raises:
            TypeError: the prompt is no string.
            ValueError: it is not valid Unicode.
        """
        return [token_id for token_id, _ in self._tokens(prompt)]

    def truncated(self, prompt: str, *, max_length: int | None = None) -> str:
        """The end of the prompt that `encode` cuts off, as it was written; empty when the whole prompt fits.

        Raises:
            TypeError: the prompt is no string.
            ValueError: as `encode`.
        """
        length = self.model_max_length if max_length is None else _checked_length(max_length)
        cut = self._tokens(prompt)[length - 2 :]
        return prompt[cut[0][1] :].strip() if cut else ""

    def add_token(self, token: str, count: int = 1) -> list[int]:
        """Teaches the tokenizer a token that is cut out of prompts whole; gives its ids, the next free ones.

        A token of several ids is that many tokens in a prompt: `token`, `token_1`, `token_2` ..., as in diffusers.
        `save_pretrained` writes the tokenizer without it.

        Args:
            token: found in prompts in upper and lower case, also within words.
            count: how many ids it has.

        Raises:
            ValueError: it is empty, or it or one of the others is a token already, or is spelled like one but for case
                and spaces, which prompts do not tell apart; nothing is added then.
        """
        from tokenizers import AddedToken

        if not token.strip() or count < 1:
            raise ValueError(f"a token must have a name and at least one id, got {token!r} and {count}")
        names = [token, *(f"{token}_{index}" for index in range(1, count))]
        normalize = self._tokenizer.normalizer.normalize_str
        added = {normalize(known.content) for known in self._tokenizer.get_added_tokens_decoder().values()}
        for name in [*names, f"{token}_1"]:
            if self._tokenizer.token_to_id(name) is not None or normalize(name) in added:
                raise ValueError(f"the tokenizer has a token {name!r} already; choose another name")
        self._tokenizer.add_tokens([AddedToken(name, normalized=True) for name in names])
        token_ids = [_token_id(self._tokenizer, name) for name in names]
        self._further_ids[token_ids[0]] = token_ids[1:]
        return token_ids

    def unused_token_ids(self) -> list[int]:
        """Ids of the vocabulary that no prompt is encoded to: those of bytes that lower-case UTF-8 does not have."""
        vocabulary = self._files.vocabulary
        added = {token.content for token in self._files.added_tokens}
        tokens = [_BYTE_LETTERS[byte] + end for byte in _UNUSED_BYTES for end in ("", _WORD_END)]
        return [vocabulary[token] for token in tokens if token in vocabulary and token not in added]

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids: lower case, a space after every word.

        Args:
            token_ids: (length,) integers, one prompt's.
            skip_special_tokens: Leaves out begin, end and padding.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        ids = np.asarray(token_ids if isinstance(token_ids, np.ndarray) else list(token_ids))
        if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            raise ValueError(f"token_ids must be one row of integers, got {ids.dtype} of shape {ids.shape}")
        unknown = [
            token_id for token_id in ids.tolist() if token_id < 0 or self._tokenizer.id_to_token(token_id) is None
        ]
        if unknown:
            raise ValueError(f"token id {unknown[0]} is not in the vocabulary of {len(self)}")
        text = self._tokenizer.decode(ids.tolist(), skip_special_tokens=skip_special_tokens)
        return text.replace(_WORD_END, " ").strip()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes every file that transformers 4 or 5 may ask for: those of the source byte for byte, the others new.

        Raises:
            OSError: the folder cannot be written, or the source's files are gone.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self._new_files().items():
            source, target = self._files.folder / name, folder / name
            if not source.is_file():
                target.write_text(text, encoding="utf-8", newline="\n")
            elif source.resolve() != target.resolve():
                shutil.copyfile(source, target)
        added = self._files.folder / files.ADDED_TOKENS
        if added.is_file() and added.resolve() != (folder / files.ADDED_TOKENS).resolve():
            shutil.copyfile(added, folder / files.ADDED_TOKENS)

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(vocab_size={self.vocab_size}, model_max_length={self.model_max_length}, "
            f"bos_token_id={self.bos_token_id}, eos_token_id={self.eos_token_id}, pad_token_id={self.pad_token_id})"
        )

    def _tokens(self, prompt: str) -> list[tuple[int, int]]:
        """The ids of a prompt, each with where in the prompt it starts."""
        if not isinstance(prompt, str):
            raise TypeError(f"prompt must be a string, got {type(prompt).__name__}")
        encoding = self._encoding(prompt)
        return [
            (each, start)
            for token_id, (start, _) in zip(encoding.ids, encoding.offsets, strict=True)
            for each in (token_id, *self._further_ids.get(token_id, ()))
        ]

    def _encoding(self, prompt: str) -> "tokenizers.Encoding":
        try:
            return self._tokenizer.encode(prompt, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            # a lone surrogate, which a Python string may hold and UTF-8 may not
            raise ValueError(f"prompt is not valid Unicode: {prompt[:80]!r}") from error

    def _new_files(self) -> dict[str, str]:
        """The text of each file that a complete tokenizer folder has, as this tokenizer would write it."""
        special = self._files.special_tokens
        tokenizer = _build(self._files)  # without what was added later
        config = {
            **special,
            "added_tokens_decoder": {
                str(token_id): {
                    "content": token.content,
                    **{
                        flag: getattr(token, flag)
                        for flag in ("lstrip", "normalized", "rstrip", "single_word", "special")
                    },
                }
                for token_id, token in tokenizer.get_added_tokens_decoder().items()
            },
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": self.model_max_length,
            "tokenizer_class": "CLIPTokenizer",
        }
        merges = "".join(f"{first} {second}\n" for first, second in self._files.merges)
        return {
            files.VOCABULARY: json.dumps(self._files.vocabulary, ensure_ascii=False),
            files.MERGES: "#version: 0.2\n" + merges,
            files.TOKENIZER: tokenizer.to_str(pretty=True),
            files.CONFIG: json.dumps(config, indent=2, ensure_ascii=False) + "\n",
            files.SPECIAL_TOKENS: json.dumps(special, indent=2, ensure_ascii=False) + "\n",
        }


def _build(contents: files.TokenizerFiles) -> "tokenizers.Tokenizer":
    """The pipeline of transformers 5.23's CLIPTokenizer, which it builds anew whatever `tokenizer.json` says."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(
        models.BPE(
            vocab=contents.vocabulary,
            merges=contents.merges,
            continuing_subword_prefix="",
            end_of_word_suffix=_WORD_END,
            fuse_unk=False,
            unk_token=contents.special_tokens["unk_token"],
        )
    )
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token.content, **token.flags) for token in contents.added_tokens])
    bos, eos = contents.special_tokens["bos_token"], contents.special_tokens["eos_token"]
    begin, end = (bos, _token_id(tokenizer, bos)), (eos, _token_id(tokenizer, eos))
    tokenizer.post_processor = processors.RobertaProcessing(end, begin, trim_offsets=False, add_prefix_space=False)
    return tokenizer


def _token_id(tokenizer: "tokenizers.Tokenizer", token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None  # _build adds every special token
    return token_id


def _checked_length(length: int) -> int:
    if not isinstance(length, int | np.integer) or isinstance(length, bool):
        raise TypeError(f"max_length must be an integer, got {type(length).__name__}")
    if length < 2:
        raise ValueError(f"max_length must be at least 2, for the begin and end tokens, got {length}")
    return int(length)


def _checked_prompts(prompts: str | Sequence[str]) -> list[str]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, list | tuple):
        raise TypeError(f"prompt must be a string or a list of strings, got {type(prompts).__name__}")
    for position, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(
                f"prompt must be a string or a list of strings, got a list with {type(prompt).__name__} at {position}"
            )
    return list(prompts)
