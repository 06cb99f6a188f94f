"""What the server and its worker process tell each other."""

from dataclasses import dataclass, field

from .batching import Ran
from .errors import ApiError
from .image_request import ImageRequest
from .model_card import ModelCard

__all__ = ["Cancel", "Close", "Closed", "Failed", "Made", "OpenFailed", "Preview", "Ran", "Ready", "Start", "Step"]


# to the worker


@dataclass(frozen=True, kw_only=True)
class Start:
    """Make one picture of a request."""

    task: int  # a number of its own
    request: ImageRequest
    index: int  # which of the request's pictures: its seed is so much higher


@dataclass(frozen=True, kw_only=True)
class Cancel:
    """The picture is not wanted any more."""

    task: int


@dataclass(frozen=True)
class Close:
    """End, once what runs has ended."""


# from the worker


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The model is open."""

    card: ModelCard


@dataclass(frozen=True, kw_only=True)
class OpenFailed:
    """The model cannot be opened."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """A picture has come so far."""

    task: int
    step: int  # that is done, from 1 on
    steps: int


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A picture as it is now."""

    task: int
    index: int  # of the previews
    content: bytes  # a file of the request's format


@dataclass(frozen=True, kw_only=True)
class Made:
    """A picture is made."""

    task: int
    content: bytes  # a file of the request's format
    seed: int
    tokens: int  # of the prompt
    warnings: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)  # seconds by stage


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A picture cannot be made."""

    task: int
    error: ApiError
    cause: str  # for the log: what went wrong, where that is not the client's business


@dataclass(frozen=True, kw_only=True)
class Closed:
    """A picture that was cancelled takes no place any more."""

    task: int


Message = Ready | OpenFailed | Step | Preview | Made | Failed | Closed | Ran
Order = Start | Cancel | Close
