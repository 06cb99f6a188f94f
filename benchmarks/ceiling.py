"""The most that this machine's processor does: `python -m safelight.benchmarks.ceiling FILE [--seconds S]`.

Products of large matrices in each precision, by every library here that has them, and copies of a large array. No
network computes faster than the best of these products; the share that it reaches says how much is left to gain.
FILE gets JSON.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from safelight.export.available_memory import available_memory
from safelight.runtime.backends import Array

from .machine import usable_processors, version

PRECISIONS = ("fp32", "bf16", "int8")
#: of square matrices: the smaller one stays in the caches, the larger one keeps the units busy for longer
SIDES = (1024, 2048, 4096)
_RUNS = 5  # of each product, of which the fastest counts: what disturbs it is no part of a ceiling
_LAST_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
_COPY_BYTES = (256 * 2**20, 1024 * 2**20)  # of an array, least and most

#: does one product
Product = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """The best product of one precision."""

    flops_per_second: float
    by: str
    side: int


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """Copies of an array, by all processors at once, each a part of it."""

    bytes_per_second: float  # read and written, the best of several
    array_bytes: int


def flops(side: int) -> int:
    """Operations of a product of two square matrices."""
    return 2 * side**3


def ceilings(sides: Sequence[int] = SIDES, seconds: float = 60.0) -> tuple[dict[str, Ceiling], dict[str, str]]:
    """The best of all products by precision, and by library and precision why one could not be had.

    Args:
        sides: of the matrices.
        seconds: after which no other product begins.
    """
    best: dict[str, Ceiling] = {}
    missing: dict[str, str] = {}
    ends = perf_counter() + seconds
    for side in sides:
        for precision in PRECISIONS:
            for library, prepare in _LIBRARIES.items():
                if perf_counter() > ends or f"{library} {precision}" in missing:
                    continue
                try:
                    rate = flops(side) / _seconds(prepare(side, precision))
                except (ImportError, RuntimeError, TypeError, ValueError) as error:
                    missing[f"{library} {precision}"] = str(error).splitlines()[0]
                    continue
                if precision not in best or rate > best[precision].flops_per_second:
                    name = f"{library} {version(library)}"
                    best[precision] = Ceiling(flops_per_second=rate, by=name, side=side)
    return best, missing


def _seconds(product: Product) -> float:
    product()
    times = []
    for _ in range(_RUNS):
        started = perf_counter()
        product()
        times.append(perf_counter() - started)
    return min(times)


def _matrices(side: int) -> Iterator[Array]:
    """Two of them, float32."""
    generator = np.random.default_rng(0)
    return (generator.standard_normal((side, side), dtype=np.float32) for _ in range(2))


def numpy_product(side: int, precision: str) -> Product:
    """By NumPy and its BLAS.

    Raises:
        ValueError: NumPy has no such arithmetic.
    """
    if precision != "fp32":
        raise ValueError(f"NumPy has no products in {precision}")
    left, right = _matrices(side)
    out = np.empty_like(left)
    return lambda: np.matmul(left, right, out=out)


def torch_product(side: int, precision: str) -> Product:
    """By PyTorch.

    Raises:
        ImportError: it is not there.
        RuntimeError: it has no such product here.
    """
    import torch

    left, right = (torch.from_numpy(matrix) for matrix in _matrices(side))
    if precision == "int8":
        small = [(10 * matrix).clamp(-127, 127).to(torch.int8) for matrix in (left, right)]
        return lambda: torch._int_mm(*small)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    left, right = left.to(kind), right.to(kind)
    out = torch.empty_like(left)

    def product() -> None:
        with torch.inference_mode():
            torch.mm(left, right, out=out)

    return product


def openvino_product(side: int, precision: str) -> Product:
    """By OpenVINO, the right matrix a constant as a network's weights are.

    Raises:
        ImportError: it is not there.
        RuntimeError: it cannot compile the product.
        ValueError: the processor has no such arithmetic.
    """
    import openvino
    from openvino import opset13 as operators

    core = openvino.Core()
    if precision != "fp32" and precision.upper() not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError(f"OpenVINO computes {precision} on this processor by other means")
    left, right = _matrices(side)
    given: Any = operators.parameter((side, side), np.float32, name="left")
    weights: Any = operators.constant(right)
    if precision == "int8":  # in OpenVINO's words: 256 levels of a range, of activations and of weights
        bounds = [np.float32(bound) for bound in (-5.0, 127 / 128 * 5.0)]
        given_levels = operators.fake_quantize(given, *bounds, *bounds, 256)
        weights = operators.fake_quantize(weights, *bounds, *bounds, 256)
        product = operators.matmul(given_levels, weights, False, False)
    else:
        product = operators.matmul(given, weights, False, False)
    model = openvino.Model([product], [given], "product")
    hint = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}[precision]
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(left))
    infer: Product = request.infer
    return infer


_LIBRARIES: dict[str, Callable[[int, str], Product]] = {
    "numpy": numpy_product,
    "torch": torch_product,
    "openvino": openvino_product,
}


def bandwidth(array_bytes: int | None = None, runs: int = _RUNS) -> Bandwidth:
    """How fast memory is read and written, as STREAM's copy measures it (McCalpin 1995).

    Args:
        array_bytes: of each of two arrays; four times the last cache when None, within bounds and the memory.
        runs: of which the best counts.
    """
    if array_bytes is None:
        wanted = min(max(4 * _last_cache(), _COPY_BYTES[0]), _COPY_BYTES[1])
        array_bytes = min(wanted, (available_memory() or wanted * 8) // 8)
    source = np.ones(array_bytes // 8)
    target = np.zeros_like(source)
    parts = usable_processors()
    pieces = list(zip(np.array_split(target, parts), np.array_split(source, parts), strict=True))
    best = float("inf")
    with ThreadPoolExecutor(parts) as pool:
        for _ in range(runs):
            started = perf_counter()
            list(pool.map(lambda piece: np.copyto(*piece), pieces))
            best = min(best, perf_counter() - started)
    return Bandwidth(bytes_per_second=2 * source.nbytes / best, array_bytes=source.nbytes)


def _last_cache() -> int:
    """Bytes of the last level of cache; 0 where the system does not say."""
    if not _LAST_CACHE.is_file():
        return 0
    text = _LAST_CACHE.read_text().strip()
    return int(text.rstrip("KM")) * {"K": 2**10, "M": 2**20}.get(text[-1], 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES))
    arguments = parser.parse_args(argv)
    best, missing = ceilings(arguments.sides, arguments.seconds)
    content = {
        "products": {precision: asdict(ceiling) for precision, ceiling in best.items()},
        "missing": missing,
        "bandwidth": asdict(bandwidth()),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    arguments.file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
