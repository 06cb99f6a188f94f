"""`safelight build MODEL --target tensorrt-rtx`."""

import argparse
import time
from pathlib import Path

SUMMARY = "compile the networks of a model into TensorRT engines"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="what `safelight export` has written, or a checkpoint")
    parser.add_argument(
        "--target",
        required=True,
        metavar="NAME",
        help="tensorrt: for the GPU of this machine; tensorrt-rtx: for GPUs that need not be here",
    )
    parser.add_argument(
        "--shape",
        metavar="WIDTHxHEIGHT",
        action="append",
        default=[],
        help="of the pictures, in pixels; may be repeated (default: the model's own)",
    )
    parser.add_argument("--batch", default="1", metavar="N or N-M", help="images at once (default: %(default)s)")
    parser.add_argument(
        "--prompt-chunks",
        type=int,
        default=1,
        metavar="N",
        help="how many times the text encoder's length a prompt may be (default: %(default)s)",
    )
    parser.add_argument("--dtype", default="fp16", help="of the arithmetic: fp16 or bf16 (default: %(default)s)")
    parser.add_argument("--vae-dtype", default="fp32", help="of the autoencoder's: fp32 or bf16 (default: %(default)s)")
    parser.add_argument(
        "--components",
        metavar="NAMES",
        type=_names,
        default=(),
        help="networks to build, such as unet,vae_decoder (default: all)",
    )
    parser.add_argument(
        "--gpu",
        metavar="NAMES",
        type=_names,
        default=(),
        help="of tensorrt-rtx: compute capabilities, such as sm89,sm120 (default: all that it knows from sm80 on)",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, help="the store to put them into (default: the cache's)")
    parser.add_argument(
        "--strip-weights",
        action="store_true",
        help="leave the weights out of the plans: they are taken from the model when an engine is opened",
    )
    parser.add_argument("--memory-limit", metavar="GB", type=float, help="of the process that builds an engine")
    parser.add_argument("--optimization-level", metavar="N", type=int, help="0 to 5 (default: TensorRT's own)")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _names(text: str) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


def run(arguments: argparse.Namespace) -> int:
    """Builds; prints a line a stage."""
    from safelight.runtime.engines.store import EngineStore, default_store
    from safelight.runtime.model_folder import open_model_folder
    from safelight.runtime.source import local_model

    from .build import BuildOptions, build_engines
    from .pictures import Pictures, parse_batch, parse_shape

    started = time.perf_counter()

    def progress(line: str) -> None:
        if not arguments.quiet:
            print(f"[{time.perf_counter() - started:6.1f} s] {line}", flush=True)

    limit = arguments.memory_limit
    options = BuildOptions(
        flavour=arguments.target,
        pictures=Pictures(
            shapes=tuple(parse_shape(text) for text in arguments.shape),
            images=parse_batch(arguments.batch),
            prompt_chunks=arguments.prompt_chunks,
        ),
        dtype=arguments.dtype,
        vae_dtype=arguments.vae_dtype,
        components=arguments.components,
        gpus=arguments.gpu,
        strip_weights=arguments.strip_weights,
        memory_limit=None if limit is None else int(limit * 1e9),
        optimization_level=arguments.optimization_level,
    )
    store = default_store() if arguments.output is None else EngineStore(arguments.output)
    folder = open_model_folder(local_model(arguments.model))
    records = build_engines(folder, options, store, progress=progress)
    size = sum(record.plan.size for record in records)
    progress(f"{store.folder}: {len(records)} engine{'s' * (len(records) > 1)}, {size / 1e6:.1f} MB")
    return 0
