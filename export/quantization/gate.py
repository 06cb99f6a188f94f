"""Whether a quantized folder is worth keeping: it must be within its limits, and faster than what it was made of."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from safelight.runtime.backends import AUTO, Array, Network
from safelight.runtime.fidelity import Proof, Report, check
from safelight.runtime.model_folder import ModelFolder
from safelight.runtime.networks import Engine

from .calibration import Call
from .request import Request

#: of the source's time: what is nearer than this may be the machine's noise, and is not worth the error
FAST_ENOUGH = 0.95
#: pairs of calls that are timed: many of a small network, few of one that takes seconds
_MOST_PAIRS, _FEWEST_PAIRS, _SECONDS = 31, 5, 20.0
_WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of a network's calls, of the source and of the result in turn."""

    backend: str
    precision: str  # that the source was asked for
    shapes: dict[str, list[int]]  # of the inputs
    source: list[float]
    result: list[float]

    @property
    def ratio(self) -> float:
        """The median of result / source over the pairs: what disturbs one call of a pair disturbs few pairs."""
        return statistics.median(after / before for before, after in zip(self.source, self.result, strict=True))

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "ratio": self.ratio}


def timed(source: Network, result: Network, call: Call, *, backend: str) -> Timing:
    """Calls two networks in turn, which of them first in turn too.

    Args:
        source: of the exported folder, in the fastest precision.
        result: of the quantized one.
        call: what both are given.
        backend: that runs them.
    """
    pair = (source, result)
    for network in pair * _WARM_UP:
        network(call)
    found: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    while len(found[0]) < _FEWEST_PAIRS or (len(found[0]) < _MOST_PAIRS and time.perf_counter() - started < _SECONDS):
        order = (0, 1) if len(found[0]) % 2 == 0 else (1, 0)
        for which in order:
            begun = time.perf_counter()
            pair[which](call)
            found[which].append(time.perf_counter() - begun)
    shapes = {name: list(array.shape) for name, array in call.items()}
    return Timing(backend=backend, precision=AUTO, shapes=shapes, source=found[0], result=found[1])


def time_networks(
    source: ModelFolder, result: ModelFolder, calls: Mapping[str, Call], *, backend: str, threads: int | None
) -> dict[str, Timing]:
    """The times of networks of two folders; two networks are in memory at a time.

    Args:
        source: what was quantized, which computes in the fastest precision that the device has.
        result: the quantized folder, whose other layers do too.
        calls: by network, what it is given.
        backend: that runs both.
        threads: of the CPU.
    """
    timings = {}
    for name, call in calls.items():
        how: dict[str, Any] = {"backend": backend, "precision": AUTO, "threads": threads}
        before, after = (Engine.of(folder, **how).open(folder, name) for folder in (source, result))
        try:
            timings[name] = timed(before, after, call, backend=backend)
        finally:
            before.close()
            after.close()
    return timings


def at_own_size(folder: ModelFolder, network: str, call: Call) -> Call:
    """A call of a run with latents of the model's own size, which a proof's run of a large model is smaller than.

    Args:
        folder: whose configuration says the size.
        network: that is called; of others than UNet and decoder the call is as it was.
        call: the inputs.
    """
    name = {"unet": "sample", "vae_decoder": "latent_sample"}.get(network)
    size = folder.config("unet").get("sample_size") if name and folder.has_graph("unet") else None
    if name is None or size is None:
        return call
    height, width = size if isinstance(size, list) else (size, size)
    return {**call, name: _grown(call[name], height, width)}


def _grown(latents: Array, height: int, width: int) -> Array:
    """Latents that are repeated up to a size, and never cut."""
    rows, columns = (max(0, wanted - side) for wanted, side in zip((height, width), latents.shape[2:], strict=True))
    return np.pad(latents, ((0, 0), (0, 0), (0, rows), (0, columns)), mode="wrap")


def fidelity(folder: ModelFolder, request: Request, *, backend: str, threads: int | None) -> Report:
    """Replays the proof of a quantized folder; see `check`. What was not quantized computes as it was exported."""
    precision = dict.fromkeys(request.networks, AUTO)
    return check(folder, Proof.read(folder), backend=backend, precision=precision, threads=threads)


def verdict(report: Report, timings: Mapping[str, Timing], *, faster: bool) -> list[str]:
    """Why a quantized folder is not worth keeping; empty where it is.

    Args:
        report: of its fidelity.
        timings: by network.
        faster: whether it has to be. Weights alone are quantized for memory: they need not.
    """
    picture = "" if report.run is None else f" and {report.run.psnr:.1f} dB"
    slow = [
        f"{name}: int8 is {timing.ratio:.2f} x the time of {timing.backend} in its fastest precision{picture}; "
        f"at most {FAST_ENOUGH} x is worth keeping"
        for name, timing in timings.items()
        if faster and timing.ratio > FAST_ENOUGH
    ]
    return [*report.failures, *slow]
