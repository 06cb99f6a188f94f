"""Tiles and slices: against diffusers with its own autoencoder, against the whole, and for seams in a real picture."""

import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from safelight.runtime import DiffusionPipeline, bundled_model
from safelight.runtime.tiling import decode_tiled, encode_tiled, sliced

FACTOR = 2
TILE = 16


@pytest.fixture(scope="module")
def vae() -> Iterator[AutoencoderKL]:
    """Random weights, pixels of the latents two wide, in diffusers; on one thread, which suits tiles so small."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=TILE * FACTOR,
    ).eval()
    torch.set_num_threads(threads)


def run(function: Callable[[torch.Tensor], torch.Tensor], array: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return function(torch.from_numpy(array)).numpy()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.fixture
def tiling(vae: AutoencoderKL, overlap: float) -> Callable[..., np.ndarray]:
    """The oracle with its tiling on, only while it is asked."""

    def oracle(function: Callable[[torch.Tensor], torch.Tensor], array: np.ndarray) -> np.ndarray:
        vae.tile_overlap_factor = overlap
        vae.enable_tiling()
        try:
            return run(function, array)
        finally:
            vae.disable_tiling()

    return oracle


SIZES = [(29, 25), (17, 40), (40, 16), (5, 33), (16, 16), (7, 9)]


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.75, 0.0])
@pytest.mark.parametrize("size", SIZES)
def test_decoding_in_tiles_is_diffusers(vae: AutoencoderKL, tiling, overlap: float, size: tuple[int, int]) -> None:
    latents = noise(2, 4, *size)
    before = latents.copy()
    got = decode_tiled(
        lambda z: run(lambda x: vae.decode(x).sample, z),
        latents,
        tile_latent_size=TILE,
        overlap=overlap,
        factor=FACTOR,
    )
    expected = tiling(lambda x: vae.decode(x).sample, latents)
    assert got.shape == expected.shape == (2, 3, size[0] * FACTOR, size[1] * FACTOR)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(latents, before)


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.75, 0.0])
@pytest.mark.parametrize("size", SIZES)
def test_encoding_in_tiles_is_diffusers(vae: AutoencoderKL, tiling, overlap: float, size: tuple[int, int]) -> None:
    images = noise(2, 3, size[0] * FACTOR, size[1] * FACTOR)
    got = encode_tiled(
        lambda x: run(lambda y: vae.encode(y).latent_dist.parameters, x),
        images,
        tile_latent_size=TILE,
        overlap=overlap,
        factor=FACTOR,
    )
    expected = tiling(lambda x: vae.encode(x).latent_dist.parameters, images)
    assert got.shape == expected.shape == (2, 8, *size)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def enlarged(latents: np.ndarray) -> np.ndarray:
    """A decoder that sees single pixels: its tiles are exactly parts of the whole."""
    return latents[:, :3].repeat(FACTOR, axis=2).repeat(FACTOR, axis=3)


@pytest.mark.parametrize("tile", [1, 2, 3, 9, 13])
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.3, 0.6])
@pytest.mark.parametrize("size", [(9, 31), (30, 3), (23, 14)])
def test_tiles_of_any_size_and_overlap_make_the_whole(tile: int, overlap: float, size: tuple[int, int]) -> None:
    """Also where the overlap is no whole number of pixels: diffusers' images have another size there."""
    latents = noise(1, 4, *size)
    if tile * overlap > tile - 1:
        with pytest.raises(ValueError, match="leaves nothing"):
            decode_tiled(enlarged, latents, tile_latent_size=tile, overlap=overlap, factor=FACTOR)
        return
    got = decode_tiled(enlarged, latents, tile_latent_size=tile, overlap=overlap, factor=FACTOR)
    np.testing.assert_allclose(got, enlarged(latents), rtol=0, atol=1e-6)
    back = encode_tiled(
        lambda x: x[:, :, ::FACTOR, ::FACTOR], got, tile_latent_size=tile, overlap=overlap, factor=FACTOR
    )
    np.testing.assert_allclose(back, latents[:, :3], rtol=0, atol=1e-6)


def test_an_overlap_is_rounded_up_but_not_by_floating_point() -> None:
    widths = []

    def decode(latents: np.ndarray) -> np.ndarray:
        widths.append(latents.shape[3])
        return enlarged(latents)

    # In floating point 25 * 0.28 is more than 7, and 10 * (1 - 0.9) less than 1.
    for tile, overlap, step in ((25, 0.28, 18), (10, 0.9, 1), (10, 0.25, 7)):
        widths.clear()
        decode_tiled(decode, noise(1, 4, 1, 60), tile_latent_size=tile, overlap=overlap, factor=FACTOR)
        assert widths == [min(tile, 60 - start) for start in range(0, 60, step)]


def test_no_more_than_one_tile_is_held() -> None:
    made: list[weakref.ref[np.ndarray]] = []

    def decode(latents: np.ndarray) -> np.ndarray:
        assert max(latents.shape[2:]) <= 8
        assert all(one() is None for one in made), "an earlier tile is still there"
        tile = np.array(enlarged(latents))
        made.append(weakref.ref(tile))
        return tile

    decode_tiled(decode, noise(1, 4, 30, 30), tile_latent_size=8, overlap=0.25, factor=FACTOR)
    assert len(made) == 25


def test_slices_are_the_batch(vae: AutoencoderKL) -> None:
    latents, batches = noise(3, 4, 6, 5), []

    def decode(z: np.ndarray) -> np.ndarray:
        batches.append(len(z))
        return run(lambda x: vae.decode(x).sample, z)

    vae.enable_slicing()
    expected = run(lambda x: vae.decode(x).sample, latents)
    vae.disable_slicing()
    np.testing.assert_allclose(sliced(decode, latents), expected, rtol=0, atol=1e-6)
    assert batches == [1, 1, 1]
    with pytest.raises(ValueError, match="at least one image"):
        sliced(decode, latents[:0])


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"tile_latent_size": 0}, (1, 4, 20, 20), "tile_latent_size must be at least 1, got 0"),
        ({"overlap": 1.0}, (1, 4, 20, 20), r"overlap must lie in \[0, 1\), got 1.0"),
        ({"overlap": -0.1}, (1, 4, 20, 20), "overlap must lie in"),
        ({"overlap": 0.99}, (1, 4, 20, 20), "leaves nothing of a tile of 8"),
        ({}, (4, 20, 20), "batch, channels, height, width"),
        ({}, (0, 4, 20, 20), "batch, channels, height, width"),
        ({"factor": 3}, (1, 4, 20, 20), "must become one of 24x24"),
    ],
)
def test_bad_tiles_are_refused(options: dict[str, float], shape: tuple[int, ...], message: str) -> None:
    given = {"tile_latent_size": 8, "overlap": 0.25, "factor": FACTOR, **options}
    with pytest.raises(ValueError, match=message):
        decode_tiled(enlarged, noise(*shape), **given)


def test_images_that_are_no_whole_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 2, got 31 and 40"):
        encode_tiled(lambda x: x, noise(1, 3, 31, 40), tile_latent_size=8, overlap=0.25, factor=FACTOR)


# Seams in a real picture

#: the largest mean jump at a border, as a multiple of the median jump elsewhere. Measured with tiles of 16, 32 and 64:
#: 4.0, 2.2 and 2.2, without blending 47, 62 and 87; for the encoder 2.9 and 14
SEAM = 5.0


def photograph(side: int) -> np.ndarray:
    """(1, 3, side, side) in [-1, 1]: soft gradients, curves with edges, grain."""
    y, x = np.mgrid[0:side, 0:side] / side
    rings = np.sin(7 * y + np.hypot(x - 0.5, y - 0.4) * 12) * 0.8
    channels = np.stack([0.6 * np.sin(3 * x + 2 * y) + 0.3 * np.cos(20 * x * y), 2 * x - 1, rings])
    grain = np.random.default_rng(0).normal(size=channels.shape) * 0.05
    return np.clip(channels + grain, -1, 1)[None].astype(np.float32)


def jumps(difference: np.ndarray, axis: int) -> np.ndarray:
    """The mean step of the difference to the untiled picture, from each row (or column) to the next."""
    return np.abs(np.diff(difference, axis=axis)).mean(axis=tuple(other for other in range(4) if other != axis))


def seams(difference: np.ndarray, starts: list[int], ends: list[int], margin: int) -> float:
    """The largest jump at the tiles' borders, over the median of those elsewhere, the picture's own edges left out."""
    worst = 0.0
    for axis in (2, 3):
        profile = jumps(difference, axis)
        borders = np.array(starts + ends) - 1
        inside = np.setdiff1d(np.arange(margin, len(profile) - margin), borders)
        worst = max(worst, float(profile[borders].max() / np.median(profile[inside])))
    return worst


@pytest.mark.parametrize("tile", [16, 32, 64])
def test_tiles_of_the_bundled_model_leave_no_seams(tile: int) -> None:
    vae = DiffusionPipeline.from_pretrained(bundled_model()).vae
    factor, side = vae.factor, 96
    image = photograph(side * factor)
    latents = vae.encode(image).mode()
    whole = vae.decode(latents)
    assert np.abs(whole - image).mean() < 0.1, "the autoencoder knows such pictures"

    tiled = decode_tiled(vae.decode, latents, tile_latent_size=tile, overlap=0.25, factor=factor)
    starts = [start * factor for start in range(tile * 3 // 4, side, tile * 3 // 4)]
    ends = [start + tile // 4 * factor for start in starts if start + tile // 4 * factor < side * factor]
    blended = seams(tiled - whole, starts, ends, margin=8)
    assert blended < SEAM

    # The same tiles side by side: the measure finds their seams.
    hard = np.empty_like(whole)
    cuts = [0, *starts, side * factor]
    for top, bottom in pairwise(cuts):
        for left, right in pairwise(cuts):
            y, x = top // factor, left // factor
            part = vae.decode(latents[:, :, y : y + tile, x : x + tile])
            hard[:, :, top:bottom, left:right] = part[:, :, : bottom - top, : right - left]
    assert seams(hard - whole, starts, [], margin=8) > 5 * SEAM > 5 * blended


def test_tiled_latents_of_the_bundled_model_leave_no_seams() -> None:
    vae = DiffusionPipeline.from_pretrained(bundled_model()).vae
    image = photograph(96 * vae.factor)
    whole = vae.encode(image).mean

    def encode(sample: np.ndarray) -> np.ndarray:
        return vae.encode(sample).parameters

    tiled = encode_tiled(encode, image, tile_latent_size=32, overlap=0.25, factor=vae.factor)
    difference = np.split(tiled, 2, axis=1)[0] - whole
    hard = encode_tiled(encode, image, tile_latent_size=32, overlap=0.0, factor=vae.factor)
    assert seams(difference, [24, 48, 72], [32, 56, 80], margin=2) < SEAM
    assert seams(np.split(hard, 2, axis=1)[0] - whole, [32, 64], [], margin=2) > SEAM
    assert np.abs(difference).mean() < 0.2 * whole.std()
