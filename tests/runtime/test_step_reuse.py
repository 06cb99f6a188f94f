"""Predictions that are used again, against a plain program of the paper's rule."""

from typing import Any

import numpy as np
import pytest

from safelight.runtime.backends import Array
from safelight.runtime.step_reuse import FIRST, StepReuse

CALLS = 24


def walk(batch: int = 1, jitter: float = 0.02, seed: int = 0) -> list[Array]:
    """Latents that move by steps of nearly the same length, each picture at its own pace."""
    rng = np.random.default_rng(seed)
    pace = 1 + jitter * rng.standard_normal((CALLS, batch, 1, 1, 1))
    steps = pace * np.sign(rng.standard_normal((CALLS, batch, 2, 3, 3)))
    return list(np.cumsum(steps, axis=0, dtype=np.float32))


def run(samples: list[Array], threshold: float, limit: int, **steering: Any) -> list[Array]:
    """The outputs for samples; the prediction of call i is i everywhere, so that an output tells whose it is."""
    reuse = StepReuse(threshold, limit, len(samples))
    return [
        reuse(
            index, sample, steering.get(f"at_{index}"), lambda index=index, sample=sample: np.full_like(sample, index)
        )
        for index, sample in enumerate(samples)
    ]


def of_the_paper(samples: list[Array], threshold: float, limit: int) -> list[int]:
    """For one picture, which call's prediction each call has: the authors' `estimate_skipping`, step by step."""
    used: list[int] = []
    for index in range(len(samples)):
        skip = False
        if 4 <= index < len(samples) - 1:
            first, second, third = (
                sum(abs(float(a) - float(b)) for a, b in zip(samples[i].ravel(), samples[i - 1].ravel(), strict=True))
                / samples[i].size
                for i in (index - 2, index - 1, index)
            )
            in_a_row = 0
            while used[-1 - in_a_row] != len(used) - 1 - in_a_row:
                in_a_row += 1
            skip = abs((third + first) / 2 - second) <= threshold * second and in_a_row < limit
        used.append(used[-1] if skip else index)
    return used


@pytest.mark.parametrize("threshold", [0.005, 0.02, 0.1])
@pytest.mark.parametrize("limit", [1, 2, 4])
def test_it_is_the_papers_rule(threshold: float, limit: int) -> None:
    samples = walk()
    found = [int(output.flat[0]) for output in run(samples, threshold, limit)]
    expected = of_the_paper(samples, threshold, limit)
    assert found == expected
    assert found != list(range(CALLS)), "a rule that never holds would not be tested"


def test_threshold_zero_computes_everything() -> None:
    assert [int(output.flat[0]) for output in run(walk(), 0.0, 3)] == list(range(CALLS))


def test_the_first_and_the_last_are_computed() -> None:
    found = [int(output.flat[0]) for output in run(walk(jitter=0.0), 1.0, 100)]
    assert found == [*range(FIRST), *[FIRST - 1] * (CALLS - FIRST - 1), CALLS - 1]


def test_never_more_than_the_limit_in_a_row() -> None:
    found = [int(output.flat[0]) for output in run(walk(jitter=0.0), 1.0, 2)]
    assert found == [0, 1, 2, 3, 3, 3, 6, 6, 6, 9, 9, 9, 12, 12, 12, 15, 15, 15, 18, 18, 18, 21, 21, 23]


def test_a_change_of_what_steers_is_seen_at_once() -> None:
    changed = {f"at_{index}": index >= 5 for index in range(CALLS)}
    found = [int(output.flat[0]) for output in run(walk(jitter=0.0), 1.0, 100, **changed)]
    assert found == [0, 1, 2, 3, 3, *[5] * (CALLS - 6), CALLS - 1]


def test_a_picture_does_not_depend_on_its_batch() -> None:
    samples = walk(batch=3)
    together = np.stack(run(samples, 0.02, 2))
    for picture in range(3):
        alone = run([sample[picture : picture + 1] for sample in samples], 0.02, 2)
        np.testing.assert_array_equal(together[:, picture : picture + 1], np.stack(alone))
    assert len({tuple(together[:, picture, 0, 0, 0]) for picture in range(3)}) == 3, "they should be judged differently"
