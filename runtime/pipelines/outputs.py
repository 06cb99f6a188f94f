"""What a call gives back, and how long its stages took."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..backends import Array


@dataclass(frozen=True)
class StableDiffusionPipelineOutput:
    """What a call made."""

    images: "list[Image] | Array"  # PIL images; (batch, height, width, 3) in [0, 1] for "np"; latents for "latent"
    nsfw_content_detected: list[bool] | None = None  # which of them are black; None where nobody looked
    timings: dict[str, float] = field(default_factory=dict)  # seconds in each stage: text, image, denoise, decode


@dataclass(frozen=True)
class StableDiffusionXLPipelineOutput:
    """What a call of an SDXL pipeline made."""

    images: "list[Image] | Array"  # as in `StableDiffusionPipelineOutput`
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ImagePipelineOutput:
    """What a call of an unconditional pipeline made."""

    images: "list[Image] | Array"  # PIL images; (batch, height, width, channels) in [0, 1] for "np"
    timings: dict[str, float] = field(default_factory=dict)  # seconds in each stage: denoise, image


class Stopwatch:
    """Seconds between one stage's end and the next."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = perf_counter()

    def stage(self, name: str) -> None:
        """Notes how long a stage took that ends now."""
        now = perf_counter()
        self.stages[name] = now - self._last
        self._last = now
