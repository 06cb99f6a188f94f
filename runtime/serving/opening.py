"""The worker's model: opened, its networks shared by the pictures that are made, and described."""

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backends.choice import COMPILED_FROM
from ..engines.record import EngineRecord
from ..model_folder import open_model_folder
from ..networks.deep_cache import DeepCacheNetwork
from ..networks.engine import Engine, engine_options
from ..pipelines import AutoPipelineForImage2Image, AutoPipelineForInpainting, DiffusionPipeline
from ..pipelines.text_guided import TextGuidedPipeline
from ..schedulers import Scheduler, every_scheduler
from ..source import bundled_model, local_model
from .batching import Batcher
from .model_card import Bucket, ModelCard
from .settings import ServerSettings

#: the backend whose networks run several batches at a time, each in the thread that calls
_PARALLEL = "onnxruntime"
_MOST_STREAMS = 4
#: those that compile a network for each size of its batch
_COMPILED_PER_SIZE = ("openvino",)
#: attributes of a pipeline's components that are networks; encoders and checkers are opened by asking for them
_NETWORKS = ("network", "encoder", "decoder")
#: pixels of the pictures that an autoencoder or a safety checker works on at once: what it needs grows with them
_JOINT_PIXELS = 512 * 512
_STEPS, _GUIDANCE, _STRENGTH = "num_inference_steps", "guidance_scale", "strength"
#: where a model's pipeline makes no edits
_DEFAULT_STRENGTH = 0.8
_DEFAULT_PIXELS = 4  # times the model's own, that a picture may have


@dataclass(frozen=True, kw_only=True)
class Streams:
    """How many batches run at a time, and the threads of each."""

    count: int
    threads: int | None  # the engine's choice when None

    @classmethod
    def of(cls, settings: ServerSettings) -> "Streams":
        """Those that were asked for; or else several for a small model on ONNX Runtime, whose networks gain more by
        another batch at the same time than by another thread.

        Raises:
            ValueError: several streams of an engine that runs one batch at a time; and whatever a model folder or the
                engine's options are refused with.
        """
        options, source = engine_options(settings.engine)
        folder = open_model_folder(local_model(settings.model, **source) if settings.model else bundled_model())
        engine = Engine.of(folder, **options)
        parallel = engine.backend == _PARALLEL and engine.device == "cpu"
        if settings.streams is not None and settings.streams > 1 and not parallel:
            raise ValueError(f"several streams need {_PARALLEL} on a CPU: {engine.backend} runs one batch at a time")
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads, count = engine.tuning.threads, settings.streams
        if count is None:
            small = parallel and threads is None and folder.weight_bytes < COMPILED_FROM
            count = min(processors, _MOST_STREAMS) if small else 1
        if count > 1 and threads is None:
            threads = max(1, processors // count)
        return cls(count=count, threads=threads)


def open_pipeline(settings: ServerSettings, streams: Streams) -> TextGuidedPipeline:
    """The pipeline that the model folder names.

    Raises:
        ValueError: it takes no prompts; and whatever `DiffusionPipeline.from_pretrained` raises.
    """
    options: dict[str, Any] = {**settings.engine, "threads": streams.threads}
    if not settings.safety_checker:
        options["safety_checker"] = None
    if settings.speed is not None:
        options["speed"] = settings.speed
    pipeline = DiffusionPipeline.from_pretrained(settings.model or bundled_model(), **options)
    if not isinstance(pipeline, TextGuidedPipeline):
        raise ValueError(f"{type(pipeline).__name__} takes no prompts, and requests are prompts")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def has_fixed_sizes(pipeline: TextGuidedPipeline) -> bool:
    """Whether a pipeline's engine compiles a network for each size of a batch; see `Batcher`."""
    return pipeline.engine.backend in _COMPILED_PER_SIZE


def share_networks(pipeline: TextGuidedPipeline, batcher: Batcher, max_batch: int) -> None:
    """Puts a network that pictures share in the place of each of a pipeline's.

    Args:
        pipeline: its networks are opened, those too that would be opened when they are first called.
        batcher: runs them.
        max_batch: calls of one batch; fewer where the pictures are large and the network sees all of their pixels.
    """
    joint = min(max_batch, max(1, _JOINT_PIXELS // _pixels(pipeline)))
    for name, component in pipeline.components.items():
        most = max_batch if name in ("unet", *(encoder for _, encoder in pipeline.text_components)) else joint
        for attribute in _NETWORKS:
            network = getattr(component, attribute, None)
            if isinstance(network, DeepCacheNetwork):
                network.deep = batcher.shared(f"{name} deep", network.deep, most=most)
                network.shallow = batcher.shared(f"{name} shallow", network.shallow, most=most)
            elif network is not None:
                part = name if attribute == "network" else f"{name}_{attribute}"
                setattr(component, attribute, batcher.shared(part, network, most=most))


def card_of(pipeline: TextGuidedPipeline, settings: ServerSettings) -> ModelCard:
    """What a pipeline can make."""
    height, width = pipeline._own_size()
    factor = pipeline.vae.factor
    most_pixels = settings.max_pixels or _DEFAULT_PIXELS * height * width
    sides = (factor, most_pixels // factor // factor * factor)
    buckets = compiled_sizes(pipeline)
    takes = inspect.signature(pipeline.__call__).parameters
    masked_only = int(pipeline.unet.config["in_channels"]) != pipeline.vae.latent_channels
    return ModelCard(
        id=settings.model_name,
        created=int(Path(pipeline.folder.path).stat().st_mtime),
        pipeline=type(pipeline).__name__,
        backend=pipeline.engine.describe(pipeline.folder.networks),
        width=width,
        height=height,
        factor=factor,
        most_pixels=most_pixels,
        width_range=_hull([bucket.width for bucket in buckets] or [sides]),
        height_range=_hull([bucket.height for bucket in buckets] or [sides]),
        buckets=buckets,
        num_inference_steps=min(settings.num_inference_steps or takes[_STEPS].default, settings.max_steps),
        guidance_scale=float(takes[_GUIDANCE].default),
        strength=_strength(pipeline),
        scheduler=type(pipeline.scheduler).__name__,
        schedulers=_schedulers(pipeline.scheduler),
        generations=not masked_only,
        edits=not masked_only and _has(AutoPipelineForImage2Image, pipeline),
        masks=_has(AutoPipelineForInpainting, pipeline),
    )


def compiled_sizes(pipeline: TextGuidedPipeline) -> tuple[Bucket, ...]:
    """The sizes that a pipeline's UNet was compiled for, a bucket for each of its profiles; none if it was not."""
    record = getattr(pipeline.unet.network, "record", None)
    if not isinstance(record, EngineRecord):
        return ()
    factor = pipeline.vae.factor
    ranges = [profile.shapes["sample"] for profile in record.identity.profiles if "sample" in profile.shapes]
    return tuple(
        Bucket(
            height=(found.smallest[2] * factor, found.largest[2] * factor),
            width=(found.smallest[3] * factor, found.largest[3] * factor),
        )
        for found in ranges
    )


def _hull(ranges: list[tuple[int, int]]) -> tuple[int, int]:
    return min(least for least, _ in ranges), max(most for _, most in ranges)


def _pixels(pipeline: TextGuidedPipeline) -> int:
    height, width = pipeline._own_size()
    return height * width


def _has(auto: Any, pipeline: TextGuidedPipeline) -> bool:
    try:
        auto.from_pipe(pipeline)
    except ValueError:
        return False
    return True


def _schedulers(own: Scheduler) -> tuple[str, ...]:
    return tuple(name for name, kind in every_scheduler().items() if _can_be_made(kind, own.config))


def _can_be_made(kind: type[Scheduler], config: Mapping[str, Any]) -> bool:
    try:
        kind.from_config(config)
    except (TypeError, ValueError):  # a value of the other's that is none of its own
        return False
    return True


def _strength(pipeline: TextGuidedPipeline) -> float:
    try:
        edits: Any = AutoPipelineForImage2Image.from_pipe(pipeline)
    except ValueError:
        return _DEFAULT_STRENGTH
    return float(inspect.signature(edits.__call__).parameters[_STRENGTH].default)
