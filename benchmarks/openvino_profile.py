"""Where the time of a UNet's call on OpenVINO goes, by what its operations are.

`python -m safelight.benchmarks.openvino_profile FOLDER [--precision bf16] [--latent 64 --latent 128] [--json FILE]`

One call for each size, of a guided picture's batch, after one that warms up. OpenVINO measures each operation, and that
lengthens the call little. What is fused with attention counts as attention.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import openvino

from safelight.runtime.backends.openvino.precision import HINTS, keep_angles
from safelight.runtime.model_folder import open_model_folder

from .inputs import unet_inputs
from .machine import machine, versions

_LENGTH = 77  # of the text
_ATTENTION = ("scaled_dot_product_attention", "softmax")
#: OpenVINO's names of operations -> ours
_PRODUCTS = {"Convolution": "convolutions", "FullyConnected": "linear layers", "MatMul": "linear layers"}
_COPIES = ("Reorder", "Transpose", "Concat", "Concatenation", "Split", "VariadicSplit", "Reshape")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A call."""

    latent: int  # height and width of the input
    seconds: float
    share: Mapping[str, float]  # of the operations' time, by kind, the largest first


def profile(folder: Path, precision: str, latent: int) -> Profile:
    """Calls a folder's UNet.

    Args:
        folder: a model folder.
        precision: that it is computed in.
        latent: height and width of the input.
    """
    opened = open_model_folder(folder)
    core = openvino.Core()
    model = core.read_model(opened.graph("unet", "openvino"))
    inputs = unet_inputs(opened.config("unet"), height=latent, width=latent, length=_LENGTH)
    model.reshape({name: list(array.shape) for name, array in inputs.items()})
    if precision != "fp32":
        keep_angles(model)
    hints = {"INFERENCE_PRECISION_HINT": HINTS[precision], "PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": True}
    compiled = core.compile_model(model, "CPU", hints)
    request = compiled.create_infer_request()
    request.infer(inputs)
    started = perf_counter()
    request.infer(inputs)
    seconds = perf_counter() - started
    parts = {node.get_friendly_name(): _parts(node) for node in compiled.get_runtime_model().get_ops()}
    spent: Counter[str] = Counter()
    for each in request.get_profiling_info():
        spent[kind(each.node_type, parts.get(each.node_name, ""))] += each.real_time.total_seconds()
    whole = sum(spent.values())
    return Profile(latent=latent, seconds=seconds, share={name: part / whole for name, part in spent.most_common()})


def kind(operation: str, parts: str) -> str:
    """What an operation of a compiled network is.

    Args:
        operation: OpenVINO's name of it.
        parts: names of the graph's nodes that are fused in it.
    """
    if any(name in parts.lower() for name in _ATTENTION):
        return "attention"
    if operation in _PRODUCTS:
        return _PRODUCTS[operation]
    return "copies" if operation in _COPIES else "norms, activations, sums"


def _parts(node: Any) -> str:
    information = node.get_rt_info()
    return str(information["originalLayersNames"].value) if "originalLayersNames" in information else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Profiles and prints; exit status 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", choices=HINTS, default="fp32", help="(default: %(default)s)")
    parser.add_argument("--latent", type=int, action="append", help="repeatable (default: 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    arguments = parser.parse_args(argv)
    found = [profile(arguments.folder, arguments.precision, latent) for latent in arguments.latent or [64]]
    for each in found:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in each.share.items())
        print(f"{each.latent}x{each.latent}: {each.seconds:.3f} s; {shares}")
    if arguments.json is not None:
        content = {
            "machine": machine(),
            "versions": versions(),
            "precision": arguments.precision,
            "calls": [asdict(each) for each in found],
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
