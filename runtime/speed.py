"""Doing less than a picture takes: which of its computations a pipeline leaves out.

All of it is off unless asked for, and drifts from the picture that everything computed gives: docs/speed.md has the
numbers, `python -m safelight.benchmarks.drift` measures them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Self

from .step_reuse import StepReuse

#: the part of the loop that a prediction may be reused for is one of so many
_PARTS = 20


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What is left out. The default leaves out nothing.

    Attributes:
        guidance_interval: from where to where on the way guidance is computed, as parts of the loop's calls of the
            UNet, 0 to 1; elsewhere the conditional half alone is (Kynkäänniemi et al. 2024, arXiv:2404.07724, whose
            interval is one of noise levels). Like `start` and `stop` of diffusers' guiders: of n calls it holds those
            from int(start * n) up to, and without, int(stop * n).
        deep_cache_interval: every how many calls the whole UNet is computed, and in between its outer blocks alone;
            1 is always. See `enable_deep_cache`.
        reuse_threshold: how much a picture may deviate from an even motion for the last prediction to be used once
            more; 0 is never. See `step_reuse`.
        reuse_limit: how often in a row at most; a twentieth of the loop's calls, and at least once, when None: what a
            prediction may miss is a part of the way, and not a number of steps.
    """

    guidance_interval: tuple[float, float] = (0.0, 1.0)
    deep_cache_interval: int = 1
    reuse_threshold: float = 0.0
    reuse_limit: int | None = None

    def __post_init__(self) -> None:
        """Refuses what is no option's value.

        Raises:
            ValueError: it is out of range.
        """
        interval = self.guidance_interval
        if not (isinstance(interval, tuple | list) and len(interval) == 2 and all(map(_is_number, interval))):
            raise ValueError(f"guidance_interval must be two numbers, start and stop, got {interval!r}")
        start, stop = map(float, interval)
        if not 0 <= start <= stop <= 1:
            raise ValueError(
                f"guidance_interval must be parts of the way with 0 <= start <= stop <= 1, got {start:g} and {stop:g}"
            )
        object.__setattr__(self, "guidance_interval", (start, stop))
        for name in ("deep_cache_interval", "reuse_limit"):
            value = getattr(self, name)
            if name == "reuse_limit" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number from 1 on, got {value!r}")
        if not _is_number(self.reuse_threshold) or self.reuse_threshold < 0:
            raise ValueError(f"reuse_threshold must be a number from 0, which is off, on, got {self.reuse_threshold!r}")

    @classmethod
    def of(cls, speed: "str | Speed") -> "Speed":
        """What a user names: a preset, or the options themselves.

        Raises:
            ValueError: there is no preset of that name.
            TypeError: it is neither.
        """
        if isinstance(speed, Speed):
            return speed
        if not isinstance(speed, str):
            raise TypeError(f"speed must be one of {', '.join(PRESETS)}, or a Speed, got {type(speed).__name__}")
        if speed not in PRESETS:
            raise ValueError(f"unknown speed {speed!r}; known: {', '.join(PRESETS)}; or options, Speed(...)")
        return PRESETS[speed]

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Self:
        """The options that a picture's parameters record.

        Raises:
            ValueError: one that is not known, or has no such value.
        """
        if unknown := record.keys() - {field.name for field in fields(cls)}:
            raise ValueError(f"speed has no option {', '.join(sorted(unknown))}")
        return cls(**record)

    def guided_calls(self, calls: int) -> range:
        """The calls, from 0 on, in which guidance is computed, of so many that a picture takes."""
        start, stop = self.guidance_interval
        return range(int(start * calls), int(stop * calls))

    def step_reuse(self, calls: int) -> StepReuse | None:
        """What reuses predictions in a loop of so many calls; None where none are to be."""
        if self.reuse_threshold == 0:
            return None
        limit = max(calls // _PARTS, 1) if self.reuse_limit is None else self.reuse_limit
        return StepReuse(self.reuse_threshold, limit, calls)

    def __str__(self) -> str:
        """What is left out, in words."""
        said = []
        if self.guidance_interval != (0, 1):
            said.append("guidance from {:g} to {:g} of the way".format(*self.guidance_interval))
        if self.deep_cache_interval > 1:
            said.append(f"the whole UNet in every {self.deep_cache_interval}. call")
        if self.reuse_threshold > 0:
            often = "" if self.reuse_limit is None else f", at most {self.reuse_limit} in a row"
            said.append(f"predictions reused below a threshold of {self.reuse_threshold:g}{often}")
        return ", ".join(said) or "everything computed"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


#: what a user may name instead of options; docs/speed.md says how `balanced` was chosen
PRESETS: Mapping[str, Speed] = MappingProxyType(
    {
        "exact": Speed(),
        "balanced": Speed(reuse_threshold=0.05),
    }
)
