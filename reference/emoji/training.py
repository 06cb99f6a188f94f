"""What both trainings share: a budget, a learning rate that follows it, mixed precision, the average of the weights."""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Budget:
    """How long to train: minutes of wall time, or a number of steps, which makes a run repeatable."""

    minutes: float
    steps: int | None = None
    started: float = field(default_factory=time.monotonic)

    def spent(self, step: int) -> float:
        """The part of the budget that is used up before this step, 1 or more when there is none left."""
        return self.elapsed_minutes() / self.minutes if self.steps is None else step / self.steps

    def elapsed_minutes(self) -> float:
        """Minutes since the training began."""
        return (time.monotonic() - self.started) / 60


def set_learning_rate(
    optimizer: torch.optim.Optimizer, *, peak: float, floor: float, warmup: float, spent: float
) -> None:
    """A cosine from `peak` to `floor` over the budget; `warmup` in [0, 1] scales the first steps."""
    rate = peak * min(1.0, warmup) * (0.5 + 0.5 * math.cos(math.pi * spent)) + floor
    for group in optimizer.param_groups:
        group["lr"] = rate


def mixed_precision(device: torch.device) -> torch.autocast:
    """The context of a forward pass: bfloat16 where the hardware computes in it, float32 elsewhere.

    A processor without the instructions emulates them, thirty times slower than float32.
    """
    if device.type == "cpu":
        return torch.autocast("cpu", torch.bfloat16, enabled=bool(torch.cpu.get_capabilities().get("avx512_bf16")))
    return torch.autocast(device.type, torch.bfloat16)


class WeightAverage:
    """An exponential moving average of a network's weights, updated every few steps."""

    EVERY = 4  # steps

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.weights: dict[str, Tensor] = {name: value.clone() for name, value in network.state_dict().items()}

    def update(self, decay: float) -> None:
        """Moves the average towards the network; `decay` is per step."""
        for name, value in self._network.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay**self.EVERY)
