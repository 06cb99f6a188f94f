"""Which profile takes a call."""

import pytest

from safelight.runtime.backends.tensorrt.buckets import choose_profile
from safelight.runtime.engines import Profile, ShapeRange


def profile(label: str, low: tuple[int, ...], high: tuple[int, ...]) -> Profile:
    return Profile(label=label, shapes={"sample": ShapeRange(smallest=low, usual=high, largest=high)})


SQUARE = profile("512x512", (1, 4, 64, 64), (8, 4, 64, 64))
LARGE = profile("1024x1024", (1, 4, 128, 128), (2, 4, 128, 128))
WIDE = profile("free", (1, 4, 8, 8), (2, 4, 128, 128))


@pytest.mark.parametrize(
    ("shape", "profiles", "expected"),
    [
        ((2, 4, 64, 64), [WIDE, SQUARE], 1),  # whose largest inputs are equal
        ((2, 4, 64, 64), [SQUARE, WIDE], 0),
        ((2, 4, 128, 128), [SQUARE, WIDE, LARGE], 2),
        ((8, 4, 64, 64), [WIDE, LARGE, SQUARE], 2),
        ((1, 4, 8, 100), [SQUARE, LARGE, WIDE], 2),
    ],
)
def test_the_tightest(shape: tuple[int, ...], profiles: list[Profile], expected: int) -> None:
    shapes = {"sample": shape, "timestep": (shape[0],)}  # of the second, no profile says anything
    larger = profile("very free", (1, 4, 8, 8), (64, 4, 256, 256))
    assert choose_profile("unet", [larger, *profiles], shapes) == expected + 1


def test_every_range_is_named() -> None:
    with pytest.raises(ValueError, match="unet: this engine") as caught:
        choose_profile("unet", [SQUARE, LARGE], {"sample": (16, 4, 64, 64), "timestep": (16,)})
    assert str(caught.value) == (
        "unet: this engine was not built for sample 16x4x64x64; it takes 512x512: sample 1x4x64x64 to 8x4x64x64; "
        "1024x1024: sample 1x4x128x128 to 2x4x128x128. "
        "safelight build with another --shape or --batch makes one that does"
    )


def test_only_what_is_wrong_is_named() -> None:
    two = Profile(
        label="one",
        shapes={
            "sample": ShapeRange(smallest=(1, 4), usual=(1, 4), largest=(2, 4)),
            "mask": ShapeRange(smallest=(3,), usual=(3,), largest=(3,)),
        },
    )
    with pytest.raises(ValueError, match=r"not built for sample 2x4, mask 5; it takes one: mask 3\."):
        choose_profile("unet", [two], {"sample": (2, 4), "mask": (5,)})
