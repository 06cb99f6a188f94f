"""A checkpoint in diffusers' layout: where it comes from, what is in it, and whether it can be exported at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.reference.checkpoint import find_weights, read_config
from safelight.runtime.manifest import file_record
from safelight.runtime.model_folder import GRAPH, MODEL_INDEX, read_json_object
from safelight.runtime.source import download, is_hub_id

from .fit import check_fit
from .networks import COMPONENT_KINDS

_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_SCHEDULER_CONFIG = "scheduler_config.json"
_PROCESSOR_CONFIG = "preprocessor_config.json"
#: parts of a checkpoint that the picture does not need
_OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")


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
    source: str | Path, *, variant: str | None = None, revision: str | None = None, token: str | None = None
) -> Checkpoint:
    """Finds a checkpoint and looks it over.

    Args:
        source: a folder, or a hub id.
        variant: of the weights, such as "fp16".
        revision: of a hub id.
        token: for the hub.

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
    tokenizers, left_out = [], []
    copied: dict[str, Path] = {}
    for name, class_name in _classes(index).items():
        if class_name.startswith("DPT") and name == "feature_extractor":
            copied[f"{name}/{_PROCESSOR_CONFIG}"] = _folder(path, name, _PROCESSOR_CONFIG) / _PROCESSOR_CONFIG
        elif name in _OPTIONAL:
            left_out.append(name)
        elif class_name.endswith("Scheduler"):
            copied[f"{name}/{_SCHEDULER_CONFIG}"] = _folder(path, name, _SCHEDULER_CONFIG) / _SCHEDULER_CONFIG
        elif class_name in _TOKENIZERS:
            tokenizers.append(name)
        elif class_name in COMPONENT_KINDS:
            components.append(_component(path, name, class_name, variant))
        else:
            raise ValueError(
                f"{path}: component {name} is a {class_name}, which cannot be exported yet; "
                f"known: {', '.join(COMPONENT_KINDS)}"
            )
    for file in copied.values():
        read_json_object(file)
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
        left_out=tuple(left_out),
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
