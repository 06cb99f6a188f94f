"""The most that the machine's matrix products reach: `python -m safelight.benchmarks.gpu.ceiling DEVICE SIDE FILE`.

A network cannot be faster than that on the same arithmetic, whatever runs it. By PyTorch where it is there, by an ONNX
graph of one MatMul otherwise. FILE gets JSON, after each dtype anew.
"""

import contextlib
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

DTYPES = ("fp16", "bf16", "tf32", "fp32")  # in the order of their use
_RUNS = 5  # of which the median counts
_CALLS = 10  # in each, waited for together


def flops(side: int) -> int:
    """Operations of a product of two square matrices."""
    return 2 * side**3


def main(device: str, side: int, file: Path) -> None:
    """Measures each dtype that can be, and says of the others why not."""
    products = torch_product, onnxruntime_product
    found: dict[str, Any] = {"side": side, "by": None, "teraflops": {}, "missing": {}}
    for dtype in DTYPES:
        for product in products:
            try:
                name, run = product(device, side, dtype)
            except (ImportError, RuntimeError, ValueError) as error:
                found["missing"].setdefault(dtype, str(error).splitlines()[0])
                continue
            found["missing"].pop(dtype, None)
            found["by"] = name
            found["teraflops"][dtype] = flops(side) / _seconds(run) / 1e12
            break
        file.write_text(json.dumps(found))


def _seconds(run: Callable[[int], None]) -> float:
    """Of one product."""
    run(2)
    times = []
    for _ in range(_RUNS):
        started = perf_counter()
        run(_CALLS)
        times.append((perf_counter() - started) / _CALLS)
    return statistics.median(times)


def torch_product(device: str, side: int, dtype: str) -> tuple[str, Callable[[int], None]]:
    """By PyTorch: its name, and what multiplies so many times and waits.

    Raises:
        ImportError: PyTorch is not there.
        RuntimeError: it cannot use the device.
        ValueError: the device has no such arithmetic.
    """
    import torch

    if dtype == "tf32" and device == "cpu":
        raise ValueError("tf32 is a GPU's")
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"torch {torch.__version__} cannot use a GPU here")
    kinds = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
    left, right = (torch.randn(side, side, device=device).to(kinds[dtype]) for _ in range(2))
    out = torch.empty_like(left)

    def run(times: int) -> None:
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        for _ in range(times):
            torch.matmul(left, right, out=out)
        if device != "cpu":
            torch.cuda.synchronize()

    return f"torch {torch.__version__}", run


def onnxruntime_product(device: str, side: int, dtype: str) -> tuple[str, Callable[[int], None]]:
    """By ONNX Runtime, the matrices where it computes; see `torch_product`.

    Raises:
        ImportError: ONNX Runtime or onnx is not there.
        RuntimeError: it cannot use the device.
        ValueError: it has no such arithmetic there.
    """
    import onnxruntime as ort
    from onnx import TensorProto, helper

    kinds: dict[str, tuple[int, Any]] = {"fp16": (TensorProto.FLOAT16, np.float16)}
    kinds["fp32"] = kinds["tf32"] = (TensorProto.FLOAT, np.float32)
    if dtype not in kinds:
        raise ValueError(f"NumPy has no {dtype}, which the matrices would be made by")
    if dtype == "tf32" and device == "cpu":
        raise ValueError("tf32 is a GPU's")
    kind, numpy_kind = kinds[dtype]
    values = [helper.make_tensor_value_info(name, kind, (side, side)) for name in ("left", "right", "product")]
    node = helper.make_node("MatMul", ["left", "right"], ["product"])
    model = helper.make_model(
        helper.make_graph([node], "product", values[:2], values[2:]), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 9
    provider = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
    if provider not in ort.get_available_providers():
        raise ValueError(f"onnxruntime {ort.__version__} has no {provider}")
    with contextlib.suppress(Exception):  # wheels of the CUDA libraries, where they are installed
        ort.preload_dlls()
    options = {} if device == "cpu" else {"use_tf32": str(int(dtype == "tf32"))}
    session = ort.InferenceSession(model.SerializeToString(), providers=[(provider, options)])
    if provider not in session.get_providers():
        raise ValueError(f"onnxruntime {ort.__version__} could not start its {provider}")
    binding, where = session.io_binding(), device.partition(":")[0]
    generator = np.random.default_rng(0)
    for name in ("left", "right"):
        matrix = generator.standard_normal((side, side), dtype=np.float32).astype(numpy_kind)
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(matrix, where, 0))
    binding.bind_output("product", where)

    def run(times: int) -> None:
        for _ in range(times):
            session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return f"onnxruntime {ort.__version__}", run


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
