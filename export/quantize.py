"""`safelight quantize MODEL OUTPUT`: an exported folder in 8 bits, kept only if it is faster and faithful."""

import argparse
import importlib.util
import sys
import time
from pathlib import Path

from safelight.runtime.model_folder import open_model_folder

SUMMARY = "write a model folder with weights and arithmetic in 8 bits, if that is faster and faithful"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="an exported folder, with its proof of fidelity")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="a folder that is new or empty")
    parser.add_argument("--weights", default="int8", help="dtype of the stored weights: int8")
    parser.add_argument(
        "--activations",
        default="int8",
        help="int8, or none: then the arithmetic stays in float, and the weights take less memory (default: int8)",
    )
    parser.add_argument(
        "--networks", default="unet", help="what is quantized, such as unet,vae_decoder (default: %(default)s)"
    )
    parser.add_argument("--backend", help="by which both are measured (default: openvino where it is installed)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: the engine's choice)")
    parser.add_argument("--keep-anyway", action="store_true", help="keep it whatever the measurement finds")


def run(arguments: argparse.Namespace) -> int:
    """Quantizes; prints the report, the times and the sizes. A folder that is not worth keeping is an error."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401

        from .quantization.folder import quantize_model
        from .quantization.request import Request
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"quantize needs: pip install 'safelight[export]' ({error})") from error
    request = Request(
        networks=tuple(name for name in (part.strip() for part in arguments.networks.split(",")) if name),
        weights=arguments.weights,
        activations=None if arguments.activations == "none" else arguments.activations,
    )
    installed = importlib.util.find_spec("openvino") is not None
    started = time.perf_counter()
    outcome = quantize_model(
        open_model_folder(arguments.model),
        arguments.output,
        request,
        backend=arguments.backend or ("openvino" if installed else "onnxruntime"),
        threads=arguments.threads,
        keep_anyway=arguments.keep_anyway,
        progress=lambda line: print(f"[{time.perf_counter() - started:6.1f} s] {line}", file=sys.stderr, flush=True),
    )
    print(outcome)
    return 0
