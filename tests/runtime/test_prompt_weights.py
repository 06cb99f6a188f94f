"""Weights in prompts, against the examples in the webui's documentation."""

import random
from itertools import pairwise

import pytest

from safelight.runtime.prompt_weights import parse_weights


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # those of modules/prompt_parser.py of the webui
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky)))).",  # with the bracket that is missing there
            [
                ("a ", 1.0),
                ("house", 1.573),  # 1.3 * 1.1 * 1.1
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),  # 1.1 ** 4
                (".", 1.0),
            ],
        ),
        # those of its wiki
        ("a ((word))", [("a ", 1.0), ("word", 1.21)]),
        ("a [word]", [("a ", 1.0), ("word", 1 / 1.1)]),
        ("a (word:0.25)", [("a ", 1.0), ("word", 0.25)]),
        # what neither says
        ("", [("", 1.0)]),
        ("()", [("", 1.0)]),
        ("a [[b]]", [("a ", 1.0), ("b", 1 / 1.21)]),
        ("([a] b:2)", [("a", 2 / 1.1), (" b", 2.0)]),
        ("(a: 1.5 )", [("a", 1.5)]),
        ("(a:-.5)(b:+2.)", [("a", -0.5), ("b", 2.0)]),
        ("16:9, (16:9:1.2)", [("16:9, ", 1.0), ("16:9", 1.2)]),
        ("(a: (b:2) c)", [("a: ", 1.1), ("b", 2.2), (" c", 1.1)]),
        (r"(a\:1.5)", [("a:1.5", 1.1)]),
        ("[cat:dog:0.5]", [("cat:dog:0.5", 1 / 1.1)]),
        (r"\\(a) b\n c" + "\n\\", [("\\", 1.0), ("a", 1.1), (" b\\n c\n\\", 1.0)]),
    ],
)
def test_prompts_are_parsed_as_documented(prompt: str, expected: list[tuple[str, float]]) -> None:
    parts = parse_weights(prompt)
    assert [text for text, _ in parts] == [text for text, _ in expected]
    assert [weight for _, weight in parts] == pytest.approx([weight for _, weight in expected], rel=1e-12)


def written(rng: random.Random, depth: int) -> tuple[str, list[tuple[str, float]]]:
    """A prompt, and each of its letters with its weight: written from the rules, inside out, and never parsed."""
    prompt, letters = "", []
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(["text", "round", "square", "number"] if depth else ["text"])
        if kind == "text":
            own = rng.choices(["cat", " red", ", ", "16:9 x", "a(b", "[", "]", ")", "\\"], k=2)
            text = "".join(own)
            prompt += "".join(f"\\{letter}" if letter in "()[]\\:" else letter for letter in text)
            letters += [(letter, 1.0) for letter in text]
            continue
        inner, inside = written(rng, depth - 1)
        number = rng.choice(["1.3", "0.5", " .7 ", "-1", "+2.", "0"])
        opened, closed, factor = {
            "round": ("(", ")", 1.1),
            "square": ("[", "]", 1 / 1.1),
            "number": ("(", f":{number})", float(number)),
        }[kind]
        prompt += opened + inner + closed
        letters += [(letter, weight * factor) for letter, weight in inside]
    return prompt, letters


def test_any_prompt_weighs_what_its_brackets_say() -> None:
    rng = random.Random(0)
    deepest = 0.0
    for _ in range(500):
        prompt, letters = written(rng, depth=4)
        parts = parse_weights(prompt)
        assert "".join(text for text, _ in parts) == "".join(letter for letter, _ in letters), prompt
        weights = [weight for text, weight in parts for _ in text]
        assert weights == pytest.approx([weight for _, weight in letters], rel=1e-12), prompt
        assert all(first[1] != second[1] for first, second in pairwise(parts)), "neighbours of one weight are joined"
        deepest = max(deepest, *map(abs, weights))
    assert deepest > 4


@pytest.mark.parametrize(
    ("prompt", "bracket", "position", "problem"),
    [
        ("(unbalanced", r"\(", 0, "is never closed"),
        ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).", r"\(", 2, "is never closed"),
        ("(a) ((b)", r"\(", 4, "is never closed"),
        ("a [b", r"\[", 2, "is never closed"),
        ("a b) c", r"\)", 3, "closes nothing"),
        ("a :)", r"\)", 3, "closes nothing"),
        ("a]", r"\]", 1, "closes nothing"),
        ("(a]", r"\]", 2, r"does not close '\(' at 0"),
        ("([a:x)", r"\)", 5, r"does not close '\[' at 1"),
        (r"(a\)", r"\(", 0, "is never closed"),
    ],
)
def test_unbalanced_brackets_are_refused_with_their_position(
    prompt: str, bracket: str, position: int, problem: str
) -> None:
    with pytest.raises(ValueError, match=f"unbalanced weight brackets: '{bracket}' at position {position} .*{problem}"):
        parse_weights(prompt)


@pytest.mark.parametrize("weight", ["heavy", "", "1.2.3", "1,5", "nan", "inf", "1e3", "1_0", "\u0663"])
def test_a_weight_that_is_no_number_is_refused(weight: str) -> None:
    with pytest.raises(ValueError, match=f"a weight must be a number, .* got '{weight}' at position 6"):
        parse_weights(f"a (cat:{weight})")


@pytest.mark.parametrize(
    ("prompt", "weight"),
    [
        (f"a (cat:{'9' * 50})", r"1e\+50"),
        (f"a (cat:-{'9' * 50})", r"-1e\+50"),
        (f"a (cat:{'9' * 400})", "inf"),
        (f"a ((cat:{'9' * 400}):0)", "nan"),
        ("a " + "(" * 146 + "cat" + ")" * 146, r"1104\d+\.\d+"),
        ("a (cat:1000001)", r"1000001\.0"),
    ],
    ids=["large", "negative", "infinite", "nothing of the infinite", "nested", "just too large"],
)
def test_weights_that_cannot_be_computed_with_are_refused(prompt: str, weight: str) -> None:
    with pytest.raises(
        ValueError, match=f"^a weight must lie between -1e\\+06 and 1e\\+06, got {weight} for 'cat'; brack"
    ):
        parse_weights(prompt)
    parse_weights("a (cat:1000000)" + "(" * 144 + "cat" + ")" * 144)
