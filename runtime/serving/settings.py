"""How a server is set up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..source import bundled_model

#: addresses that no other machine reaches
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server is set up. Times are in seconds."""

    model: str | None = None  # a folder or hub id; the bundled model when None
    name: str | None = None  # of the model, in requests; its folder's when None
    engine: Mapping[str, Any] = field(default_factory=dict)  # of `DiffusionPipeline.from_pretrained`
    speed: Any = None  # of the same
    safety_checker: bool = True  # whether the model's own looks at the pictures

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()  # any of which lets a client in; everybody when empty
    allowed_hosts: tuple[str, ...] = ()  # names that clients may call the server by, besides its own
    allow_anyone: bool = False  # whether a server that others reach may be without a key

    max_queue: int = 64  # pictures that wait
    max_batch: int = 8  # pictures that are being made
    streams: int | None = None  # batches that run at a time; see `opening.Streams`
    max_images: int = 10  # of a request
    max_steps: int = 250
    max_pixels: int | None = None  # of a picture; four times the model's own when None
    num_inference_steps: int | None = None  # where a request does not say; the pipeline's own when None
    max_body: int = 50_000_000  # bytes of a request
    body_timeout: float = 30.0  # for all of a request's body
    drain_timeout: float = 120.0  # for what is running and waiting when the server is to end

    log_file: str | None = None  # standard error when None
    page: bool = True

    def __post_init__(self) -> None:
        """Refuses what cannot be.

        Raises:
            ValueError: a number out of its range, an empty key, or a server that is open to others without one.
        """
        for name, least in (("max_queue", 1), ("max_batch", 1), ("max_images", 1), ("max_steps", 1), ("max_body", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.streams is not None and self.streams < 1:
            raise ValueError(f"streams must be at least 1, got {self.streams}")
        for name in ("body_timeout", "drain_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0 seconds, got {getattr(self, name)}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must lie between 0 and 65535, got {self.port}")
        if any(not key.strip() or not key.isascii() or not key.isprintable() for key in self.api_keys):
            raise ValueError("an API key must be of printable ASCII, and not empty")
        if not self.is_local and not self.api_keys and not self.allow_anyone:
            raise ValueError(
                f"on {self.host} others reach the server: give --api-key, or --allow-anyone to let everybody in"
            )

    @property
    def model_name(self) -> str:
        """What requests call the model."""
        return self.name or Path(self.model or bundled_model()).name

    @property
    def is_local(self) -> bool:
        """Whether no other machine reaches the server."""
        return self.host in LOOPBACK
