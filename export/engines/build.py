"""The build of a model folder's engines: each network's in a process of its own, into a store."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from safelight.runtime.engines import FLAVOURS, EngineIdentity, EngineRecord
from safelight.runtime.engines.fit import source
from safelight.runtime.engines.flavours import Flavour, flavour
from safelight.runtime.engines.store import EngineStore
from safelight.runtime.manifest import MANIFEST_NAME
from safelight.runtime.model_folder import ModelFolder

from ..worker import run_apart
from .builder import Built, PlanTask, build_plan
from .gpus import chosen_gpus
from .graph import LOWERING, make_graph, wanted_dtype
from .pictures import Pictures
from .shapes import profiles_of

Progress = Callable[[str], None]

_DTYPES = ("fp16", "bf16")
_VAE_DTYPES = ("fp32", "bf16")
_DRIVER = "libcuda.so.1"


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build; the defaults are the command's."""

    flavour: str  # one of `FLAVOURS`
    pictures: Pictures = field(default_factory=Pictures)
    dtype: str = "fp16"  # of everything but an AutoencoderKL
    vae_dtype: str = "fp32"
    components: tuple[str, ...] = ()  # networks to build; all of the folder when empty
    gpus: tuple[str, ...] = ()  # of "tensorrt-rtx"
    strip_weights: bool = False
    memory_limit: int | None = None  # bytes
    optimization_level: int | None = None  # TensorRT's own when None

    def __post_init__(self) -> None:
        """Checks what can be checked without a model.

        Raises:
            ValueError: an option that no build can have.
        """
        choices = (("target", self.flavour, FLAVOURS), ("dtype", self.dtype, _DTYPES))
        for name, value, known in (*choices, ("vae-dtype", self.vae_dtype, _VAE_DTYPES)):
            if value not in known:
                raise ValueError(f"--{name} must be {' or '.join(known)}, got {value!r}")
        if self.memory_limit is not None and self.memory_limit <= 0:
            raise ValueError(f"--memory-limit must be above 0, got {self.memory_limit / 1e9:g}")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ValueError(f"--optimization-level must be 0 to 5, got {self.optimization_level}")


def build_engines(
    folder: ModelFolder, options: BuildOptions, store: EngineStore, *, progress: Progress = lambda _: None
) -> list[EngineRecord]:
    """Builds the engines of a model; those that the store has already are left as they are.

    Args:
        folder: that safelight has exported.
        options: of the build.
        store: to put them into.
        progress: told one line at each stage.

    Returns:
        The record of each network's engine.

    Raises:
        FileNotFoundError: the folder is not whole.
        ImportError: TensorRT is not installed, or the export extra is, and is needed.
        MemoryError: there is not enough, or not within the limit.
        OSError: the disk is full, or the store cannot be written, or others can write it.
        RuntimeError: TensorRT builds on a GPU, and there is none.
        ValueError: the folder was not exported by safelight, an engine cannot have such shapes or GPUs, or TensorRT
            cannot build a network.
        WorkerError: a process crashed or was killed.
    """
    if folder.manifest is None:
        raise ValueError(
            f"{folder.path} has no {MANIFEST_NAME}: safelight did not export it, and nothing says what is in it; "
            "export the checkpoint: safelight export CHECKPOINT FOLDER"
        )
    networks = _networks(folder, options.components)
    trt = flavour(options.flavour)
    if options.strip_weights:
        _check_driver(trt)
    identities = [_identity(folder, network, options, trt) for network in networks]  # refuses before it builds
    return [_build(folder, identity, options, store, progress) for identity in identities]


def _networks(folder: ModelFolder, wanted: Sequence[str]) -> list[str]:
    assert folder.manifest is not None
    held = folder.manifest.components
    if unknown := [name for name in wanted if name not in held]:
        raise ValueError(f"{folder.path} has no network {', '.join(unknown)}; it has {', '.join(held)}")
    chosen = [name for name in held if name in wanted or not wanted]
    if quantized := [name for name in chosen if held[name].quantization is not None]:
        raise ValueError(
            f"{', '.join(quantized)} is quantized, and engines are built of the weights as they were exported: build "
            "from the folder that was quantized"
        )
    return chosen


def _identity(folder: ModelFolder, network: str, options: BuildOptions, trt: Flavour) -> EngineIdentity:
    """What the engine of a network will be."""
    assert folder.manifest is not None
    dtype = wanted_dtype(folder.manifest, network, dtype=options.dtype, vae_dtype=options.vae_dtype)
    gpus, gpu_name = chosen_gpus(trt, options.gpus, bfloat16=dtype == "bf16")
    files = source(folder, network)
    told: dict[str, int | str | bool] = {"stripped": options.strip_weights, "tf32": True}
    if options.optimization_level is not None:
        told["optimization_level"] = options.optimization_level
    if options.memory_limit is not None:
        told["workspace"] = options.memory_limit
    return EngineIdentity(
        flavour=trt.name,
        version=trt.version,
        gpus=gpus,
        gpu_name=gpu_name,
        network=network,
        graph=files.graph,
        weights=None if options.strip_weights else files.weights,
        dtype=dtype,
        lowering=LOWERING,
        profiles=profiles_of(folder, network, options.pictures),
        options=told,
    )


def _build(
    folder: ModelFolder, identity: EngineIdentity, options: BuildOptions, store: EngineStore, progress: Progress
) -> EngineRecord:
    """The engine of one network, built here unless the store has it."""
    assert folder.manifest is not None
    network = identity.network
    component = folder.manifest.components[network]
    with store.building(identity, progress=progress) as building:
        if building.finished is not None:
            progress(f"{network}: {identity.name} is there already")
            return building.finished
        scratch = building.plan.with_name("graph")  # gone with what the block has not committed
        scratch.mkdir()
        apart = partial(run_apart, name=network, progress=progress)
        graph, _ = apart(make_graph, folder.path, network, identity.dtype, scratch)
        refittable = tuple(folder.weights(network)) if options.strip_weights else ()
        task = PlanTask(
            flavour=identity.flavour,
            network=network,
            graph=graph,
            plan=building.plan,
            profiles=identity.profiles,
            inputs=tuple(component.inputs),
            outputs=tuple(component.outputs),
            gpus=identity.gpus,
            refittable=refittable,
            optimization_level=options.optimization_level,
            memory_limit=options.memory_limit,
            timing_cache=_timing_cache(store, identity),
        )
        built: Built
        built, peak = apart(build_plan, task)
        record = building.commit(
            inputs=built.inputs,
            outputs=built.outputs,
            refittable=refittable,
            seconds=round(built.seconds, 3),
            peak_memory=peak,
        )
    progress(
        f"{network}: {identity.name}, {record.plan.size / 1e6:.1f} MB in {built.seconds:.1f} s, "
        f"with {peak / 1e9:.2f} GB of memory at most"
    )
    return record


def _timing_cache(store: EngineStore, identity: EngineIdentity) -> Path | None:
    """Where measurements are kept; TensorRT for RTX makes none."""
    if identity.flavour != "tensorrt":
        return None
    return store.folder / f"{identity.flavour}-{identity.version}-{identity.gpus[0]}.timings"


def _check_driver(trt: Flavour) -> None:
    """Refuses what TensorRT for RTX cannot do without CUDA's driver, a GPU or not: plans without weights.

    Raises:
        RuntimeError: the driver is not there.
    """
    try:
        ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise RuntimeError(
            f"--strip-weights needs NVIDIA's driver ({_DRIVER}) on the machine that builds, with which "
            f"{trt.module.__name__} compiles what takes the weights in; build here without it, or there with it"
        ) from error
