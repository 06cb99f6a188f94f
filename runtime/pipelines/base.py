"""What every pipeline has: how it is loaded from a folder, shown, moved to a device and closed."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from .. import schedulers
from ..image_processor import IMAGE_PROCESSORS
from ..model_folder import ModelFolder, open_model_folder
from ..networks import NETWORK_OPENERS, Engine
from ..source import local_model
from ..speed import Speed
from ..textual_inversion import keep_textual_inversions
from ..tokenizer import CLIPTokenizer

logger = logging.getLogger(__name__)

SCHEDULER = "scheduler"


class DiffusionPipeline(ABC):
    """Text, or an image, or nothing but noise goes in; pictures come out.

    `DiffusionPipeline.from_pretrained(folder)` makes the pipeline that the folder names.
    """

    #: the parts that a subclass works with, by diffusers' names
    component_names: ClassVar[tuple[str, ...]]
    #: those of them that may be None, and are where the folder has none
    optional_components: ClassVar[tuple[str, ...]] = ()
    #: diffusers' name of a pipeline -> its class here
    registry: ClassVar[dict[str, "type[DiffusionPipeline]"]] = {}

    speed: Speed = Speed()  # what is left out of a picture's computations: nothing

    def __init_subclass__(cls, *, abstract: bool = False) -> None:
        """Makes a pipeline known by its name, which is diffusers'.

        Args:
            abstract: it is no pipeline, only what several have in common.
        """
        if not abstract:
            DiffusionPipeline.registry[cls.__name__] = cls

    def __init__(self, folder: ModelFolder, engine: Engine, components: Mapping[str, Any]) -> None:
        self.folder = folder
        self.engine = engine
        for name in self.component_names:
            setattr(self, name, components.get(name) if name in self.optional_components else components[name])
        self._progress_bar: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        backend: str = "auto",
        device: str = "cpu",
        engines: str | Path | None = None,
        precision: str | Mapping[str, str] | None = None,
        threads: int | None = None,
        engine_options: Mapping[str, Any] | None = None,
        low_memory: bool = False,
        speed: str | Speed | None = None,
        use_safetensors: bool | None = True,
        variant: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        requires_safety_checker: bool | None = None,
        **components: Any,
    ) -> Self:
        """Opens a model.

        Args:
            pretrained_model_name_or_path: an exported folder, a checkpoint (exported once, into the cache, where the
                export extra is installed), or the id of either on the hub.
            backend: the engine that runs the networks; "auto" is the fastest that is installed, see `safelight doctor`.
            device: where it runs them: "cpu", "cuda", "cuda:1"; with OpenVINO also "gpu", "gpu:1", "npu".
            engines: the folder where `safelight build` has put the engines of the backends "tensorrt" and
                "tensorrt-rtx"; the user's cache when None.
            precision: of the arithmetic: "fp32", "bf16", "fp16", or "auto" for the fastest that the device has; for all
                networks, or by network, `{"unet": "bf16"}`. What is not named is computed as it was exported.
            threads: of the CPU; the engine's own choice when None.
            engine_options: the engine's own options, by its own names.
            low_memory: whether each network is opened when it is needed and closed after its part of a picture.
            speed: what is left out of a picture's computations, see `enable_speed`; nothing when None.
            use_safetensors: must not be False: pickled weights are never loaded.
            variant: of a checkpoint's weights, such as "fp16".
            revision: of a hub id: a branch, a tag or a commit.
            token: for the hub.
            cache_dir: where hub downloads are kept.
            local_files_only: never ask the hub.
            requires_safety_checker: whether a warning says that there is none; what the folder says when None.
            **components: parts to use in place of the folder's, such as `scheduler=`. None leaves an optional one out,
                `safety_checker=None`, and is no news where the pipeline has no such part.

        Raises:
            FileNotFoundError: there is no such folder, or it lacks a component; or there is no engine of one.
            ValueError: the folder is no model; an unknown backend, device, precision, engine option, scheduler,
                pipeline class or speed; a precision that the device lacks, a speed that the pipeline cannot have.
            ModuleNotFoundError: the engine is not installed; or a checkpoint was given and the export extra is not.
            TypeError: a component that the pipeline does not have.
        """
        if use_safetensors is False:
            raise ValueError("use_safetensors=False asks for pickled weights, which are never loaded")
        wanted_speed = None if speed is None else Speed.of(speed)  # refused before anything is opened
        path = local_model(
            pretrained_model_name_or_path,
            variant=variant,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        folder = open_model_folder(path)
        if requires_safety_checker is not None:
            folder = replace(folder, index={**folder.index, "requires_safety_checker": requires_safety_checker})
        pipeline_class = cls._class_for(folder)
        if torch_words := components.keys() & {"torch_dtype", "dtype"}:
            raise TypeError(
                f"{torch_words.pop()} is the folder's: choose it at the export, safelight export --dtype fp16, or "
                'precision="bf16" for the arithmetic of an engine that has it'
            )
        components = {
            name: part
            for name, part in components.items()
            if part is not None or name in pipeline_class.component_names
        }
        if unknown := components.keys() - set(pipeline_class.component_names):
            known = ", ".join(pipeline_class.component_names)
            raise TypeError(f"{pipeline_class.__name__} has no component {', '.join(sorted(unknown))}; it has {known}")
        engine = Engine.of(
            folder,
            backend=backend,
            device=device,
            engines=engines,
            precision=precision,
            threads=threads,
            engine_options=engine_options,
            low_memory=low_memory,
        )
        left_out = {name: None for name in pipeline_class.optional_components if not folder.has_component(name)}
        opened = {**left_out, **components}
        opened |= open_components(folder, engine, [n for n in pipeline_class.component_names if n not in opened])
        pipeline = pipeline_class(folder, engine, opened)
        if wanted_speed is not None:
            pipeline.enable_speed(wanted_speed)
        if warning := pipeline._warning():
            logger.warning("%s", warning)
        return pipeline

    def _warning(self) -> str | None:
        """What a user should know of a pipeline that was just opened; None where there is nothing to say."""
        return None

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | Path, **options: Any) -> Self:
        """Opens a checkpoint in one safetensors file, in the layout of the original code; see `from_pretrained`.

        It is exported once, into the cache, where the export extra is installed.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if not Path(pretrained_model_link_or_path).is_file():
            raise FileNotFoundError(f"{pretrained_model_link_or_path} is no file on this machine")
        return cls.from_pretrained(pretrained_model_link_or_path, **options)

    @classmethod
    def _class_for(cls, folder: ModelFolder) -> type[Self]:
        """The class that the folder names, or the one that was asked for by name."""
        if cls is not DiffusionPipeline:
            return cls
        return class_known(folder)  # type: ignore[return-value]  # cls is DiffusionPipeline: every pipeline is one

    @classmethod
    def from_pipe(cls, pipeline: "DiffusionPipeline", **components: Any) -> Self:
        """A pipeline for another task with the networks of this one: nothing is loaded again, closing one closes both.

        Args:
            pipeline: has what this class works with.
            **components: parts to use in place of the pipeline's.

        Raises:
            TypeError: a component that this class does not have.
            ValueError: the pipeline lacks one that it has, or leaves out what this class cannot.
        """
        if unknown := components.keys() - set(cls.component_names):
            raise TypeError(f"{cls.__name__} has no component {', '.join(sorted(unknown))}")
        parts = {name: part for name, part in pipeline.components.items() if part is not None} | components
        if missing := [n for n in cls.component_names if n not in parts and n not in cls.optional_components]:
            raise ValueError(f"{type(pipeline).__name__} has no {', '.join(missing)}, which {cls.__name__} needs")
        made = cls(pipeline.folder, pipeline.engine, parts)
        made._progress_bar = dict(pipeline._progress_bar)
        for name in ("prompt_weights", "long_prompts"):
            if hasattr(pipeline, name):
                setattr(made, name, getattr(pipeline, name))
        if pipeline.speed != made.speed:
            made.enable_speed(pipeline.speed)
        return made

    def enable_speed(self, speed: str | Speed = "balanced") -> None:
        """Leaves out some of a picture's computations, where a pipeline can.

        Raises:
            ValueError: this one cannot.
        """
        if Speed.of(speed) != self.speed:
            raise ValueError(f"{type(self).__name__} computes everything: only text-guided pipelines leave out some")

    @property
    def components(self) -> dict[str, Any]:
        """The pipeline's parts by name."""
        return {name: getattr(self, name) for name in self.component_names}

    @property
    def device(self) -> str:
        """Where the networks run."""
        return self.engine.device

    def to(self, device: str) -> Self:
        """Reopens the folder's networks on a device; what stands in for one stays. The pipeline itself is returned.

        Raises:
            ValueError: the backend cannot use the device; the pipeline stays as it was.
        """
        engine = replace(self.engine, device=str(device))
        if engine != self.engine:
            own = [name for name, part in self.components.items() if self.folder.class_of(name) == type(part).__name__]
            networks = [name for name in own if self.folder.class_of(name) in NETWORK_OPENERS]
            reopened = open_components(self.folder, engine, networks)
            for name, component in reopened.items():
                keep_textual_inversions(
                    getattr(self, name), component, folder=self.folder, engine=engine, component=name
                )
            for name, component in reopened.items():
                _close(getattr(self, name))
                setattr(self, name, component)
            self.engine = engine
        return self

    def set_progress_bar_config(self, **options: Any) -> None:
        """Options of the progress bar, which are tqdm's: `disable=True` turns it off."""
        self._progress_bar = options

    @contextmanager
    def progress_bar(self, total: int) -> Iterator[Any]:
        """A bar that counts to `total`."""
        from tqdm.auto import tqdm  # 90 ms to import: only when a picture is made

        with tqdm(**{"total": total, **self._progress_bar}) as bar:
            yield bar

    def close(self) -> None:
        """Gives the engine's memory back; the pipeline cannot be used after that."""
        for component in self.components.values():
            _close(component)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        index = {**self.folder.index, "_class_name": type(self).__name__}
        scheduler = getattr(self, SCHEDULER, None)
        if scheduler is not None:
            index[SCHEDULER] = ["diffusers", type(scheduler).__name__]
        index |= {name: [None, None] for name in self.optional_components if getattr(self, name) is None}
        return f"{type(self).__name__} {json.dumps(index, indent=2, sort_keys=True)}"

    @abstractmethod
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Makes pictures; each pipeline says from what."""


def class_known(folder: ModelFolder) -> type[DiffusionPipeline]:
    """The class that a folder names; optimum and older diffusers put a prefix before its name.

    Raises:
        ValueError: it is not known here.
    """
    known = DiffusionPipeline.registry
    name = folder.class_name
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if name not in known:
        raise ValueError(
            f"{folder.path} is for a {folder.class_name}, which is not known here; known: {', '.join(known)}"
        )
    return known[name]


_PREFIXES = ("ORT", "Onnx")


def open_components(folder: ModelFolder, engine: Engine, names: list[str]) -> dict[str, Any]:
    """Opens components of a folder by the classes that its index names.

    Raises:
        FileNotFoundError: a component is not there.
        ValueError: its class is not known here.
    """
    return {name: _open_component(folder, engine, name) for name in names}


def _open_component(folder: ModelFolder, engine: Engine, name: str) -> Any:
    class_name = folder.class_of(name)
    if class_name is None:
        raise FileNotFoundError(f"{folder.path} lacks the component {name}: model_index.json does not name it")
    if name == SCHEDULER:
        return schedulers.load_scheduler(folder.folder(name))
    if class_name in _TOKENIZERS:
        return CLIPTokenizer.from_pretrained(folder.folder(name))
    if class_name in IMAGE_PROCESSORS:
        return IMAGE_PROCESSORS[class_name].from_pretrained(folder.folder(name))
    if class_name not in NETWORK_OPENERS:
        raise ValueError(
            f"{folder.path}: component {name} is a {class_name}, which is not known here; "
            f"known: {', '.join([*NETWORK_OPENERS, *_TOKENIZERS, *IMAGE_PROCESSORS])}"
        )
    return NETWORK_OPENERS[class_name](folder, engine, name)


_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")


def _close(component: object) -> None:
    close = getattr(component, "close", None)
    if close is not None:
        close()
