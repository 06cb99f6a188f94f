"""Which of an engine's optimization profiles takes a call: every profile is a bucket of shapes."""

import math
from collections.abc import Mapping, Sequence

from ...engines import Profile, ShapeRange

Shape = tuple[int, ...]


def choose_profile(network: str, profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int:
    """The index of the tightest profile that holds these shapes: its largest inputs are the smallest.

    Of two whose largest inputs are equal, the one whose smallest are larger is made for less.

    Args:
        network: for the error.
        profiles: of the engine, in its order.
        shapes: of every input.

    Raises:
        ValueError: no profile holds them; the message has the ranges of each.
    """
    fitting = [index for index, profile in enumerate(profiles) if profile.holds(shapes)]
    if not fitting:
        ranges = "; ".join(f"{profile.label}: {_ranges(profile, shapes)}" for profile in profiles)
        given = ", ".join(f"{name} {_by(shape)}" for name, shape in shapes.items() if _is_free(name, profiles))
        raise ValueError(
            f"{network}: this engine was not built for {given}; it takes {ranges}. "
            "safelight build with another --shape or --batch makes one that does"
        )
    return min(fitting, key=lambda index: _breadth(profiles[index]))


def _breadth(profile: Profile) -> tuple[int, int]:
    shapes = profile.shapes.values()
    return sum(math.prod(shape.largest) for shape in shapes), -sum(math.prod(shape.smallest) for shape in shapes)


def _is_free(name: str, profiles: Sequence[Profile]) -> bool:
    return any(name in profile.shapes for profile in profiles)


def _ranges(profile: Profile, shapes: Mapping[str, Shape]) -> str:
    """The ranges of the inputs that a profile does not hold, or of all that it has."""
    wrong = {name: found for name, found in profile.shapes.items() if not found.holds(shapes[name])}
    return ", ".join(f"{name} {_range(found)}" for name, found in wrong.items())


def _range(shape: ShapeRange) -> str:
    if shape.smallest == shape.largest:
        return _by(shape.largest)
    return f"{_by(shape.smallest)} to {_by(shape.largest)}"


def _by(shape: Shape) -> str:
    return "x".join(map(str, shape))
