"""The tokenizer: CLIP's byte-level byte-pair encoding, trained on the captions."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import architecture
from dataset import COLORS, Subject, prompt
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
_MERGES = 1751
_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_tokenizer(subjects: Sequence[Subject], folder: Path) -> Tokenizer:
    """Trains, writes `folder`, and gives the tokenizer that encodes to `TOKENS` ids, padded and cut.

    The folder gets the files that transformers 4 reads (`vocab.json`, `merges.txt`) and those that 5 does.
    """
    vocabulary, merges = _learn(subjects)
    tokenizer = _clip_pipeline(vocabulary, merges)
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": END, "unk_token": END}
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": architecture.TOKENS,
        "tokenizer_class": "CLIPTokenizer",
        **special,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = "".join(f"{first} {second}\n" for first, second in merges)
    (folder / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))

    tokenizer.enable_truncation(architecture.TOKENS)
    tokenizer.enable_padding(length=architecture.TOKENS, pad_id=vocabulary[END], pad_token=END)
    return tokenizer


def _captions(subjects: Sequence[Subject]) -> Iterator[str]:
    for subject in subjects:
        yield subject.label
        yield from subject.tags
        for color in COLORS:
            yield prompt(subject.label, color)


def _learn(subjects: Sequence[Subject]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges: bytes, bytes that end a word, merges, the two special tokens, in CLIP's order."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, *(byte + WORD_END for byte in alphabet)]
    tokenizer = _pipeline(models.BPE(continuing_subword_prefix="", end_of_word_suffix=WORD_END, unk_token=END))
    trainer = trainers.BpeTrainer(
        vocab_size=len(symbols) + _MERGES,
        # as special tokens the symbols have ids from the start; the trainer would number them in the order of a hash
        # table, and ids break ties between merges
        special_tokens=symbols,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_captions(subjects), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    vocabulary: dict[str, int] = learned["vocab"]
    for token in (BEGIN, END):
        vocabulary[token] = len(vocabulary)
    return vocabulary, [(first, second) for first, second in learned["merges"]]


def _clip_pipeline(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    tokenizer = _pipeline(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix=WORD_END,
            unk_token=END,
        )
    )
    tokenizer.add_special_tokens([BEGIN, END])
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, vocabulary[END]), (BEGIN, vocabulary[BEGIN]), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pipeline(model: models.BPE) -> Tokenizer:
    """How CLIP cuts text into words, before byte-pair encoding."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer
