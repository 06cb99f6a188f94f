"""The export: a checkpoint goes in, a model folder comes out, whole or not at all."""

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from safelight.runtime.image_processor import IMAGE_PROCESSORS
from safelight.runtime.manifest import (
    ComponentRecord,
    FileRecord,
    Manifest,
    component_record,
    file_record,
    read_manifest,
)
from safelight.runtime.model_folder import MODEL_INDEX
from safelight.runtime.tokenizer import CLIPTokenizer

from .checkpoint import Checkpoint
from .component import ComponentTask, export_component
from .deep_cache import check_branch
from .lora import Lora, open_loras
from .networks import COMPONENT_KINDS
from .options import ExportOptions
from .preflight import Shapes, check_disk, check_memory, count, processes_at_once
from .proof import prove
from .staging import Staging, staging
from .worker import run_apart

PACKAGES = ("safelight", "torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy")

Progress = Callable[[str], None]
#: what a receipt notes of a component, and its files
Exported = tuple[dict[str, Any], dict[str, FileRecord]]


def export_model(
    checkpoint: Checkpoint,
    destination: Path,
    options: ExportOptions | None = None,
    *,
    processes: bool = True,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Exports a checkpoint, one component at a time.

    Everything is written into a folder beside the destination, which takes its place when the manifest is complete:
    a folder of the destination's name is always a whole export. After an interruption the same call keeps the
    components that were finished.

    Args:
        checkpoint: what to export; it has passed `open_checkpoint`.
        destination: a folder that does not exist yet or is empty.
        options: the defaults when None.
        processes: whether each component has a process of its own, so that its memory is given back when it is done.
        progress: told one line at each stage.

    Returns:
        The manifest that was written.

    Raises:
        FileExistsError: the destination holds something.
        FidelityError: a component differs from the reference by more than its limit.
        MemoryError: the machine has not enough.
        ValueError: a LoRA is not for this checkpoint, or not of a kind that can be fused; a broken weight file; a
            branch that no UNet of it has.
        OSError: the disk is full, or a folder cannot be written.
        WorkerError: a component's process crashed or was killed.
    """
    options = options or ExportOptions()
    _check_names(options.full_precision, checkpoint)
    loras = tuple(open_loras(options.loras, checkpoint.components))
    tasks = [
        ComponentTask(component, checkpoint.networks[component.name], dict(checkpoint.index), loras, options)
        for component in checkpoint.components
    ]
    shapes = {task.component.name: _shapes(task) for task in tasks}
    if options.cache_branch_id is not None:
        networks = [(task.component.class_name, shapes[task.component.name].keys()) for task in tasks]
        check_branch(options.cache_branch_id, networks)
    check_memory(shapes, validate=options.validate)
    with staging(destination, _key(checkpoint, loras, options), progress) as stage:
        done = {name: found for name in shapes if (found := stage.finished(name))}
        stage.clear({name: files for name, (_, files) in done.items()})
        check_disk([shapes[name] for name in shapes.keys() - done.keys()], options.storage, destination)
        for name in done:
            progress(f"{name}: was finished before")
        missing = [task for task in tasks if task.component.name not in done]
        done |= _export_all(missing, stage, processes=processes, progress=progress)
        records: dict[str, ComponentRecord] = {}
        files: dict[str, FileRecord] = {}
        for name in shapes:
            note, written = done[name]
            records |= {network: component_record(network, record) for network, record in note.items()}
            files |= written
        _copy_the_rest(checkpoint, stage.folder)
        manifest = Manifest(
            source={**checkpoint.source, "loras": [lora.record() for lora in loras]},
            versions=_versions(),
            dtype=options.dtype,
            weights_dtype=options.weights_dtype or options.dtype,
            left_out=list(checkpoint.networks_left_out),
            components=records,
            files=dict(sorted({**files, **_records(stage.folder, _other_files(stage.folder, files))}.items())),
        )
        manifest.write(stage.folder)
        if options.validate:
            work = (checkpoint, stage.folder, loras, options)
            if processes:
                _, peak = run_apart(validate, *work, name="validation", progress=progress)
                progress(f"validation: finished, with {peak / 1e9:.2f} GB of memory at most")
            else:
                validate(*work, progress=progress)
            manifest = read_manifest(stage.folder) or manifest
    return manifest


def validate(
    checkpoint: Checkpoint, folder: Path, loras: Sequence[Lora], options: ExportOptions, *, progress: Progress
) -> None:
    """Compares a folder with the reference, and writes what it found into it; see `prove`."""
    prove(
        checkpoint,
        folder,
        loras=loras,
        device=options.device,
        atol=options.atol,
        unchanged=True,
        progress=progress,
    )


def _export_all(
    tasks: Sequence[ComponentTask], stage: Staging, *, processes: bool, progress: Progress
) -> dict[str, Exported]:
    """Writes components, several at a time where each has a process of its own."""
    work = partial(_exported, stage=stage, processes=processes, progress=progress)
    names = [task.component.name for task in tasks]
    if not processes:
        return dict(zip(names, map(work, tasks), strict=True))
    executor = ThreadPoolExecutor(processes_at_once())
    try:
        # the largest is waited for in the end: it begins first
        started = {task.component.name: executor.submit(work, task) for task in sorted(tasks, key=_size, reverse=True)}
        for finished in as_completed(started.values()):
            finished.result()
    finally:
        executor.shutdown(cancel_futures=True)
    return {name: started[name].result() for name in names}


def _exported(task: ComponentTask, stage: Staging, *, processes: bool, progress: Progress) -> Exported:
    """Writes a component into the staging folder, and the receipt that it is whole."""
    name = task.component.name
    try:
        if processes:
            records, peak = run_apart(export_component, task, stage.folder, name=name, progress=progress)
            progress(f"{name}: finished, with {peak / 1e9:.2f} GB of memory at most")
        else:
            records = export_component(task, stage.folder, progress=progress)
    except BaseException:
        stage.discard(task.networks)
        raise
    note = {network: asdict(record) for network, record in records.items()}
    written = _records(stage.folder, (p for network in task.networks for p in (stage.folder / network).iterdir()))
    stage.finish(name, note, written)
    return note, written


def _check_names(full_precision: Iterable[str], checkpoint: Checkpoint) -> None:
    """Refuses to compute in full precision what is not exported."""
    known = [network for networks in checkpoint.networks.values() for network in networks]
    if unknown := [name for name in full_precision if name not in known]:
        raise ValueError(f"--full-precision: there is no network {', '.join(unknown)}; there are {', '.join(known)}")


def _copy_the_rest(checkpoint: Checkpoint, folder: Path) -> None:
    """Index, tokenizers and scheduler: the parts of a checkpoint that are no networks."""
    index = dict(checkpoint.index)
    for name in checkpoint.left_out:
        index[name] = [None, None]
    for name, value in index.items():
        match value:
            case [library, str(class_name)] if class_name in IMAGE_PROCESSORS:
                index[name] = [library, IMAGE_PROCESSORS[class_name].__name__]  # the name that every release has
    (folder / MODEL_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in checkpoint.tokenizers:
        CLIPTokenizer.from_pretrained(checkpoint.path / name).save_pretrained(folder / name)
    for name, file in checkpoint.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)


def _shapes(task: ComponentTask) -> Shapes:
    component = task.component
    shapes: Shapes = COMPONENT_KINDS[component.class_name].model.shapes(component.path)
    return shapes


def _size(task: ComponentTask) -> int:
    return count(_shapes(task))


def _key(checkpoint: Checkpoint, loras: Iterable[Lora], options: ExportOptions) -> object:
    """What the components of an export depend on."""
    chosen = asdict(options)
    for name in ("validate", "atol", "device", "loras"):
        del chosen[name]
    return [
        checkpoint.source,
        dict(checkpoint.index),
        checkpoint.networks,
        [lora.record() for lora in loras],
        chosen,
        _versions(),
    ]


def _other_files(folder: Path, known: Iterable[str]) -> list[Path]:
    paths = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return [path for path in paths if path.relative_to(folder).parts[0][0] != "." and _name(folder, path) not in known]


def _records(folder: Path, paths: Iterable[Path]) -> dict[str, FileRecord]:
    return {_name(folder, path): file_record(path) for path in sorted(paths)}


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}
