"""The last prediction instead of a new one, where the latents move evenly.

AdaptiveDiffusion (Ye et al. 2024, arXiv:2410.09873): what a UNet predicts changes little from one step to the next
while the third difference of the latents is small beside the first. With the mean absolute change from the step before,
d[i] = mean(|x[i] - x[i-1]|), the authors' program (`estimate_skipping`) takes the last prediction again at a step i if

    |(d[i] + d[i-2]) / 2 - d[i-1]| <= threshold * d[i-1]

and not more than so many times in a row; the first four predictions are always computed.

What differs here: x is what the model is given, of variance 1, so that a threshold means the same with schedulers whose
latents are scaled otherwise (with DDIM and its kin both are one). The last prediction is always computed, and so is the
first one after guidance or the prompts changed. Each picture of a batch is judged on its own, and keeps its last
prediction even where others need a new one: a seed's picture does not depend on what else is in its batch.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np

from .backends import Array

#: how many predictions are computed before one is reused: as many as three differences take, and one, as the authors do
FIRST = 4


@dataclass
class StepReuse:
    """The predictions of one run of the loop, and which of them are reused."""

    threshold: float
    limit: int  # how often in a row
    calls: int  # of the loop
    _sample: Array | None = None  # of the call before
    _output: Array | None = None  # likewise; (batch, channels, height, width)
    _steering: Hashable = None
    _differences: list[Array] = field(default_factory=list)  # of the last three calls; each (batch,)
    _in_a_row: Array | None = None  # how often each picture's prediction was reused; (batch,)

    def __call__(self, index: int, sample: Array, steering: Hashable, predict: Callable[[], Array]) -> Array:
        """The prediction for a call.

        Args:
            index: of the call, from 0 on.
            sample: what the model is given, (batch, channels, height, width).
            steering: what the prediction depends on besides; a new one is computed where it is not the last one's.
            predict: computes it.
        """
        reusable = self._reusable(index, sample)
        if steering != self._steering:
            reusable[:] = False
        self._in_a_row = np.where(reusable, self._reused(len(sample)) + 1, 0)
        if self._output is None or not reusable.all():
            output = predict()
            kept = reusable[:, None, None, None]
            self._output = output if self._output is None or not kept.any() else np.where(kept, self._output, output)
        self._steering = steering
        return self._output

    def _reusable(self, index: int, sample: Array) -> Array:
        """Which pictures move evenly, (batch,) of bool; keeps the sample for the next call."""
        if self._sample is not None:
            change = np.abs(sample - self._sample).mean(axis=(1, 2, 3))
            self._differences = [*self._differences[-2:], change]
        self._sample = sample
        if index < FIRST or index == self.calls - 1:
            return np.zeros(len(sample), dtype=np.bool_)
        earlier, before, now = self._differences
        even = np.abs((now + earlier) / 2 - before) <= self.threshold * before
        return np.asarray(even & (self._reused(len(sample)) < self.limit))

    def _reused(self, batch: int) -> Array:
        return np.zeros(batch, dtype=np.int64) if self._in_a_row is None else self._in_a_row
