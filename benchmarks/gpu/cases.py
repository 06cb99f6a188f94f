"""What is measured: models of published shapes with random weights, at the size that each is known for."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one of the contenders here must reach, for one picture."""

    seconds: float | None = None  # of a whole picture, at most
    steps_per_second: float | None = None  # guided ones, at least
    times_faster: float = 1.3  # than the peer that is compiled, at least


@dataclass(frozen=True, kw_only=True)
class GpuCase:
    """A model and a picture."""

    shape: str  # of `published.SHAPES`
    height: int | None = None  # in pixels; the model's own when None
    width: int | None = None
    target: Target | None = None


CASES: Mapping[str, GpuCase] = MappingProxyType(
    {
        # 572 ms: ONNX Runtime's own figure for its CUDA provider
        "sd15": GpuCase(shape="sd15", height=512, width=512, target=Target(seconds=0.572)),
        # 21.6: the best published figure
        "sdxl": GpuCase(shape="sdxl", height=1024, width=1024, target=Target(steps_per_second=21.6)),
        # for a try, on a CPU too
        "small": GpuCase(shape="small"),
    }
)
PROMPT = "An image of a squirrel in Picasso style"
GUIDANCE_SCALE = 7.5
