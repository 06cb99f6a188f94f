"""The export: a checkpoint goes in, a model folder comes out, whole or not at all."""

import gc
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from safelight.runtime.manifest import ComponentRecord, FileRecord, Manifest, TensorRecord, file_record, read_manifest
from safelight.runtime.model_folder import CANONICAL, GRAPH, MODEL_INDEX
from safelight.runtime.tokenizer import CLIPTokenizer

from . import lowering
from .checkpoint import Checkpoint, Component
from .lora import Lora, LoraFile, open_loras
from .networks import NetworkDescription, build, describe
from .proof import load_reference, prove
from .trace import parameters, trace
from .weights import WEIGHTS_NAME, WeightFile, bind, store_transposed, write_weights

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
PACKAGES = ("safelight", "torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy")

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to export; the defaults are the command's."""

    opset: int = 23  # of model.onnx, the graph that any engine can read
    dtype: str = "fp32"  # of the arithmetic, and of a network's floating-point inputs and outputs
    weights_dtype: str | None = None  # of the storage; that of the arithmetic when None
    device: str = "cpu"  # where the written graphs are run against the reference
    atol: float | None = None  # the largest absolute error that passes; relative tolerances when None
    validate: bool = True
    loras: tuple[LoraFile, ...] = ()  # fused into the weights, in this order

    def __post_init__(self) -> None:
        """Checks what can be checked without a checkpoint.

        Raises:
            ValueError: an option that no export can have.
        """
        for name in {self.dtype, self.weights_dtype or self.dtype}:
            if name not in DTYPES:
                raise ValueError(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}")
        if self.opset not in lowering.OPSETS:
            raise ValueError(f"opset must be one of {', '.join(map(str, lowering.OPSETS))}, got {self.opset}")
        if self.atol is not None and not self.atol > 0:
            raise ValueError(f"atol must be above 0, got {self.atol}")


def export_model(
    checkpoint: Checkpoint,
    destination: Path,
    options: ExportOptions | None = None,
    *,
    progress: Progress = lambda _: None,
) -> Manifest:
    """Exports a checkpoint, one component at a time.

    Everything is written into a folder beside the destination, which takes its place when the manifest is complete:
    a folder of the destination's name is always a whole export.

    Args:
        checkpoint: what to export; it has passed `open_checkpoint`.
        destination: a folder that does not exist yet or is empty.
        options: the defaults when None.
        progress: told one line at each stage.

    Returns:
        The manifest that was written.

    Raises:
        FileExistsError: the destination holds something.
        FidelityError: a component differs from the reference by more than its limit.
        ValueError: a LoRA is not for this checkpoint, or not of a kind that can be fused.
        OSError: the disk is full, or a folder cannot be written.
    """
    options = options or ExportOptions()
    loras = open_loras(options.loras, checkpoint.components)
    with _staging(destination) as folder:
        records: dict[str, ComponentRecord] = {}
        for component in checkpoint.components:
            records |= _export_component(component, loras, checkpoint.index, folder, options, progress)
        _copy_the_rest(checkpoint, folder)
        manifest = Manifest(
            source={**checkpoint.source, "loras": [lora.record() for lora in loras]},
            versions=_versions(),
            dtype=options.dtype,
            weights_dtype=options.weights_dtype or options.dtype,
            components=records,
            files=_files(folder),
        )
        manifest.write(folder)
        if options.validate:
            prove(checkpoint, folder, loras=loras, device=options.device, atol=options.atol, progress=progress)
            manifest = read_manifest(folder) or manifest
    return manifest


def _export_component(
    component: Component,
    loras: Sequence[Lora],
    pipeline: Mapping[str, Any],
    folder: Path,
    options: ExportOptions,
    progress: Progress,
) -> dict[str, ComponentRecord]:
    """Writes every network of a component, with LoRAs fused into it, and checks it."""
    progress(f"{component.name}: reading weights")
    reference: Any = load_reference(component, loras)
    config = reference.config.to_dict()
    dtype = DTYPES[options.dtype]
    records = {}
    for description in describe(component.class_name, component.name, config, pipeline):
        progress(f"{description.name}: tracing")
        target = folder / description.name
        target.mkdir()
        graph = trace(description, build(component.class_name, config, dtype))
        progress(f"{description.name}: writing")
        weights_dtype = DTYPES[options.weights_dtype or options.dtype]
        weights = _write_weights(graph, description, reference, target, weights_dtype)
        graphs = _write_graphs(graph, description, weights, options)
        shutil.copyfile(component.path / "config.json", target / "config.json")
        records[description.name] = ComponentRecord(
            class_name=component.class_name,
            graphs={name: f"{description.name}/{file}" for name, file in graphs.items()},
            weights=f"{description.name}/{WEIGHTS_NAME}",
            transposed=sorted(weights.transposed),
            inputs=_tensor_records(graph.graph.inputs[: len(description.inputs)]),
            outputs=_tensor_records(graph.graph.outputs),
        )
    del reference
    gc.collect()
    return records


def _write_weights(
    graph: ir.Model, description: NetworkDescription, reference: nn.Module, folder: Path, dtype: torch.dtype
) -> WeightFile:
    transposed = store_transposed(graph, parameters(graph, description))
    names = [str(value.name) for value in parameters(graph, description)]
    state = reference.state_dict()
    return write_weights(folder / WEIGHTS_NAME, names, state, transposed=transposed, dtype=dtype)


def _write_graphs(
    canonical: ir.Model, description: NetworkDescription, weights: WeightFile, options: ExportOptions
) -> dict[str, str]:
    """Writes the canonical graph and one for each engine that has a lowering; returns target -> file name."""
    files = {}
    for target in (CANONICAL, *lowering.TARGETS):
        graph = canonical.clone()
        if target == CANONICAL:
            lowering.to_opset(graph, options.opset)
        else:
            counts = lowering.TARGETS[target](graph)
            logger.info("%s for %s: replaced %s", description.name, target, counts)
        bind(graph, parameters(graph, description), weights)
        lowering.tidy(graph)
        files[target] = GRAPH if target == CANONICAL else f"model.{target}.onnx"
        ir.save(graph, weights.path.parent / files[target])
    return files


def _copy_the_rest(checkpoint: Checkpoint, folder: Path) -> None:
    """Index, tokenizers and scheduler: the parts of a checkpoint that are no networks."""
    index = dict(checkpoint.index)
    for name in checkpoint.left_out:
        index[name] = [None, None]
    (folder / MODEL_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in checkpoint.tokenizers:
        CLIPTokenizer.from_pretrained(checkpoint.path / name).save_pretrained(folder / name)
    for name, file in checkpoint.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)


@contextmanager
def _staging(destination: Path) -> Iterator[Path]:
    """A new folder beside the destination that takes its place on success, and is gone on failure."""
    check_destination(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".partial", dir=destination.parent))
    try:
        yield staging
        staging.chmod(0o755)
        staging.rename(destination)  # replaces an empty folder, and no other
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_destination(destination: Path) -> None:
    """Refuses a destination that holds something.

    Raises:
        FileExistsError: names the destination.
    """
    if destination.is_dir() and not any(destination.iterdir()):
        return
    if destination.exists():
        kind = "has other content" if destination.is_dir() else "is a file"
        raise FileExistsError(f"{destination} {kind}; name a folder that is new or empty")


def _files(folder: Path) -> dict[str, FileRecord]:
    paths = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return {str(path.relative_to(folder)): file_record(path) for path in sorted(paths)}


def _tensor_records(values: Any) -> list[TensorRecord]:
    return [
        TensorRecord(
            name=value.name,
            dtype=str(value.dtype.numpy()),
            shape=[dimension if isinstance(dimension, int) else str(dimension.value) for dimension in value.shape],
        )
        for value in values
    ]


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}
