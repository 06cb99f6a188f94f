"""The noise of torch's CUDA generator against published numbers, and its kernel written out by thread."""

from math import cos, log, pi, sin, sqrt
from typing import Any

import numpy as np
import pytest
import torch

from safelight.runtime import CUDAGenerator, StableDiffusionPipeline, bundled_model
from safelight.runtime.philox import philox
from safelight.runtime.random import randn

#: Random123's known answers (tests/kat_vectors, philox4x32 10): counter, key, words
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
#: `torch.randn(12, device="cuda")` after `torch.manual_seed(0)`, as AUTOMATIC1111's stable-diffusion-webui records it
SEED_0 = [
    -0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564,
    -0.62285122, -0.32838709, -1.07454231, -0.36314407, -1.67105067, 2.26550497,
]  # fmt: skip


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter: str, key: str, answer: str) -> None:
    low, high = words(key)
    found = philox(np.array(words(counter), np.uint64)[:, None], low | high << 32)
    assert found[:, 0].tolist() == words(answer)


def test_the_first_numbers_of_seed_0_are_the_published_ones() -> None:
    np.testing.assert_allclose(CUDAGenerator(0).randn((3, 4)).reshape(-1), SEED_0, atol=1e-6, rtol=0)


def by_thread(draws: list[int], seed: int, threads: int) -> list[list[float]]:
    """What torch's `distribution_elementwise_grid_stride_kernel` does with cuRAND's states, a thread at a time."""
    offset, results = 0, []
    for size in draws:
        grid = min(-(-size // 256), threads // 256) * 256
        result = [float("nan")] * size
        for thread in range(min(grid, size)):
            state = offset
            for start in range(thread, size, 4 * grid or 1):
                counter = [state & 0xFFFFFFFF, state >> 32, thread, 0]
                one, two, three, four = philox(np.array(counter, np.uint64)[:, None], seed)[:, 0].tolist()
                for step, value in enumerate(box_muller(one, two) + box_muller(three, four)):
                    if start + step * grid < size:
                        result[start + step * grid] = value
                state += 1
        offset += -(-size // (4 * grid)) if size else 0
        results.append(result)
    return results


def box_muller(first: int, second: int) -> list[float]:
    radius, angle = sqrt(-2 * log((first + 0.5) * 2**-32)), 2 * pi * (second + 0.5) * 2**-32
    return [radius * sin(angle), radius * cos(angle)]


@pytest.mark.parametrize("threads", [256, 512, 4096])
@pytest.mark.parametrize(
    "draws", [[1, 5, 40], [256, 257, 1], [0, 3, 0, 3], [511, 512, 513], [1024, 1025, 7], [2048, 2049], [4097, 2]]
)
def test_draws_equal_the_kernel_of_torch(draws: list[int], threads: int) -> None:
    seed = 2**40 + 3
    generator = CUDAGenerator(seed, threads)
    for expected in by_thread(draws, seed, threads):
        found = generator.randn((len(expected),))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


def test_tensors_that_fit_the_gpu_are_the_same_on_each() -> None:
    expected = CUDAGenerator(7).randn((1, 4, 64, 64))
    for threads in (16_384, 40_960, 270_336):
        np.testing.assert_array_equal(CUDAGenerator(7, threads).randn((1, 4, 64, 64)), expected)
    assert not np.array_equal(CUDAGenerator(7, 8192).randn((1, 4, 64, 64)), expected)


def test_the_numbers_are_normal() -> None:
    noise = CUDAGenerator(11, 4096).randn((200_000,)).astype(np.float64)
    moments = [np.mean(noise**power) for power in range(1, 5)]
    # four standard errors
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=4 * np.sqrt(96 / noise.size))
    assert abs(np.mean(noise[:-1] * noise[1:])) < 4 / np.sqrt(noise.size)


def test_float16_is_float32_rounded() -> None:
    np.testing.assert_array_equal(
        CUDAGenerator(3).randn((2, 50), np.float16), CUDAGenerator(3).randn((2, 50)).astype(np.float16)
    )


def test_one_generator_per_image() -> None:
    found = randn((2, 4, 8, 8), [CUDAGenerator(1), CUDAGenerator(2)])
    np.testing.assert_array_equal(found[1], CUDAGenerator(2).randn((4, 8, 8)))


def test_a_pipeline_draws_from_it() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(bundled_model())
    pipeline.set_progress_bar_config(disable=True)

    def picture(**options: Any) -> np.ndarray:
        options |= {"num_inference_steps": 2, "output_type": "np"}
        found: np.ndarray = pipeline("cat face", **options).images
        return found

    expected = picture(latents=CUDAGenerator(5).randn((1, 4, 16, 16)))
    np.testing.assert_array_equal(picture(generator=CUDAGenerator(5)), expected)
    assert not np.array_equal(picture(seed=5), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_draws_equal_torch_on_this_gpu(seed: int) -> None:
    gpu = torch.cuda.get_device_properties(0)
    threads = gpu.multi_processor_count * (gpu.max_threads_per_multi_processor // 256 * 256)
    ours, theirs = CUDAGenerator(seed, threads), torch.Generator("cuda").manual_seed(seed)
    for size in (1, 5, 16_384, threads, threads + 1, 5 * threads + 3, 7):
        expected = torch.randn(size, generator=theirs, device="cuda").cpu().numpy()
        np.testing.assert_allclose(ours.randn((size,)), expected, atol=4e-6, rtol=0)


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(ValueError, match=rf"^dtype must be float32 or float16, got {np.dtype(dtype)}$"):
        CUDAGenerator(0).randn((4,), dtype)


@pytest.mark.parametrize(
    ("threads", "error", "message"),
    [
        (0, ValueError, r"^threads must be a multiple of 256, got 0$"),
        (-256, ValueError, r"^threads must be a multiple of 256, got -256$"),
        (1000, ValueError, r"^threads must be a multiple of 256, got 1000$"),
        (256.0, TypeError, r"^threads must be an integer or None, got float$"),
        (True, TypeError, r"^threads must be an integer or None, got bool$"),
    ],
)
def test_bad_threads_are_refused(threads: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CUDAGenerator(0, threads)


@pytest.mark.parametrize(("seed", "error"), [(2**64, ValueError), ("0", TypeError)])
def test_bad_seeds_are_refused(seed: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^seed must "):
        CUDAGenerator(seed)
