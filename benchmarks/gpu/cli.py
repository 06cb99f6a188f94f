"""The command: what is measured, for how long, and where what is made for it is kept."""

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from time import monotonic

from safelight.runtime.source import cache_folder

from .benchmark import Benchmark
from .cases import CASES
from .contenders import CONTENDERS
from .findings import Options

_DEFAULTS = Options(work=Path())


def main(argv: Sequence[str] | None = None) -> int:
    """Parses and measures; the exit status is 1 when nothing was measured, or something is not as it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m safelight.benchmarks.gpu",
        description="Every GPU backend that is here, beside diffusers and torch.compile, within a time.",
    )
    parser.add_argument("--device", default=_DEFAULTS.device, help="cuda, cuda:N or cpu (default: %(default)s)")
    parser.add_argument(
        "--cases", type=_names("--cases", CASES), default=_DEFAULTS.cases, help=f"of {', '.join(CASES)}"
    )
    parser.add_argument(
        "--contenders",
        type=_names("--contenders", CONTENDERS),
        default=_DEFAULTS.contenders,
        help=f"of {', '.join(CONTENDERS)} (default: all that can)",
    )
    parser.add_argument(
        "--budget", type=float, default=_DEFAULTS.seconds, help="seconds for everything (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=_DEFAULTS.steps, help="of a picture (default: %(default)s)")
    parser.add_argument(
        "--batches",
        type=lambda text: tuple(int(part) for part in text.split(",")),
        default=_DEFAULTS.batches,
        help="pictures at once (default: 1,4)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        help="a folder that is kept: a second command goes on where the first one stopped (default: in the cache)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything that was found, after each row anew")
    parser.add_argument("--no-tests", dest="tests", action="store_false", help="leave out pytest -m gpu")
    arguments = parser.parse_args(argv)
    if not arguments.budget > 0 or arguments.steps < 1 or min(arguments.batches) < 1:
        parser.error(
            f"--budget must be above 0, --steps and --batches at least 1, "
            f"got {arguments.budget}, {arguments.steps} and {arguments.batches}"
        )
    options = {name: value for name, value in vars(arguments).items() if name not in ("budget", "work")}
    work = cache_folder() / "benchmarks" if arguments.work is None else arguments.work.resolve()
    return measure(Options(seconds=arguments.budget, work=work, **options))


def measure(options: Options) -> int:
    """Measures and prints; see `main`."""
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    started = monotonic()

    def say(line: str) -> None:
        print(f"[{monotonic() - started:5.1f} s] {line}", flush=True)

    found = Benchmark(options, say).run()
    print("\n".join(["", *found.lines()]), flush=True)
    return 0 if found.succeeded else 1


def _names(option: str, known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """What reads a list with commas of known names."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(part.strip() for part in text.split(",") if part.strip())
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{option}: unknown {', '.join(unknown)}; known: {', '.join(known)}")
        return names or tuple(known)

    return read
