"""Brownian motion: its law, and that a path is one path, whatever is asked and in which order."""

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pytest

from safelight.runtime.schedulers.brownian import BrownianInterval, BrownianNoise

COUNT = 20_000
BOUND = 4.5  # standard errors
START, END = 0.03, 14.6  # of Stable Diffusion's noise levels
#: whole, halves, quarters (nodes of the tree), and any; intervals as short as a thousand steps have them
INTERVALS = [
    (START, END),
    (START, (START + END) / 2),
    (START, START + (END - START) / 4),
    (0.5, 0.7),
    (START, 0.0302),
    (7.0, 12.0),
    (7.0, 7.000003),
    (14.5999, END),
]


def path(seed: int = 0, **options: Any) -> BrownianInterval:
    return BrownianInterval((COUNT,), START, END, seed, **options)


def assert_uncorrelated(first: np.ndarray, second: np.ndarray) -> None:
    correlation = (first * second).mean() / (first.std() * second.std())
    assert abs(correlation) <= BOUND / len(first) ** 0.5


# The law


@pytest.mark.parametrize(("low", "high"), INTERVALS)
def test_an_increment_is_normal_with_the_intervals_length_for_variance(low: float, high: float) -> None:
    scaled = path()(low, high) / (high - low) ** 0.5
    assert abs(scaled.mean()) <= BOUND / COUNT**0.5
    assert abs(scaled.var() - 1) <= BOUND * (2 / COUNT) ** 0.5
    assert abs((scaled**3).mean()) <= BOUND * (15 / COUNT) ** 0.5
    assert abs((scaled**4).mean() - 3) <= BOUND * (96 / COUNT) ** 0.5


def test_increments_over_disjoint_intervals_are_independent() -> None:
    brownian = path()
    ends = [START, 0.031, 0.05, 0.4, (START + END) / 2, 9.0, 9.001, END]
    increments = [brownian(low, high) for low, high in itertools.pairwise(ends)]
    for first, second in itertools.combinations(increments, 2):
        assert_uncorrelated(first, second)
        assert_uncorrelated(first**2 - (first**2).mean(), second**2 - (second**2).mean())


def test_overlapping_increments_share_what_overlaps() -> None:
    brownian = path()
    first, second = brownian(1.0, 3.0), brownian(2.0, 5.0)
    assert (first * second).mean() == pytest.approx(1.0, abs=BOUND * (7 / COUNT) ** 0.5)  # of variance 2 * 3 + 1


@pytest.mark.parametrize("time", [0.06, 2.0, 7.3, 14.0])
def test_a_time_between_two_others_follows_the_bridge(time: float) -> None:
    """Given W at both ends the middle is normal around the line between them, independent of their difference."""
    low, high = 0.05, 14.5
    brownian = path()
    whole = brownian(low, high)
    share = (time - low) / (high - low)
    rest = brownian(low, time) - share * whole
    expected = (time - low) * (high - time) / (high - low)
    assert abs(rest.var() / expected - 1) <= BOUND * (2 / COUNT) ** 0.5
    assert_uncorrelated(rest, whole)


def test_other_seeds_and_other_places_are_independent() -> None:
    increments = [path(seed)(1.0, 2.0) for seed in (0, 1, 2, 2**32, -1)]
    for first, second in itertools.combinations(increments, 2):
        assert_uncorrelated(first, second)
    assert_uncorrelated(increments[0][:-1], increments[0][1:])


# One path


TIMES = [START, 0.031, 0.4, 0.40001, 1.0, (START + END) / 2, 9.9, 14.0, END]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_increments_add_up(dtype: Any) -> None:
    brownian = path(dtype=dtype)
    for low, middle, high in itertools.combinations(TIMES, 3):
        whole, parts = brownian(low, high), brownian(low, middle) + brownian(middle, high)
        assert np.abs(whole - parts).max() <= 8 * np.finfo(dtype).eps * high**0.5 * 5
        assert whole.dtype == dtype


def test_an_increment_back_is_that_forth_turned_round() -> None:
    brownian = path()
    np.testing.assert_array_equal(brownian(3.0, 1.0), -brownian(1.0, 3.0))
    assert not brownian(2.0, 2.0).any()


def test_the_order_of_questions_changes_nothing() -> None:
    questions = list(itertools.permutations(TIMES, 2))
    answers = {question: BrownianInterval((3,), START, END, 7)(*question) for question in questions}
    for seed in range(3):
        brownian = BrownianInterval((3,), START, END, 7)
        for place in np.random.default_rng(seed).permutation(len(questions)):
            np.testing.assert_array_equal(brownian(*questions[place]), answers[questions[place]])


def test_refining_keeps_what_is_known() -> None:
    """The values at 20 levels are the same when 1000 are asked for."""
    fine = np.linspace(START, END, 19 * 53 + 1).tolist()
    first, second = (BrownianInterval((4,), START, END, 3) for _ in range(2))
    found = [second(START, time) for time in fine]
    np.testing.assert_array_equal(found[::53], [first(START, time) for time in fine[::53]])


def test_a_thousand_increments_have_their_lengths_for_variances() -> None:
    brownian = BrownianInterval((50,), START, END, 3)
    levels = np.geomspace(START, END, 1001).tolist()
    squares = [brownian(low, high) ** 2 / (high - low) for low, high in itertools.pairwise(levels)]
    assert abs(np.mean(squares) - 1) <= BOUND * (2 / 50_000) ** 0.5
    assert abs(np.mean(squares[:100]) - 1) <= BOUND * (2 / 5_000) ** 0.5  # the shortest


def test_a_seed_is_all_that_a_path_needs() -> None:
    first = BrownianInterval((2, 3), START, END, 5)
    expected = first(1.0, 2.0)
    assert expected.shape == (2, 3)
    for other in (
        BrownianInterval((2, 3), START, END, 5),
        BrownianInterval((2, 3), START, END, 5 + 2**64),
        copy.deepcopy(first),
        pickle.loads(pickle.dumps(first)),
    ):
        np.testing.assert_array_equal(other(1.0, 2.0), expected)
    assert not np.array_equal(BrownianInterval((2, 3), START, END, 6)(1.0, 2.0), expected)


def test_the_numbers_stay_what_they_are() -> None:
    """A picture made with a seed can be made again with a later release."""
    increments = [BrownianInterval((2,), 0.0, 1.0, seed, dtype=np.float64)(0.3, 0.6) for seed in (0, 1)]
    expected = [[-0.11924534715422663, -0.4646514889619262], [-0.3467455742923633, -0.12825062973418822]]
    np.testing.assert_allclose(increments, expected, rtol=1e-12)


def test_what_is_given_may_be_written_into() -> None:
    brownian = path()
    expected = brownian(START, 2.0).copy()
    given = brownian(START, 2.0)
    given[:] = 0
    np.testing.assert_array_equal(brownian(START, 2.0), expected)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)])
def test_an_empty_interval_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="an interval must end after it starts"):
        BrownianInterval((1,), low, high, 0)


@pytest.mark.parametrize("time", [0.0299, 14.61, float("nan")])
def test_a_time_outside_is_refused(time: float) -> None:
    with pytest.raises(ValueError, match=f"time must lie between 0.03 and 14.6, got {time}"):
        path()(1.0, time)


@pytest.mark.parametrize("seed", [1.5, "1", None])
def test_a_seed_that_is_no_integer_is_refused(seed: Any) -> None:
    with pytest.raises(TypeError):
        BrownianInterval((1,), 0.0, 1.0, seed)


# Noise for a step


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(("low", "high"), INTERVALS)
def test_noise_is_the_scaled_increment_of_variance_1(low: float, high: float, dtype: Any) -> None:
    noise = BrownianNoise((COUNT,), START, END, 0, dtype)(high, low)
    assert noise.dtype == dtype
    expected = path()(high, low) / (high - low) ** 0.5
    if dtype == np.float32:
        np.testing.assert_allclose(noise, expected, rtol=1e-6)
    assert abs(noise.astype(np.float64).var() - 1) <= BOUND * (2 / COUNT) ** 0.5


def test_each_image_has_its_seed() -> None:
    shape = (3, 4, 5)
    batch = BrownianNoise(shape, START, END, [7, 8, 7])(9.0, 3.0)
    assert batch.shape == shape
    np.testing.assert_array_equal(batch[0], batch[2])
    np.testing.assert_array_equal(batch[1:2], BrownianNoise((1, 4, 5), START, END, 8)(9.0, 3.0))
    assert not np.array_equal(batch[0], batch[1])


def test_without_a_seed_noise_is_new() -> None:
    first, second = (BrownianNoise((4,), START, END)(9.0, 3.0) for _ in range(2))
    assert not np.array_equal(first, second)


def test_a_number_of_seeds_that_is_not_the_batchs_is_refused() -> None:
    with pytest.raises(ValueError, match="there are 3 images and 2 seeds"):
        BrownianNoise((3, 4), START, END, [1, 2])
