"""`safelight bench MODEL`."""

import argparse
import json
from pathlib import Path

from safelight.runtime.source import bundled_model, local_model

from .case import Case
from .contenders import CONTENDERS
from .measure import measure
from .report import report, table

SUMMARY = "measure the backends that are here against the PyTorch reference and diffusers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("model", nargs="?", help="an exported folder (default: the bundled model)")
    parser.add_argument("--checkpoint", type=Path, help="what the model was exported from: for reference and diffusers")
    parser.add_argument("--prompt", default="cat face on a blue background", help="(default: %(default)s)")
    parser.add_argument("--height", type=int, help="in pixels (default: the model's own)")
    parser.add_argument("--width", type=int, help="in pixels (default: the model's own)")
    parser.add_argument("--num-inference-steps", type=int, default=25, help="(default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=5.0, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--runs", type=int, default=7, help="warm pictures of each (default: %(default)s)")
    parser.add_argument("--cold-runs", type=int, default=3, help="cold starts of each (default: %(default)s)")
    parser.add_argument("--contender", action="append", choices=list(CONTENDERS), help="only these (default: all)")
    parser.add_argument("--against", default="diffusers", choices=list(CONTENDERS), help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument(
        "--preset",
        choices=["gpu"],
        help="gpu: the GPU's backends on models of published shapes, in under 8 minutes; of the other options --json "
        "alone counts, `python -m safelight.benchmarks.gpu --help` lists its own",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints; the exit status is 1 when a contender's picture is not the reference's."""
    if arguments.preset == "gpu":
        from .gpu import cli as gpu

        return gpu.main([] if arguments.json is None else ["--json", str(arguments.json)])
    if arguments.runs < 1 or arguments.cold_runs < 0:
        raise ValueError(f"--runs must be at least 1 and --cold-runs 0, got {arguments.runs} and {arguments.cold_runs}")
    model = bundled_model() if arguments.model is None else local_model(arguments.model)
    checkpoint = arguments.checkpoint
    if checkpoint is None and arguments.model is None:
        checkpoint = bundled_checkpoint()
    if checkpoint is not None and not checkpoint.is_dir():
        raise FileNotFoundError(f"{checkpoint} does not exist")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
    case = Case(
        model=str(model),
        checkpoint=None if checkpoint is None else str(checkpoint),
        prompt=arguments.prompt,
        height=arguments.height,
        width=arguments.width,
        num_inference_steps=arguments.num_inference_steps,
        guidance_scale=arguments.guidance_scale,
        seed=arguments.seed,
    )
    rows = measure(
        case,
        runs=arguments.runs,
        cold_runs=arguments.cold_runs,
        names=arguments.contender or (),
        progress=lambda line: print(f"... {line}", flush=True),
    )
    print(table(rows, arguments.against))
    if arguments.json is not None:
        content = report(case, rows, arguments.runs, arguments.cold_runs)
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0 if all(row.comparable for row in rows if row.missing is None) else 1


def bundled_checkpoint() -> Path | None:
    """The checkpoint of the bundled model, which a clone of the repository has and a wheel does not."""
    path = Path(__file__).resolve().parent.parent / "reference" / "emoji" / "checkpoint"
    return path if path.is_dir() else None
