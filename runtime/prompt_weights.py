r"""Weights in a prompt: "a (red:1.3) apple" is the text "a red apple", and how much each part of it counts.

The syntax is that of AUTOMATIC1111's webui ("Features: attention/emphasis" in its wiki):

| written | weight |
|---|---|
| `(text)` | x 1.1, for each pair of brackets |
| `[text]` | / 1.1, for each pair of brackets |
| `(text:1.3)` | x 1.3 |
| `\(`, `\)`, `\[`, `\]`, `\\`, `\:` | the character itself |

Brackets nest and their weights multiply. What differs: brackets that are not balanced and a weight that is no number
are errors, where the webui guesses; `\:` is new; BREAK, AND and `[from:to:when]` are text.
"""

import re

_EMPHASIS = 1.1
_LARGEST = 1e6  # float32 holds embeddings times that, and their sum
_OPENED_BY = {")": "(", "]": "["}
_TOKEN = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\:])
  | (?P<open>[(\[])
  | :(?P<weight>[^()\[\]:\\]*)(?=\))    # only before a closing round bracket
  | (?P<close>[)\]])
  | (?P<text>[^\\()\[\]:]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")


def parse_weights(prompt: str) -> list[tuple[str, float]]:
    """The parts of a prompt with their weights, neighbours of one weight joined; an empty prompt is one empty part.

    Raises:
        ValueError: brackets are not balanced, or a weight is no number; the message says where. Or weights multiply to
            more than can be computed with.
    """
    parts: list[tuple[str, float]] = []
    open_brackets: list[tuple[int, int]] = []  # (position in the prompt, the first of its parts)
    weight: float | None = None  # written before the bracket that closes next
    for match in _TOKEN.finditer(prompt):
        position = match.start()
        if match["open"]:
            open_brackets.append((position, len(parts)))
        elif match["weight"] is not None:
            if open_brackets and prompt[open_brackets[-1][0]] == "(":  # else the bracket that follows is the error
                weight = _number(match["weight"], prompt, position)
        elif bracket := match["close"]:
            if not open_brackets:
                raise ValueError(_unbalanced(prompt, position, "closes nothing"))
            opened, first = open_brackets.pop()
            if prompt[opened] != _OPENED_BY[bracket]:
                raise ValueError(_unbalanced(prompt, position, f"does not close {prompt[opened]!r} at {opened}"))
            factor = weight if weight is not None else _EMPHASIS if bracket == ")" else 1 / _EMPHASIS
            parts[first:] = [(text, own * factor) for text, own in parts[first:]]
            weight = None
        else:
            parts.append((match["escaped"] or match["text"], 1.0))
    if open_brackets:
        raise ValueError(_unbalanced(prompt, open_brackets[-1][0], "is never closed"))
    joined = _joined(parts)
    for text, product in joined:
        if not abs(product) <= _LARGEST:  # NaN is 0 times infinity
            raise ValueError(
                f"a weight must lie between {-_LARGEST:g} and {_LARGEST:g}, got {product} for {text!r}; "
                "brackets within brackets multiply"
            )
    return joined


def _joined(parts: list[tuple[str, float]]) -> list[tuple[str, float]]:
    joined: list[tuple[str, float]] = []
    for text, weight in parts:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return joined or [("", 1.0)]


def _number(text: str, prompt: str, position: int) -> float:
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(
            f"a weight must be a number, as in (word:1.3), got {text.strip()!r} at position {position} of {prompt!r}; "
            r"write \: for a colon that starts no weight"
        )
    return float(text)


def _unbalanced(prompt: str, position: int, problem: str) -> str:
    bracket = prompt[position]
    return (
        f"unbalanced weight brackets: {bracket!r} at position {position} of {prompt!r} {problem}; "
        f"write \\{bracket} for the character itself"
    )
