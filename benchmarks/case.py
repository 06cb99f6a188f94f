"""What is measured: one picture, and everything that determines it."""

import json
from dataclasses import asdict, dataclass
from typing import Self


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

    def call(self) -> dict[str, object]:
        """The arguments that all pipelines spell alike."""
        fields = asdict(self)
        return {name: fields[name] for name in fields if name not in {"model", "checkpoint", "seed"}}

    def to_json(self) -> str:
        """For a worker's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """From a worker's command line."""
        return cls(**json.loads(text))
