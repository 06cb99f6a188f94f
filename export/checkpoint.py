"""A checkpoint in diffusers' layout: where it comes from, what is in it, and whether it can be exported at all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.reference.checkpoint import find_weights, read_config
from safelight.runtime.image_processor import CONFIG as PROCESSOR_CONFIG
from safelight.runtime.image_processor import IMAGE_PROCESSORS
from safelight.runtime.manifest import file_record
from safelight.runtime.model_folder import GRAPH, MODEL_INDEX, read_json_object
from safelight.runtime.source import download, is_hub_id

from .fit import check_fit
from .networks import COMPONENT_KINDS

_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_SCHEDULER_CONFIG = "scheduler_config.json"
_SAFETY_CHECKER, _FEATURE_EXTRACTOR = "safety_checker", "feature_extractor"
#: the networks whose input a feature extractor prepares
_EXTRACTED_FOR = ("depth_estimator", _SAFETY_CHECKER)


@dataclass(frozen=True)
class Component:
    """A network of the checkpoint."""

    name: str
    class_name: str
    path: Path
    variant: str | None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be exported, as far as can be told without reading its weights."""

    path: Path
    index: Mapping[str, Any]
    components: tuple[Component, ...]
    files: Mapping[str, Path]  # in the export -> in the checkpoint: what is copied as it is
    tokenizers: tuple[str, ...]
    left_out: tuple[str, ...]  # optional components that it has and an export does not
    source: dict[str, Any]  # for the manifest


def open_checkpoint(
    source: str | Path,
    *,
    variant: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    safety_checker: bool = True,
) -> Checkpoint:
    """Finds a checkpoint and looks it over.

    Args:
        source: a folder, or a hub id.
        variant: of the weights, such as "fp16".
        revision: of a hub id.
        token: for the hub.
        safety_checker: whether to export it, if there is one.

    Raises:
        FileNotFoundError: there is no such folder or hub id, or a component, a configuration or weights are missing.
        ValueError: the folder is no checkpoint, or one that cannot be exported; the message says why.
    """
    path = Path(source)
    if not path.exists():
        if not is_hub_id(str(source)):
            raise FileNotFoundError(f"{source} does not exist, and is no hub id either (owner/name)")
        path = download(str(source), revision=revision, token=token)
    if not path.is_dir():
        raise ValueError(f"{path} is a file; a checkpoint is a folder with a {MODEL_INDEX}")
    if not (path / MODEL_INDEX).is_file():
        raise ValueError(f"{path} is no checkpoint: it has no {MODEL_INDEX}")
    if any(path.glob(f"*/{GRAPH}")):
        raise ValueError(f"{path} was exported already: it holds {GRAPH} files")
    index = read_json_object(path / MODEL_INDEX)
    components: list[Component] = []
    tokenizers = []
    copied: dict[str, Path] = {}
    classes = _classes(index)
    left_out = _left_out(classes, safety_checker)
    exported = {name: class_name for name, class_name in classes.items() if name not in left_out}
    for name, class_name in exported.items():
        with _way_out(name in (_SAFETY_CHECKER, _FEATURE_EXTRACTOR) and _SAFETY_CHECKER in exported):
            if class_name.endswith("Scheduler"):
                copied[f"{name}/{_SCHEDULER_CONFIG}"] = _folder(path, name, _SCHEDULER_CONFIG) / _SCHEDULER_CONFIG
            elif class_name in _TOKENIZERS:
                tokenizers.append(name)
            elif class_name in IMAGE_PROCESSORS:
                folder = _folder(path, name, PROCESSOR_CONFIG)
                IMAGE_PROCESSORS[class_name].from_pretrained(folder)  # which may refuse it
                copied[f"{name}/{PROCESSOR_CONFIG}"] = folder / PROCESSOR_CONFIG
            elif class_name in COMPONENT_KINDS:
                components.append(_component(path, name, class_name, variant))
            else:
                raise ValueError(
                    f"{path}: component {name} is a {class_name}, which cannot be exported yet; "
                    f"known: {', '.join(COMPONENT_KINDS)}"
                )
    for file in copied.values():
        read_json_object(file)
    if _SAFETY_CHECKER in exported and _FEATURE_EXTRACTOR not in exported:
        raise ValueError(
            f"{path} has a safety_checker, and no feature_extractor that prepares its input; "
            "--no-safety-checker leaves it out"
        )
    if not components:
        raise ValueError(f"{path / MODEL_INDEX} names no network")
    check_fit([_configured(component) for component in components], index)
    files = {str(file.relative_to(path)): file for component in components for file in _files(component)}
    return Checkpoint(
        path=path,
        index=index,
        components=tuple(components),
        files=copied,
        tokenizers=tuple(tokenizers),
        left_out=left_out,
        source={
            "id": str(source) if is_hub_id(str(source)) and not Path(source).exists() else path.resolve().name,
            "revision": revision,
            "variant": variant,
            "files": {name: file_record(file).sha256 for name, file in files.items()},
        },
    )


def _classes(index: Mapping[str, Any]) -> dict[str, str]:
    """Component name -> class name, of the components that the index names with a class."""
    pairs = {name: value for name, value in index.items() if isinstance(value, list)}
    return {name: str(value[1]) for name, value in pairs.items() if len(value) == 2 and value[1] is not None}


def _left_out(classes: Mapping[str, str], safety_checker: bool) -> tuple[str, ...]:
    """The components that the pictures do not need, and that are not exported."""
    unused = {"image_encoder"} if safety_checker else {"image_encoder", _SAFETY_CHECKER}
    if not any(name in classes and name not in unused for name in _EXTRACTED_FOR):
        unused.add(_FEATURE_EXTRACTOR)
    return tuple(name for name in classes if name in unused)


@contextmanager
def _way_out(is_for_safety: bool) -> Iterator[None]:
    """Adds to what is wrong with a safety checker that the rest can do without it."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        if not is_for_safety:
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{error}; --no-safety-checker leaves it out") from error


def _component(path: Path, name: str, class_name: str, variant: str | None) -> Component:
    """One network, whose folder, configuration and weights must be there and make sense."""
    folder = _folder(path, name, "config.json")
    COMPONENT_KINDS[class_name].model.check_pretrained(folder, variant=variant)
    return Component(name, class_name, folder, variant)


def _configured(component: Component) -> tuple[str, str, dict[str, Any]]:
    """Name, class and complete configuration of a network."""
    config_class = COMPONENT_KINDS[component.class_name].model.config_class
    return component.name, component.class_name, config_class.from_dict(read_config(component.path)).to_dict()


def _folder(path: Path, name: str, file: str) -> Path:
    """Where a component lies: in a folder of its name, or flat at the root, as the first checkpoints of diffusers do.

    Raises:
        FileNotFoundError: there is neither.
    """
    if (path / name).is_dir():
        return path / name
    if (path / file).is_file():
        return path
    raise FileNotFoundError(f"{path} lacks the component {name}, which its {MODEL_INDEX} names")


def _files(component: Component) -> list[Path]:
    return [component.path / "config.json", *find_weights(component.path, variant=component.variant)]
