"""The images and captions that the emoji checkpoint is trained on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).with_name("data")

COLORS = {
    "white": (255, 255, 255),
    "black": (24, 24, 28),
    "red": (226, 60, 60),
    "orange": (245, 150, 50),
    "yellow": (250, 215, 80),
    "green": (80, 180, 100),
    "blue": (70, 130, 220),
    "purple": (150, 95, 205),
    "pink": (245, 160, 195),
    "gray": (150, 155, 160),
}


@dataclass(frozen=True)
class Subject:
    """What one emoji shows: its name, and words that describe it."""

    label: str
    tags: Sequence[str]


def load_subjects(count: int | None = None) -> list[Subject]:
    """The first `count` subjects, or all 462."""
    lines = (DATA / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Subject(row["label"], row["tags"]) for row in rows][:count]


def load_images(count: int | None = None) -> Tensor:
    """The subjects' drawings, (count, 64, 64, 4) uint8, RGBA with straight alpha."""
    with np.load(DATA / "noto_64.npz") as arrays:
        return torch.from_numpy(arrays["rgba"][:count])


def background_colors() -> Tensor:
    """The named colours, (10, 3) float32 in 0..255."""
    return torch.tensor(list(COLORS.values()), dtype=torch.float32)


def on_background(images: Tensor, colors: Tensor) -> Tensor:
    """Drawings on plain backgrounds: (batch, 3, 64, 64), float32 in [-1, 1].

    Args:
        images: (batch, 64, 64, 4) uint8.
        colors: (batch, 3) in 0..255.
    """
    unit = images.float() / 255
    alpha = unit[..., 3:]
    blended = unit[..., :3] * alpha + colors[:, None, None, :] / 255 * (1 - alpha)
    return (blended * 2 - 1).permute(0, 3, 1, 2).contiguous()


def prompt(subject: str, color: str | None = None) -> str:
    """The caption of a subject, on a background of a named colour or of none."""
    return subject if color is None else f"{subject} on a {color} background"
