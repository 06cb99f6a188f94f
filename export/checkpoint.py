"""A checkpoint in diffusers' layout: where it comes from, what is in it, and whether it can be exported at all."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.reference.checkpoint import find_weights, has_weights, read_config
from safelight.runtime.hub import Selection, download, origin
from safelight.runtime.image_processor import CONFIG as PROCESSOR_CONFIG
from safelight.runtime.image_processor import IMAGE_PROCESSORS
from safelight.runtime.manifest import file_record
from safelight.runtime.model_folder import GRAPH, MODEL_INDEX, check_components, is_checkpoint, lone_network
from safelight.runtime.source import is_hub_id
from safelight.runtime.text_files import read_json_object

from . import pickled
from .families import IN_FOLDERS, pipeline_family
from .fit import check_fit
from .networks import COMPONENT_KINDS, NetworkDescription, describe, network_names

logger = logging.getLogger(__name__)

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
    files: tuple[Path, ...]  # of the checkpoint, that it is read from

    def configuration(self) -> dict[str, Any]:
        """Its configuration, complete with its class's defaults."""
        config_class = COMPONENT_KINDS[self.class_name].model.config_class
        config: dict[str, Any] = config_class.from_dict(read_config(self.path)).to_dict()
        return config


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be exported, as far as can be told without reading its weights."""

    path: Path
    index: Mapping[str, Any]
    components: tuple[Component, ...]
    files: Mapping[str, Path]  # in the export -> in the checkpoint: what is copied as it is
    tokenizers: tuple[str, ...]
    left_out: tuple[str, ...]  # optional components that it has and an export does not
    networks: Mapping[str, tuple[str, ...]]  # component -> those of its networks that are exported
    networks_left_out: tuple[str, ...]  # those that the user left out
    source: dict[str, Any]  # for the manifest


def open_checkpoint(
    source: str | Path,
    *,
    variant: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    safety_checker: bool = True,
    components: Collection[str] | None = None,
    unpickled: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Checkpoint:
    """Finds a checkpoint and looks it over.

    Args:
        source: a folder, or a hub id.
        variant: of the weights, such as "fp16"; networks that do not have it are read without, as in diffusers.
        revision: of a hub id.
        token: for the hub.
        safety_checker: whether to export it, if there is one.
        components: which to export, by their names or those of their networks ("vae", "vae_decoder"); all when None.
        unpickled: an empty folder that networks whose weights are pickled are written into, in safetensors; when None,
            pickles are refused.
        progress: told how much is downloaded, in one line.

    Raises:
        OSError: the hub cannot be reached, refuses, or has more than there is room for.
        FileNotFoundError: there is no such folder or hub id, or a component, a configuration or weights are missing.
        ValueError: the folder is no checkpoint, or one that cannot be exported; the message says why.
    """
    path = Path(source)
    if not path.exists():
        if not is_hub_id(str(source)):
            raise FileNotFoundError(f"{source} does not exist, and is no hub id either (owner/name)")
        path = download(
            str(source),
            Selection(
                variant=variant,
                components=components,
                safety_checker=safety_checker,
                pickles=unpickled is not None,
            ),
            revision=revision,
            token=token,
            exported=False,
            check=lambda index, _: _check_hub_index(str(source), index, safety_checker),
            progress=progress,
        )
    if not path.is_dir():
        raise ValueError(f"{path} is a file; a checkpoint is a folder with a {MODEL_INDEX}")
    if any(path.glob(f"*/{GRAPH}")) and not is_checkpoint(path):
        raise ValueError(f"{path} was exported already: it holds {GRAPH} files")
    index = _index(path)
    classes = _classes(index)
    left_out = _left_out(classes, safety_checker)
    check_index(path, index, left_out)
    exported = {name: class_name for name, class_name in classes.items() if name not in left_out}
    networks = {name: class_name for name, class_name in exported.items() if class_name in COMPONENT_KINDS}
    if not networks:
        raise ValueError(f"{path / MODEL_INDEX} names no network")
    wanted = _wanted(networks, components)
    unwanted = networks.keys() - wanted.keys()
    exported = {name: class_name for name, class_name in exported.items() if name not in unwanted}
    if _SAFETY_CHECKER in exported and _FEATURE_EXTRACTOR not in exported:
        raise ValueError(
            f"{path} has a safety_checker, and no feature_extractor that prepares its input; "
            "--no-safety-checker leaves it out"
        )
    copied = _copied(path, exported)
    opened = _components(path, {name: networks[name] for name in wanted}, exported, variant, unpickled)
    if not unwanted:
        check_fit([(component.name, component.class_name, component.configuration()) for component in opened], index)
    repository, commit = origin(path) or (None, None)
    return Checkpoint(
        path=path,
        index=index,
        components=tuple(opened),
        files=copied,
        tokenizers=tuple(name for name, class_name in exported.items() if class_name in _TOKENIZERS),
        left_out=left_out,
        networks=wanted,
        networks_left_out=tuple(
            network
            for name, class_name in networks.items()
            for network in network_names(class_name, name)
            if network not in wanted.get(name, ())
        ),
        source={
            "id": repository or path.resolve().name,
            "revision": revision,
            "commit": commit,
            "variant": variant,
            "files": {
                str(file.relative_to(path)): file_record(file).sha256
                for component in opened
                for file in component.files
            },
        },
    )


def _wanted(networks: Mapping[str, str], chosen: Collection[str] | None) -> dict[str, tuple[str, ...]]:
    """Component -> the names of its networks that are to be exported.

    Raises:
        ValueError: a name is neither a component's nor a network's.
    """
    names = {name: network_names(class_name, name) for name, class_name in networks.items()}
    if chosen is None:
        return names
    known = {*names, *(network for several in names.values() for network in several)}
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"there is no component {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if not chosen:
        raise ValueError(f"no component was named; there are {', '.join(sorted(known))}")
    wanted = {
        name: several if name in chosen else tuple(network for network in several if network in chosen)
        for name, several in names.items()
    }
    return {name: several for name, several in wanted.items() if several}


def _check_hub_index(repo_id: str, index: Mapping[str, Any], safety_checker: bool) -> None:
    """Refuses what cannot be exported by a hub repository's index alone; a network alone has none."""
    if index:
        check_index(Path(repo_id), index, _left_out(_classes(index), safety_checker))


def _index(path: Path) -> dict[str, Any]:
    """A checkpoint's `model_index.json`, or what would be in that of a network alone.

    Raises:
        ValueError: it is neither.
    """
    if (path / MODEL_INDEX).is_file():
        return read_json_object(path / MODEL_INDEX)
    if alone := lone_network(path):
        name, class_name = alone
        return {"_class_name": class_name, name: ["diffusers", class_name]}
    raise ValueError(f"{path} is no checkpoint: it has no {MODEL_INDEX}")


def check_index(path: Path, index: Mapping[str, Any], left_out: Collection[str] = ()) -> None:
    """Refuses a pipeline that cannot be exported, by its name and before anything of it is read.

    Args:
        path: of the checkpoint, for the message.
        index: its `model_index.json`.
        left_out: components that are not exported.

    Raises:
        ValueError: names the family, and those that can be exported.
    """
    class_name = str(index.get("_class_name"))
    if family := pipeline_family(class_name):
        raise ValueError(f"{path} holds {family} ({class_name}), which cannot be exported; known: {IN_FOLDERS}")
    kinds = {*COMPONENT_KINDS, *_TOKENIZERS, *IMAGE_PROCESSORS}
    for name, component in _classes(index).items():
        if name in left_out or component in kinds or component.endswith("Scheduler"):
            continue
        with _way_out(name, _classes(index)):
            raise ValueError(
                f"{path}: component {name} is a {component}, which cannot be exported yet; "
                f"known: {', '.join(COMPONENT_KINDS)}"
            )
    check_components(path / MODEL_INDEX, {name: value for name, value in index.items() if name not in left_out})


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
def _way_out(name: str, exported: Mapping[str, str]) -> Iterator[None]:
    """Adds to what is wrong with a safety checker, or what it needs, that the rest can do without it."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        if name not in (_SAFETY_CHECKER, _FEATURE_EXTRACTOR) or _SAFETY_CHECKER not in exported:
            raise
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{error}; --no-safety-checker leaves it out") from error


def _copied(path: Path, exported: Mapping[str, str]) -> dict[str, Path]:
    """The files that are copied as they are: those of schedulers and image processors, which must make sense."""
    copied = {}
    for name, class_name in exported.items():
        with _way_out(name, exported):
            if class_name.endswith("Scheduler"):
                copied[f"{name}/{_SCHEDULER_CONFIG}"] = _folder(path, name, _SCHEDULER_CONFIG) / _SCHEDULER_CONFIG
            elif class_name in IMAGE_PROCESSORS:
                folder = _folder(path, name, PROCESSOR_CONFIG)
                IMAGE_PROCESSORS[class_name].from_pretrained(folder)  # which may refuse it
                copied[f"{name}/{PROCESSOR_CONFIG}"] = folder / PROCESSOR_CONFIG
    for file in copied.values():
        read_json_object(file)
    return copied


def _components(
    path: Path,
    networks: Mapping[str, str],
    exported: Mapping[str, str],
    variant: str | None,
    unpickled: Path | None,
) -> list[Component]:
    """The networks, each of which must be there and make sense."""
    folders, components = {}, []
    for name in networks:
        with _way_out(name, exported):
            folders[name] = _folder(path, name, "config.json")
    variants = _variants(path, folders, variant, pickles=unpickled is not None)
    for name, class_name in networks.items():
        with _way_out(name, exported):
            components.append(_component(name, class_name, folders[name], variants[name], unpickled))
    return components


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
        COMPONENT_KINDS[class_name].model.open_weights(unpickled / name)
        return Component(name, class_name, unpickled / name, None, (config, *weights))
    COMPONENT_KINDS[class_name].model.open_weights(folder, variant=variant)
    return Component(name, class_name, folder, variant, (config, *find_weights(folder, variant=variant)))


def descriptions(component: Component, pipeline: Mapping[str, Any]) -> list[NetworkDescription]:
    """The networks that a component is written as; `pipeline` is model_index.json."""
    return describe(component.class_name, component.name, component.configuration(), pipeline)


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
