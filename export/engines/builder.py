"""From a graph to a plan: what TensorRT 10, TensorRT 11 and TensorRT for RTX have in common, and where they differ.

Everything of TensorRT is `Any` here: it is one of two modules, and neither need be installed.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.runtime.engines import Profile
from safelight.runtime.engines.flavours import Flavour, flavour
from safelight.runtime.manifest import TensorRecord

from .memory import memory_limit
from .phases import Progress, monitor_of
from .timing_cache import keep_timing_cache, use_timing_cache

_MOST_ERRORS = 3  # of the parser or the builder, in a message
#: TensorRT's dtype -> ours
_DTYPES: Mapping[str, str] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


@dataclass(frozen=True, kw_only=True)
class PlanTask:
    """What one process builds."""

    flavour: str
    network: str  # for messages
    graph: Path
    plan: Path  # to be written
    profiles: tuple[Profile, ...]
    inputs: tuple[TensorRecord, ...]  # as the model folder has them
    outputs: tuple[TensorRecord, ...]
    gpus: tuple[str, ...]  # of flavour "tensorrt-rtx"; "tensorrt" builds for the GPU that is here
    refittable: tuple[str, ...] = ()  # weights that are left out of the plan; all are in it when empty
    optimization_level: int | None = None
    memory_limit: int | None = None  # bytes
    timing_cache: Path | None = None  # of flavour "tensorrt"


@dataclass(frozen=True, kw_only=True)
class Built:
    """What was built: the plan's inputs and outputs, and how long it took."""

    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    seconds: float


def build_plan(task: PlanTask, *, progress: Progress) -> Built:
    """Builds an engine and writes its plan.

    Raises:
        ValueError: TensorRT cannot read the graph, or build it; with what it says of the reasons.
        MemoryError: there is not enough memory, or not within the limit.
        OSError: the disk is full.
    """
    started = time.monotonic()
    trt = flavour(task.flavour)
    logger = _logger(trt)
    progress(f"{task.network}: reading the graph")
    with memory_limit(task.memory_limit, f"building the {task.network}"):
        builder = trt.module.Builder(logger)
        network, parser = read_network(trt, builder, logger, task.graph)
        inputs = _records(map(network.get_input, range(network.num_inputs)), task.inputs, task.network)
        outputs = _records(map(network.get_output, range(network.num_outputs)), task.outputs, task.network)
        config = _configuration(trt, builder, network, task)
        monitor = config.progress_monitor = monitor_of(trt, lambda line: progress(f"{task.network}: {line}"))
        cached = use_timing_cache(config, task.timing_cache) if task.timing_cache else None
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise _failure(task.network, logger.errors)
        if cached is not None and task.timing_cache:
            keep_timing_cache(cached, task.timing_cache)
        progress(f"{task.network}: writing the plan")
        with task.plan.open("wb") as file:
            file.write(memoryview(plan))
        del plan, monitor, config, parser, network, builder  # before the logger, which they write to
    return Built(inputs=inputs, outputs=outputs, seconds=time.monotonic() - started)


def read_network(trt: Flavour, builder: Any, logger: Any, graph: Path) -> tuple[Any, Any]:
    """A graph as TensorRT reads it, strongly typed; and the parser, which holds its weights and must outlive it.

    Raises:
        ValueError: it cannot; the message names the nodes.
    """
    creation = trt.module.NetworkDefinitionCreationFlag
    # TensorRT 11 knows no other networks, and may lose the flag
    flags = 1 << int(creation.STRONGLY_TYPED) if hasattr(creation, "STRONGLY_TYPED") else 0
    network = builder.create_network(flags)
    parser = trt.module.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        errors = [_parser_error(parser.get_error(at)) for at in range(parser.num_errors)]
        raise ValueError(f"TensorRT cannot read {graph}: {_several(errors)}")
    return network, parser


def _configuration(trt: Flavour, builder: Any, network: Any, task: PlanTask) -> Any:
    """What the builder is told, the progress monitor and the timing cache apart."""
    flags = trt.module.BuilderFlag
    config = builder.create_builder_config()
    config.set_flag(flags.TF32)
    if task.optimization_level is not None:
        config.builder_optimization_level = task.optimization_level
    if task.memory_limit is not None:
        config.set_memory_pool_limit(trt.module.MemoryPoolType.WORKSPACE, task.memory_limit)
    if trt.is_rtx:
        config.num_compute_capabilities = len(task.gpus)
        for at, gpu in enumerate(task.gpus):
            config.set_compute_capability(trt.module.ComputeCapability.__members__[gpu.upper()], at)
    if task.refittable:
        config.set_flag(flags.STRIP_PLAN)
        config.set_flag(flags.REFIT_INDIVIDUAL)
        for name in task.refittable:
            if not network.mark_weights_refittable(name):
                raise ValueError(f"{task.network}: TensorRT has no weight {name} of the graph, it cannot be left out")
    for profile in task.profiles:
        described = builder.create_optimization_profile()
        for name, shapes in profile.shapes.items():
            described.set_shape(name, shapes.smallest, shapes.usual, shapes.largest)
        if config.add_optimization_profile(described) < 0:
            raise ValueError(f"{task.network}: TensorRT takes no profile of {profile.label}")
    return config


def _records(tensors: Any, described: tuple[TensorRecord, ...], network: str) -> tuple[TensorRecord, ...]:
    """TensorRT's inputs or outputs, with the names that the model folder has for free dimensions."""
    known = {tensor.name: tensor for tensor in described}
    found = {tensor.name: _DTYPES[tensor.dtype.name] for tensor in tensors}
    if found.keys() != known.keys():
        raise ValueError(f"the graph of {network} has {', '.join(found)}, and the manifest {', '.join(known)}")
    return tuple(TensorRecord(name=name, dtype=dtype, shape=known[name].shape) for name, dtype in found.items())


def _logger(trt: Flavour) -> Any:
    """A logger that keeps the errors."""
    severity = trt.module.ILogger.Severity

    class Logger(trt.module.ILogger):  # type: ignore[misc, name-defined]  # Any
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.errors.append(message.strip())

    return Logger()


def _failure(network: str, errors: list[str]) -> Exception:
    """What to raise for an engine that was not built."""
    told = _several(errors[-_MOST_ERRORS:]) or "it does not say why"
    if any(sign in error for error in errors for sign in ("OutOfMemory", "out of memory", "bad_alloc")):
        return MemoryError(f"TensorRT has not enough memory to build the {network}: {told}")
    return ValueError(f"TensorRT cannot build the {network}: {told}")


def _parser_error(error: Any) -> str:
    where = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
    return f"{where}{error.desc()}"


def _several(errors: list[str]) -> str:
    shown = "; ".join(" ".join(error.split()) for error in errors[:_MOST_ERRORS])
    return shown + (f"; and {len(errors) - _MOST_ERRORS} more" if len(errors) > _MOST_ERRORS else "")
