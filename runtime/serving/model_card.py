"""What a server's model can make."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Sizes that an engine was compiled for: least and most of each side, in pixels."""

    width: tuple[int, int]
    height: tuple[int, int]

    def holds(self, width: int, height: int) -> bool:
        """Whether a picture of this size is among them."""
        return self.width[0] <= width <= self.width[1] and self.height[0] <= height <= self.height[1]

    def __str__(self) -> str:
        sides = (str(least) if least == most else f"{least}..{most}" for least, most in (self.width, self.height))
        return "x".join(sides)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model can make; the worker says it when the model is open."""

    id: str  # in requests
    created: int  # seconds since 1970: the model folder's
    pipeline: str  # its class
    backend: str  # what runs it, where, and in which precision
    width: int  # of the pictures that it was trained on, in pixels
    height: int
    factor: int  # sides are multiples of it
    most_pixels: int  # of a picture
    width_range: tuple[int, int]  # least and most, in pixels
    height_range: tuple[int, int]
    buckets: tuple[Bucket, ...] = ()  # of which a picture has to be in one; none where the engine takes every size
    num_inference_steps: int  # where a request does not say
    guidance_scale: float  # likewise
    strength: float  # likewise
    scheduler: str  # likewise: the class's name
    schedulers: tuple[str, ...]  # those that can be made from its configuration
    generations: bool  # whether it makes pictures from noise
    edits: bool  # whether it starts from pictures
    masks: bool  # whether it makes parts of pictures anew
