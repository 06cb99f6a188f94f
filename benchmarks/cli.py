"""`safelight bench`."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from safelight.runtime.source import local_model

from .cases import MODEL_NAMES, Case, Model, cases, model_of, named_model
from .contender import Contender
from .contenders import CONTENDERS, QUICK
from .measure import Plan
from .process_tree import failure
from .process_tree import run as run_process
from .report import recorded_rows, report, tables
from .scaling import AXES, Grid, curve
from .suite import Measured, run_case
from .workspace import Workspace

SUMMARY = "measure safelight, the PyTorch reference and other tools side by side"

#: what `--quick` has in place of the defaults
_DEFAULTS: dict[str, tuple[Any, Any]] = {
    "rounds": (3, 1),
    "runs": (3, 3),
    "cold_runs": (3, 1),
    "timeout": (3600.0, 60.0),
    "budget": (None, 100.0),
}
_QUICK_CEILING = ("--seconds", "10", "--sides", "1024")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    what = parser.add_argument_group("what is measured")
    what.add_argument("model", nargs="?", help="an exported folder (default: the bundled model)")
    what.add_argument(
        "--case",
        action="append",
        choices=MODEL_NAMES,
        help="in place of MODEL: the bundled model, or random weights of a published shape; repeatable",
    )
    what.add_argument("--checkpoint", type=Path, help="what MODEL was exported from, for reference and other tools")
    what.add_argument(
        "--size", action="append", type=_size, metavar="WIDTHxHEIGHT", help="repeatable (default: the model's own)"
    )
    what.add_argument("--batch", action="append", type=int, help="pictures at once; repeatable (default: 1)")
    what.add_argument("--prompt", help="(default: one for each model)")
    what.add_argument("--num-inference-steps", type=int, help="(default: 25, and 20 of published shapes)")
    what.add_argument("--guidance-scale", type=float, help="(default: 5, and 7.5 of published shapes)")
    what.add_argument("--seed", type=int, default=0, help="of the starting noise (default: %(default)s)")
    what.add_argument("--contender", action="append", choices=list(CONTENDERS), help="only these (default: all)")
    how = parser.add_argument_group("how it is measured")
    how.add_argument("--rounds", type=int, help=_default("processes of each, in turns", "rounds"))
    how.add_argument("--runs", type=int, help=_default("warm pictures of each process", "runs"))
    how.add_argument("--cold-runs", type=int, help=_default("cold starts of each", "cold_runs"))
    how.add_argument("--timeout", type=float, help=_default("seconds of a process", "timeout"))
    how.add_argument("--budget", type=float, help=_default("seconds of everything; what is left out is said", "budget"))
    how.add_argument("--quick", action="store_true", help=f"in 2 minutes: {', '.join(QUICK)}, measured once")
    how.add_argument("--threads", type=int, help="of the CPU (default: each tool's own choice)")
    how.add_argument(
        "--workspace", type=Path, default=Path(".cache/bench"), help="for what is made once (default: %(default)s)"
    )
    how.add_argument("--no-ceiling", action="store_true", help="do not measure what the machine reaches")
    more = parser.add_argument_group("time over work")
    more.add_argument(
        "--scaling", action="append", choices=list(CONTENDERS), help="whose curves are measured, on the first case"
    )
    more.add_argument(
        "--scale-batches", type=_numbers, default=Grid.batches, metavar="N,...", help="(default: 1,2,4,8)"
    )
    more.add_argument(
        "--scale-sides", type=_numbers, default=(), metavar="PIXELS,...", help="(default: the model's times 1, 2, 4)"
    )
    more.add_argument("--scale-steps", type=_numbers, default=Grid.steps, metavar="N,...", help="(default: 1,5,20,50)")
    out = parser.add_argument_group("what is said")
    out.add_argument("--against", default="diffusers", help="whom ratios are to (default: %(default)s)")
    out.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    out.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots; needs matplotlib")
    out.add_argument("--from-json", type=Path, metavar="FILE", help="measure nothing: show what was written before")
    parser.add_argument(
        "--preset",
        choices=["gpu"],
        help="gpu: the GPU's backends on models of published shapes, in under 8 minutes; of the other options --json "
        "alone counts, `python -m safelight.benchmarks.gpu --help` lists its own",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measures and prints; the exit status is 1 when a contender failed, or its picture is not the reference's."""
    if arguments.preset == "gpu":
        from .gpu import cli as gpu

        return gpu.main([] if arguments.json is None else ["--json", str(arguments.json)])
    for file in (arguments.json, arguments.html):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    if arguments.html is not None:
        from . import page  # before hours of measurements: matplotlib may be missing
    if arguments.from_json is not None:
        content = json.loads(arguments.from_json.read_text(encoding="utf-8"))
        if "cases" not in content:
            raise ValueError(f"{arguments.from_json} is no report of safelight bench: it has no cases")
    else:
        content = json.loads(json.dumps(_measured(arguments)))
    _write(arguments.json, content)
    print(tables(content))
    if arguments.html is not None:
        arguments.html.write_text(page.page(content), encoding="utf-8")
    measured = () if arguments.from_json is not None else content["cases"]
    return 1 if any(row.failure or row.differs for case in measured for row in recorded_rows(case)) else 0


def _measured(arguments: argparse.Namespace) -> dict[str, Any]:
    _settle(arguments)
    started = perf_counter()
    plan = Plan(
        rounds=arguments.rounds,
        pictures=arguments.runs,
        cold_runs=arguments.cold_runs,
        timeout=arguments.timeout,
        deadline=None if arguments.budget is None else started + arguments.budget,
        threads=arguments.threads,
    )
    todo = list(_cases(arguments))
    workspace = Workspace(folder=arguments.workspace, progress=_say)
    contenders = _contenders(arguments)
    measured: list[Measured] = []
    for case in todo:
        measured.append(run_case(case, contenders, workspace, plan, _say))
        _write(arguments.json, _report(arguments, plan, measured))  # what was measured is not lost with what is not yet
    curves = [
        curve(axis, todo[0], CONTENDERS[name], workspace, plan, _grid(arguments), _say).to_dict()
        for name in arguments.scaling or ()
        for axis in AXES
    ]
    ceiling = None
    if not arguments.no_ceiling and any(row.warm_seconds for each in measured for row in each.rows):
        ceiling = _ceiling(arguments)
    return _report(arguments, plan, measured, ceiling, curves)


def _report(
    arguments: argparse.Namespace,
    plan: Plan,
    measured: Sequence[Measured],
    ceiling: dict[str, Any] | None = None,
    curves: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    known = {name: best["flops_per_second"] for name, best in ceiling["products"].items()} if ceiling else {}
    for case in measured:
        case.add_rates(known)
    found = [case.to_dict() for case in measured]
    return report(found, plan, against=arguments.against, ceiling=ceiling, scaling=curves)


def _write(file: Path | None, content: dict[str, Any]) -> None:
    if file is not None:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _settle(arguments: argparse.Namespace) -> None:
    """Gives what nobody named its default, and refuses what cannot be."""
    for name, defaults in _DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, defaults[arguments.quick])
    for name, least in (("rounds", 1), ("runs", 1), ("cold_runs", 0), ("threads", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    for name in ("timeout", "budget"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name} must be above 0 seconds, got {value}")
    if arguments.against not in CONTENDERS:
        raise ValueError(f"--against: unknown {arguments.against!r}; known: {', '.join(CONTENDERS)}")
    if arguments.model is not None and arguments.case:
        raise ValueError(f"MODEL or --case, not both: got {arguments.model} and {', '.join(arguments.case)}")
    if arguments.checkpoint is not None and arguments.model is None:
        raise ValueError("--checkpoint is what MODEL was exported from, and there is no MODEL")
    if arguments.checkpoint is not None and not arguments.checkpoint.is_dir():
        raise FileNotFoundError(f"{arguments.checkpoint} does not exist")


def _models(arguments: argparse.Namespace) -> Iterator[Model]:
    if arguments.model is not None:
        yield model_of(local_model(arguments.model), arguments.checkpoint)
    else:
        yield from map(named_model, arguments.case or ["emoji"])


def _cases(arguments: argparse.Namespace) -> Iterator[Case]:
    return cases(
        _models(arguments),
        sizes=arguments.size or (),
        batches=arguments.batch or (1,),
        steps=arguments.num_inference_steps,
        guidance_scale=arguments.guidance_scale,
        prompt=arguments.prompt,
        seed=arguments.seed,
    )


def _contenders(arguments: argparse.Namespace) -> Sequence[Contender]:
    names = arguments.contender or (QUICK if arguments.quick else CONTENDERS)
    return [CONTENDERS[name] for name in names]


def _grid(arguments: argparse.Namespace) -> Grid:
    return Grid(batches=arguments.scale_batches, sides=arguments.scale_sides, steps=arguments.scale_steps)


def _ceiling(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """What the machine reaches, measured in a process of its own; None where that failed."""
    _say("what the machine reaches")
    with tempfile.TemporaryDirectory(prefix="safelight-bench-") as folder:
        file, log = Path(folder, "ceiling.json"), Path(folder, "log.txt")
        command = [sys.executable, "-m", "safelight.benchmarks.ceiling", str(file)]
        threads = {} if arguments.threads is None else {"OMP_NUM_THREADS": str(arguments.threads)}
        usage = run_process(
            [*command, *(_QUICK_CEILING if arguments.quick else ())],
            log=log,
            time_limit=arguments.timeout,
            environment={**os.environ, **threads},
        )
        if reason := failure(usage, log):
            _say(f"what the machine reaches is not known: {reason}")
            return None
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found


def _default(text: str, name: str) -> str:
    usual, quick = _DEFAULTS[name]
    usual = "none" if usual is None else f"{usual:g}"
    return f"{text} (default: {usual}" + (")" if usual == f"{quick:g}" else f"; --quick: {quick:g})")


def _size(text: str) -> tuple[int, int]:
    """Width and height: of "512x768", or "512" for a square."""
    parts = text.split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT or the side of a square, in pixels, got {text!r}")
    return int(parts[0]), int(parts[-1])


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}")
    return tuple(map(int, parts))


def _say(line: str) -> None:
    print(f"... {line}", flush=True)
