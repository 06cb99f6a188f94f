"""The noise against torch's own, and diffusers' way of drawing it for a batch."""

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from safelight.runtime import Generator
from safelight.runtime.random import randn

DTYPES = (np.float32, np.float64, np.float16)
SEEDS = (0, 1, 42, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 1, -1, -2, -(2**32), -(2**63))
SIZES = (*range(41), *range(16 * 64, 16 * 65), *range(16 * 4096 + 1, 16 * 4097))
TOLERANCE = {np.float32: 1e-6, np.float64: 1e-12}  # relative to the largest value


def torch_randn(shape: Sequence[int], generator: torch.Generator, dtype: Any) -> np.ndarray:
    return torch.randn(tuple(shape), generator=generator, dtype=getattr(torch, np.dtype(dtype).name)).numpy()


def pair(seed: int) -> tuple[Generator, torch.Generator]:
    return Generator(seed), torch.Generator().manual_seed(seed)


def assert_same_noise(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if not expected.size:
        return
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    if expected.dtype == np.float16:  # both are rounded from float32: one that lies between two may fall either way
        assert np.all(difference <= np.spacing(np.abs(expected)))
        assert np.count_nonzero(difference) <= 1 + expected.size / 100
    else:
        assert difference.max() <= TOLERANCE[expected.dtype.type] * np.abs(expected).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros_like,
        lambda noise: noise * noise.dtype.type(1.001) + noise.dtype.type(0.001),
        lambda noise: np.roll(noise, 1),
        lambda noise: np.concatenate([noise[:-1], -noise[-1:]]),
        lambda noise: Generator(1).randn(noise.shape, noise.dtype),
    ],
    ids=["zeros", "scaled", "shifted", "last number", "another seed"],
)
def test_the_comparison_refuses_other_noise(wrong: Any, dtype: Any) -> None:
    noise = torch_randn((40,), torch.Generator().manual_seed(0), dtype)
    assert_same_noise(noise.copy(), noise)
    with pytest.raises(AssertionError):
        assert_same_noise(wrong(noise), noise)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_size_equals_torch(dtype: Any) -> None:
    for size in SIZES:
        ours, theirs = pair(size)
        assert_same_noise(ours.randn((size,), dtype), torch_randn((size,), theirs, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_seed_equals_torch(seed: int, dtype: Any) -> None:
    for size in (5, 16, 100):
        ours, theirs = pair(seed)
        assert_same_noise(ours.randn((size,), dtype), torch_randn((size,), theirs, dtype))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_initial_seed_is_torchs(seed: int) -> None:
    assert Generator(seed).initial_seed == torch.Generator().manual_seed(seed).initial_seed()


def test_seeds_of_numpy_are_seeds() -> None:
    assert_same_noise(Generator(np.int64(7)).randn((20,)), Generator(7).randn((20,)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(), (0,), (3, 0, 2), (1, 1), (3, 5), (2, 4, 11, 7), (4, 4, 128, 128), (1, 3, 333, 331)]
)
def test_every_shape_equals_torch(shape: tuple[int, ...], dtype: Any) -> None:
    ours, theirs = pair(3)
    assert_same_noise(ours.randn(shape, dtype), torch_randn(shape, theirs, dtype))


def test_float32_is_the_default() -> None:
    assert_same_noise(Generator(0).randn((2, 9)), torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).numpy())


SEQUENCES = [
    pytest.param([(3, np.float32)] * 5, id="odd and small: the second value waits"),
    pytest.param([(3, np.float32), (16, np.float32), (1, np.float32)], id="it waits through a large draw"),
    pytest.param([(1, np.float16), (40, np.float64), (1, np.float64), (2, np.float32)], id="it waits for any dtype"),
    pytest.param([(17, np.float16), (17, np.float32), (17, np.float64)] * 2, id="remainders, each dtype"),
    pytest.param([(31, np.float16), (16, np.float16), (33, np.float16), (20, np.float32)], id="float16"),
    pytest.param([(0, np.float32), (7, np.float32), (0, np.float64), (7, np.float32)], id="nothing drawn for nothing"),
]


@pytest.mark.parametrize("draws", SEQUENCES)
def test_the_stream_goes_on_as_torchs(draws: list[tuple[int, Any]]) -> None:
    ours, theirs = pair(11)
    for size, dtype in draws:
        assert_same_noise(ours.randn((size,), dtype), torch_randn((size,), theirs, dtype))


def test_long_streams_of_mixed_draws_equal_torchs() -> None:
    choose = np.random.default_rng(0)
    for seed in range(5):
        ours, theirs = pair(seed)
        for _ in range(60):
            size, dtype = int(choose.choice([1, 2, 5, 15, 16, 17, 48, 333])), DTYPES[choose.integers(3)]
            assert_same_noise(ours.randn((size,), dtype), torch_randn((size,), theirs, dtype))


def test_two_generators_share_nothing() -> None:
    first, second = Generator(0), Generator(0)
    expected = Generator(0).randn((50,))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    found = [np.concatenate([one.randn((3,)), one.randn((1,))]) for one in (first, second)]
    np.testing.assert_array_equal(found[0], found[1])
    assert_same_noise(Generator(0).randn((50,)), expected)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 2, 2), (3, 4, 8, 8), (1, 4, 5, 5), (2, 3, 3)])
def test_one_generator_per_image_equals_diffusers(shape: tuple[int, ...], dtype: Any) -> None:
    pairs = [pair(seed) for seed in range(5, 5 + shape[0])]
    ours, theirs = [one for one, _ in pairs], [one for _, one in pairs]
    for _ in range(2):
        expected = randn_tensor(shape, generator=theirs, dtype=getattr(torch, np.dtype(dtype).name)).numpy()
        found = randn(shape, ours, dtype)
        assert_same_noise(found, expected)
    assert len({image.tobytes() for image in found}) == shape[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_generator_for_a_batch_equals_diffusers(dtype: Any) -> None:
    ours, theirs = pair(5)
    expected = randn_tensor((3, 4, 5, 5), generator=theirs, dtype=getattr(torch, np.dtype(dtype).name)).numpy()
    assert_same_noise(randn((3, 4, 5, 5), ours, dtype), expected)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_another_number_of_generators_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"^there are 3 images and {count} generators$"):
        randn((3, 4, 8, 8), [Generator(seed) for seed in range(count)])


@pytest.mark.parametrize(
    ("seed", "kind"),
    [(True, "bool"), (np.True_, "bool"), (1.0, "float"), (np.float32(1), "float32"), ("1", "str"), (None, "NoneType")],
)
def test_seeds_that_are_no_integers_are_refused(seed: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=rf"^seed must be an integer, got {kind}$"):
        Generator(seed)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**30])
def test_seeds_out_of_torchs_range_are_refused(seed: int) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        torch.Generator().manual_seed(seed)
    with pytest.raises(ValueError, match=rf"^seed must lie in \[-2\*\*63, 2\*\*64\), got {seed}$"):
        Generator(seed)


@pytest.mark.parametrize("dtype", [np.int32, np.complex64, np.longdouble, bool])
@pytest.mark.parametrize("size", [4, 40])
def test_other_dtypes_are_refused(dtype: Any, size: int) -> None:
    with pytest.raises(ValueError, match=rf"^dtype must be float32, float64 or float16, got {np.dtype(dtype)}$"):
        Generator(0).randn((size,), dtype)


def test_the_result_is_the_callers_to_write() -> None:
    for size, dtype in product((4, 32, 40), DTYPES):
        noise = Generator(0).randn((size,), dtype)
        assert noise.flags.writeable
        assert noise.flags.c_contiguous
        assert noise.size == prod(noise.shape) == size
