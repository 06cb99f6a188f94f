"""`safelight validate MODEL`: an exported folder against the proof that it carries, or against its checkpoint."""

import argparse
import json
import sys
from pathlib import Path

from safelight.runtime.backends import COMPILED
from safelight.runtime.engine_arguments import add_engine_arguments, engine_of
from safelight.runtime.fidelity import Proof, Report, RunOptions, check
from safelight.runtime.model_folder import ModelFolder, open_model_folder

SUMMARY = "check an exported model against the PyTorch reference, without PyTorch"

#: options of the run that a proof is about, which only a checkpoint can answer
_OF_THE_RUN = {"prompt": "prompt", "steps": "num_inference_steps", "height": "height", "width": "width", "seed": "seed"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="an exported folder")
    parser.add_argument("--show", action="store_true", help="print the report that the folder carries; run nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there as well")
    add_engine_arguments(parser, backend="onnxruntime")
    parser.add_argument("--target", help="run the graphs of this target alone, such as onnx (default: all that can be)")
    parser.add_argument("--atol", type=float, help="largest absolute error that passes (default: limits of the proof)")
    parser.add_argument(
        "--checkpoint",
        metavar="SOURCE",
        help="what the folder was exported from: make the proof anew and keep it; needs safelight[export]",
    )
    with_checkpoint = parser.add_argument_group("with --checkpoint")
    with_checkpoint.add_argument("--prompt", help="of the run")
    with_checkpoint.add_argument("--steps", type=int, help="of the run (default: 6, of large models 3)")
    with_checkpoint.add_argument("--height", type=int, help="in pixels (default: the model's own, at most 192)")
    with_checkpoint.add_argument("--width", type=int, help="likewise")
    with_checkpoint.add_argument("--seed", type=int, help="of the run (default: 0)")
    with_checkpoint.add_argument("--variant", help="of the checkpoint's weights, such as fp16")
    with_checkpoint.add_argument("--allow-pickle", action="store_true", help="as of safelight export")
    with_checkpoint.add_argument(
        "--lora", metavar="FILE:SCALE", action="append", default=[], help="those that were fused, in their order"
    )


def run(arguments: argparse.Namespace) -> int:
    """Validates; prints the report. A folder that is not within its limits is an error that names the component."""
    folder = open_model_folder(arguments.model)
    if folder.manifest is None:
        raise ValueError(f"{folder.path} has no safelight.json: it was not exported by safelight")
    if arguments.atol is not None and not arguments.atol > 0:
        raise ValueError(f"atol must be above 0, got {arguments.atol}")
    if arguments.show:
        return _shown(Report.of(folder.manifest), arguments.json)
    chosen = {name: getattr(arguments, flag) for flag, name in _OF_THE_RUN.items()}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if chosen and arguments.checkpoint is None:
        raise ValueError("the run is the proof's: another prompt, size, seed or number of steps needs --checkpoint")
    if arguments.checkpoint is not None and arguments.backend in COMPILED:
        raise ValueError(
            f"a proof is made with the folder's graphs: --checkpoint without --backend {arguments.backend}"
        )
    folder.verify()
    if arguments.checkpoint is not None:
        _record(folder, arguments, RunOptions(**chosen))
        folder = open_model_folder(arguments.model)
    report = check(
        folder,
        Proof.read(folder),
        **engine_of(arguments),
        target=arguments.target,
        atol=arguments.atol,
        progress=_progress,
    )
    return _shown(report, arguments.json)


def _record(folder: ModelFolder, arguments: argparse.Namespace, options: RunOptions) -> None:
    """Makes the proof anew and keeps it, with a report, if the folder is within its limits."""
    try:
        import torch  # noqa: F401  # the first of the extra's packages: what follows needs them all

        from .lora import LoraFile, open_loras
        from .proof import prove
        from .source import open_source
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"--checkpoint needs: pip install 'safelight[export]' ({error})") from error
    with open_source(
        arguments.checkpoint,
        workspace=folder.path.parent,
        variant=arguments.variant,
        allow_pickle=arguments.allow_pickle,
        progress=_progress,
    ) as checkpoint:
        loras = open_loras([LoraFile.parse(text) for text in arguments.lora], checkpoint.components)
        prove(
            checkpoint,
            folder.path,
            loras=loras,
            options=options,
            backend=arguments.backend,
            device=arguments.device,
            atol=arguments.atol,
            progress=_progress,
        )


def _shown(report: Report, file: Path | None) -> int:
    """Prints a report, writes it, and raises what is wrong in it."""
    print(report)
    if file is not None:
        file.write_text(json.dumps(report.as_json(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    report.raise_for_failure()
    if report.unchecked:
        raise ValueError(f"no graph of {', '.join(report.unchecked)} can be run here: validate on a machine that can")
    return 0


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
