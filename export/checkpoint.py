"""A checkpoint in diffusers' layout: where it comes from, what is in it, and whether it can be exported at all."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.reference.checkpoint import find_weights, has_weights
from safelight.runtime.manifest import file_record
from safelight.runtime.model_folder import GRAPH, MODEL_INDEX, read_json_object
from safelight.runtime.source import download, is_hub_id

from . import pickled
from .families import SUPPORTED, pipeline_family
from .networks import COMPONENT_KINDS

logger = logging.getLogger(__name__)

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
    files: tuple[Path, ...]  # of the checkpoint, that it is read from


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
    unpickled: Path | None = None,
) -> Checkpoint:
    """Finds a checkpoint and looks it over.

    Args:
        source: a folder, or a hub id.
        variant: of the weights, such as "fp16"; networks that do not have it are read without, as in diffusers.
        revision: of a hub id.
        token: for the hub.
        unpickled: an empty folder that networks whose weights are pickled are written into, in safetensors; when None,
            pickles are refused.

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
    check_index(path, index)
    networks: dict[str, str] = {}
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
        else:
            networks[name] = class_name
    for file in copied.values():
        read_json_object(file)
    if not networks:
        raise ValueError(f"{path / MODEL_INDEX} names no network")
    folders = {name: _folder(path, name, "config.json") for name in networks}
    variants = _variants(path, folders, variant, pickles=unpickled is not None)
    components = tuple(
        _component(name, class_name, folders[name], variants[name], unpickled) for name, class_name in networks.items()
    )
    return Checkpoint(
        path=path,
        index=index,
        components=components,
        files=copied,
        tokenizers=tuple(tokenizers),
        left_out=tuple(left_out),
        source={
            "id": str(source) if is_hub_id(str(source)) and not Path(source).exists() else path.resolve().name,
            "revision": revision,
            "variant": variant,
            "files": {
                str(file.relative_to(path)): file_record(file).sha256
                for component in components
                for file in component.files
            },
        },
    )


def check_index(path: Path, index: Mapping[str, Any]) -> None:
    """Refuses a pipeline that cannot be exported, by its name and before anything of it is read.

    Args:
        path: of the checkpoint, for the message.
        index: its `model_index.json`.

    Raises:
        ValueError: names the family, and those that can be exported.
    """
    class_name = str(index.get("_class_name"))
    if family := pipeline_family(class_name):
        raise ValueError(f"{path} holds {family} ({class_name}), which cannot be exported; known: {SUPPORTED}")
    for name, component in _classes(index).items():
        known = component in COMPONENT_KINDS or component in _TOKENIZERS or component.endswith("Scheduler")
        if not known and name not in _OPTIONAL:
            raise ValueError(
                f"{path}: component {name} is a {component}, which cannot be exported yet; "
                f"known: {', '.join(COMPONENT_KINDS)}"
            )


def _classes(index: Mapping[str, Any]) -> dict[str, str]:
    """Component name -> class name, of the components that the index names with a class."""
    pairs = {name: value for name, value in index.items() if isinstance(value, list)}
    return {name: str(value[1]) for name, value in pairs.items() if len(value) == 2 and value[1] is not None}


def _variants(path: Path, folders: Mapping[str, Path], variant: str | None, *, pickles: bool) -> dict[str, str | None]:
    """The variant of each network: the one that was asked for where it is there, as diffusers chooses.

    Raises:
        FileNotFoundError: no network has it.
    """
    if variant is None:
        return dict.fromkeys(folders, None)
    without = [
        name
        for name, folder in folders.items()
        if not has_weights(folder, variant=variant) and not (pickles and pickled.weight_files(folder, variant=variant))
    ]
    if len(without) == len(folders):
        raise FileNotFoundError(f"{path} has no weights of the variant {variant!r} in {', '.join(without)}")
    if without:
        logger.warning("%s: no variant %r of %s, which is read without", path.name, variant, ", ".join(without))
    return {name: None if name in without else variant for name in folders}


def _component(name: str, class_name: str, folder: Path, variant: str | None, unpickled: Path | None) -> Component:
    """One network, whose configuration and weights must be there and make sense."""
    config = folder / "config.json"
    weights = [] if has_weights(folder, variant=variant) else pickled.weight_files(folder, variant=variant)
    if unpickled is not None and weights:
        pickled.convert(weights, config, unpickled / name)
        COMPONENT_KINDS[class_name].model.check_pretrained(unpickled / name)
        return Component(name, class_name, unpickled / name, None, (config, *weights))
    COMPONENT_KINDS[class_name].model.check_pretrained(folder, variant=variant)
    return Component(name, class_name, folder, variant, (config, *find_weights(folder, variant=variant)))


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
