"""The export of one component: its graphs without weights, and its weights one tensor at a time."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from safelight.runtime.manifest import DEEP, SHALLOW, ComponentRecord, TensorRecord
from safelight.runtime.model_folder import CANONICAL, GRAPH

from . import lowering
from .answers import load_reference, overflows_on_examples
from .checkpoint import Component, descriptions
from .deep_cache import CACHED_CLASS, deep_graph, shallow_graph
from .lora import Lora, fused
from .lowering.precision import float32_borders
from .networks import COMPONENT_KINDS, NetworkDescription, build
from .opset import CANONICAL_OPSET
from .options import DTYPES, ExportOptions
from .preflight import count
from .trace import parameters, trace
from .weights import WEIGHTS_NAME, WeightFile, bind, store_transposed, write_weights

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]

#: parameters of a component that is run in fp16 before it is exported so; of a larger one the validation finds out
LOOKED_AT_BELOW = 500_000_000


@dataclass(frozen=True)
class ComponentTask:
    """What one process does: some networks of one component."""

    component: Component
    networks: tuple[str, ...]  # the names of those that are wanted
    pipeline: dict[str, Any]  # model_index.json
    loras: tuple[Lora, ...]
    options: ExportOptions


def export_component(
    task: ComponentTask, folder: Path, *, progress: Progress = lambda _: None
) -> dict[str, ComponentRecord]:
    """Writes the networks of a component, each into a folder of its name.

    Memory holds a graph, and then one tensor at a time.

    Args:
        task: what to write.
        folder: the model folder.
        progress: told one line at each stage.

    Returns:
        The record of each network, without its fidelity.

    Raises:
        ValueError: the weights are broken, or a LoRA's change is not finite.
        OSError: the disk is full, or the folder cannot be written.
    """
    component, options = task.component, task.options
    weights = fused(
        COMPONENT_KINDS[component.class_name].model.open_weights(component.path, variant=component.variant),
        component.name,
        task.loras,
    )
    records = {}
    for description in descriptions(component, task.pipeline):
        if description.name not in task.networks:
            continue
        dtype = arithmetic(description, options)
        if dtype == "fp16" and count(weights.shapes) < LOOKED_AT_BELOW:
            progress(f"{description.name}: looking for overflow in fp16")
            if overflows_on_examples(description, load_reference(component, task.loras)):
                progress(f"{description.name}: fp16 ends before its numbers do: it computes in fp32")
                dtype = "fp32"
        target = folder / description.name
        target.mkdir()
        progress(f"{description.name}: tracing")
        graph, transposed = canonical_graph(description, component.class_name, component.configuration(), dtype)
        names = [str(value.name) for value in parameters(graph, description)]
        progress(f"{description.name}: writing")
        written = write_weights(
            target / WEIGHTS_NAME,
            {name: weights.shapes[name] for name in names},
            weights.__getitem__,
            transposed=transposed,
            dtype=options.storage,
            progress=partial(_prefixed, progress, description.name),
        )
        graphs = _write_graphs(graph, description, written, options, dtype)
        branch = options.cache_branch_id if component.class_name == CACHED_CLASS else None
        variants = {} if branch is None else _write_variants(graph, description, written, options, dtype, branch)
        shutil.copyfile(component.path / "config.json", target / "config.json")
        records[description.name] = ComponentRecord(
            class_name=component.class_name,
            dtype=dtype,
            graphs=graphs,
            variants=variants,
            cache_branch_id=branch,
            weights=f"{description.name}/{WEIGHTS_NAME}",
            transposed=sorted(transposed),
            inputs=_tensor_records(graph.graph.inputs[: len(description.inputs)]),
            outputs=_tensor_records(graph.graph.outputs),
        )
    return records


def canonical_graph(
    description: NetworkDescription, class_name: str, configuration: dict[str, Any], dtype: str
) -> tuple[ir.Model, frozenset[str]]:
    """The graph of a network before it is lowered or has weights; what follows its inputs are the parameters.

    Args:
        description: of the network.
        class_name: of the component, a key of `COMPONENT_KINDS`.
        configuration: of the component, complete with defaults.
        dtype: of the arithmetic, a key of `DTYPES`.

    Returns:
        The graph, and the parameters whose transpose the weight file must hold.
    """
    graph = trace(description, build(class_name, configuration, DTYPES[dtype]))
    if dtype == "bf16":
        float32_borders(graph, graph.graph.inputs[: len(description.inputs)])
    return graph, store_transposed(graph, parameters(graph, description))


def lowered(canonical: ir.Model, target: str) -> tuple[ir.Model, dict[str, int]]:
    """A copy of a canonical graph as an engine wants it, and how many nodes of each operator were replaced."""
    graph = canonical.clone()
    return graph, lowering.TARGETS[target].lower(graph)


def save_graph(graph: ir.Model, description: NetworkDescription, weights: WeightFile, name: str) -> None:
    """Writes a graph that was lowered, beside the weight file that it points into."""
    lowering.tidy(graph)
    bind(graph, parameters(graph, description), weights)
    ir.save(graph, weights.path.parent / name)


def _prefixed(progress: Progress, name: str, line: str) -> None:
    progress(f"{name}: {line}")


def arithmetic(description: NetworkDescription, options: ExportOptions) -> str:
    """The dtype that a network computes in, a key of `DTYPES`."""
    return "fp32" if description.full_precision or description.name in options.full_precision else options.dtype


def _write_graphs(
    canonical: ir.Model,
    description: NetworkDescription,
    weights: WeightFile,
    options: ExportOptions,
    dtype: str,
    *,
    variant: str | None = None,
) -> dict[str, str]:
    """Writes the canonical graph, and one for each target that wants another; returns target -> path in the folder.

    Engines are not built of variants, which therefore have no graphs for what builds them.
    """
    files = {}
    stem = ".".join(filter(None, (Path(GRAPH).stem, variant)))
    wanted = [target for target in targets(options, dtype) if variant is None or not lowering.TARGETS[target].built]
    for target in (CANONICAL, *wanted):
        if target == CANONICAL:
            graph = canonical.clone()
            lowering.to_opset(graph, options.opset)
        else:
            graph, counts = lowered(canonical, target)
            logger.info("%s for %s: replaced %s", "/".join(filter(None, (description.name, variant))), target, counts)
            if not any(counts.values()) and options.opset == CANONICAL_OPSET:
                continue  # the canonical graph is what it wants
        file = f"{stem}.onnx" if target == CANONICAL else f"{stem}.{target}.onnx"
        save_graph(graph, description, weights, file)
        files[target] = f"{description.name}/{file}"
    return files


def _write_variants(
    canonical: ir.Model,
    description: NetworkDescription,
    weights: WeightFile,
    options: ExportOptions,
    dtype: str,
    branch: int,
) -> dict[str, dict[str, str]]:
    """Writes the graphs of DeepCache; returns variant -> target -> path in the folder."""
    written = {}
    for name, cut in ((DEEP, deep_graph), (SHALLOW, shallow_graph)):
        variant = cut(canonical, description, branch)
        written[name] = _write_graphs(variant.graph, variant.description, weights, options, dtype, variant=name)
    return written


def targets(options: ExportOptions, dtype: str) -> list[str]:
    """The engines that a network of this arithmetic is lowered for."""
    wanted = lowering.TARGETS if options.targets is None else options.targets
    return [target for target in wanted if dtype in lowering.TARGETS[target].dtypes]


def _tensor_records(values: Any) -> list[TensorRecord]:
    return [
        TensorRecord(
            name=value.name,
            dtype=str(value.dtype.numpy()),
            shape=[dimension if isinstance(dimension, int) else str(dimension.value) for dimension in value.shape],
        )
        for value in values
    ]
