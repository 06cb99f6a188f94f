"""What is measured: one picture, and everything that determines it; and what a generation gave."""

from dataclasses import dataclass

from safelight.runtime.backends import Array


@dataclass(frozen=True, kw_only=True)
class Case:
    """A generation that every contender must give the same picture for."""

    model: str  # the exported folder
    checkpoint: str | None  # the checkpoint that it was exported from; the PyTorch contenders need it
    prompt: str
    height: int | None
    width: int | None
    num_inference_steps: int
    guidance_scale: float
    seed: int


@dataclass(frozen=True)
class Picture:
    """What one generation gave: (height, width, 3) float32 in [0, 1], and the seconds of each stage."""

    image: Array
    seconds: dict[str, float]  # "total", and the stages that the contender tells apart
