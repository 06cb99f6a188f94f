"""Which of a repository's files are needed: a choice by their names alone, made before any of them is fetched."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ..manifest import MANIFEST_NAME
from ..model_folder import MODEL_INDEX

#: of a component of diffusers, and of transformers: the stem of its weights, in the order in which they are looked for,
#: and whether the index of shards is looked for before the single file
_SAFETENSORS = (("diffusion_pytorch_model", True), ("model", False))
_PICKLES = (("diffusion_pytorch_model", True), ("pytorch_model", False))
_INDEX = re.compile(r"\.index(\.[\w-]+)?\.json$")
#: the graph of another exporter, and what its weights are called beside it
_GRAPHS = re.compile(r"model\.onnx(_data|\.data|_data_\d+)?|weights\.pb")
#: the classes of components that are no networks, which may lie beside one at the root
_PREPARES = re.compile(r"(Scheduler|Tokenizer(Fast)?|Processor|Extractor)$")
#: components that an export never has
_UNUSED = ("image_encoder",)
_SAFETY_CHECKER = "safety_checker"
#: networks of an export whose component has another name
_PARTS = {"vae_encoder": "vae", "vae_decoder": "vae"}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is wanted of a checkpoint."""

    variant: str | None = None  # of the weights, such as "fp16"; networks that lack it are taken without
    components: Collection[str] | None = None  # networks, such as "unet" and "vae_decoder"; all of them when None
    safety_checker: bool = True  # whether to take it where there is one
    pickles: bool = False  # whether pickled weights are taken where there are no others


def exported_files(listing: Collection[str], recorded: Collection[str] | None) -> list[str]:
    """The files of an exported model.

    Args:
        listing: every file of the repository.
        recorded: those that its manifest names; None when another exporter wrote it, and it has none.

    Raises:
        FileNotFoundError: the repository lacks a file that the manifest names.
    """
    if recorded is None:
        return sorted(name for name in listing if _is_small(name) or _GRAPHS.fullmatch(PurePosixPath(name).name))
    if missing := sorted(set(recorded) - set(listing)):
        raise FileNotFoundError(f"the repository is not whole: it lacks {', '.join(missing[:3])}")
    return sorted({MANIFEST_NAME, *recorded})


def needed_files(listing: Collection[str], index: Mapping[str, Any], selection: Selection | None = None) -> list[str]:
    """The files of a checkpoint that an export reads, and no others.

    Args:
        listing: every file of the repository.
        index: its `model_index.json`; of a network alone, that lies at the root, an empty one.
        selection: all of the plain weights when None.

    Returns:
        Small files (JSON, TXT) of every component, and the weights of the networks that are selected: of the variant,
        or, as diffusers chooses, the plain ones where a network does not have it; safetensors, or pickles where there
        is nothing else and they are allowed.

    Raises:
        FileNotFoundError: a component or its weights are missing, or no network has the variant.
        ValueError: weights are pickled only, and pickles are not allowed; or a selected component is not there.
    """
    selection = selection or Selection()
    places = _places(listing, index, selection)
    needed = {name for name in (MODEL_INDEX,) if name in listing}
    networks = {}
    for component, (folder, files) in places.items():
        needed |= {folder + file for file in files if _is_small(folder + file) and not _INDEX.search(file)}
        if "config.json" in files and (not index or component in networks_of(index)):
            networks[component] = (folder, files)
    wanted = _wanted(networks, selection)
    variant = selection.variant
    if variant is not None and not any(_weights(networks[name][1], variant, selection.pickles) for name in wanted):
        known = sorted({found for name in wanted for found in _variants(networks[name][1])})
        raise FileNotFoundError(
            f"no weights of the variant {variant!r} in {', '.join(map(_called, wanted))}; "
            + (f"there are the variants {', '.join(known)}" if known else "there are no variants")
        )
    for name in wanted:
        folder, files = networks[name]
        chosen = _weights(files, variant, selection.pickles) or _weights(files, None, selection.pickles)
        if not chosen:
            raise _no_weights(name, folder, files)
        needed |= {folder + file for file in chosen}
    return sorted(needed)


def networks_of(index: Mapping[str, Any]) -> dict[str, str]:
    """Component -> class, of the networks that an index names and an export may have."""
    classes = {
        name: str(value[1]) for name, value in index.items() if isinstance(value, list) and value[1:] and value[1]
    }
    return {name: kind for name, kind in classes.items() if name not in _UNUSED and not _PREPARES.search(kind)}


def _places(
    listing: Collection[str], index: Mapping[str, Any], selection: Selection
) -> dict[str, tuple[str, list[str]]]:
    """Component -> its folder, "" at the root, and the names of the files that lie in it."""
    at_root = [name for name in listing if "/" not in name]
    components = [name for name, value in index.items() if isinstance(value, list) and value[1:] and value[1]]
    if not index:
        return {"": ("", at_root)}
    left_out = {*_UNUSED, *(() if selection.safety_checker else (_SAFETY_CHECKER,))}
    places = {}
    for component in components:
        if component in left_out:
            continue
        folder = f"{component}/"
        files = [name.removeprefix(folder) for name in listing if name.startswith(folder)]
        if files:
            places[component] = (folder, [file for file in files if "/" not in file])
        elif any(name.endswith("config.json") for name in at_root):  # as the first checkpoints of diffusers have it
            places[component] = ("", [name for name in at_root if name != MODEL_INDEX])
        else:
            way_out = "; --no-safety-checker leaves it out" if component == _SAFETY_CHECKER else ""
            raise FileNotFoundError(f"the component {component}, which {MODEL_INDEX} names, is missing{way_out}")
    return places


def _wanted(networks: Collection[str], selection: Selection) -> list[str]:
    """The components whose weights are needed."""
    if selection.components is None:
        return list(networks)
    asked = {_PARTS.get(name, name) for name in selection.components}
    if unknown := sorted(asked - set(networks)):
        raise ValueError(f"there is no network {', '.join(unknown)}; there are {', '.join(networks)}")
    return [name for name in networks if name in asked]


def _weights(files: Collection[str], variant: str | None, pickles: bool) -> list[str]:
    """The files of a network's weights of exactly this variant; none where it does not have it."""
    formats = [("safetensors", _SAFETENSORS), *([("bin", _PICKLES)] if pickles else [])]
    for suffix, stems in formats:
        for stem, index_first in stems:
            ways = [_sharded(files, stem, suffix, variant), _single(files, stem, suffix, variant)]
            for found in ways if index_first else reversed(ways):
                if found:
                    return found
    return []


def _single(files: Collection[str], stem: str, suffix: str, variant: str | None) -> list[str]:
    name = f"{stem}{'' if variant is None else f'.{variant}'}.{suffix}"
    return [name] if name in files else []


def _sharded(files: Collection[str], stem: str, suffix: str, variant: str | None) -> list[str]:
    """An index and its shards, whose names may have the variant before the numbers or after them."""
    infix = "" if variant is None else f".{variant}"
    indexes = [f"{stem}.{suffix}.index{infix}.json", f"{stem}.{suffix}{infix}.index.json"]
    found = [name for name in dict.fromkeys(indexes) if name in files]
    numbers, named = r"-\d+-of-\d+", re.escape(infix)
    shard = re.compile(rf"{stem}({named}{numbers}|{numbers}{named})\.{suffix}")
    return [*found[:1], *sorted(name for name in files if shard.fullmatch(name))] if found else []


def _variants(files: Collection[str]) -> Iterator[str]:
    """The variants of a network's weights, whatever their format."""
    stems = "|".join({stem for stem, _ in (*_SAFETENSORS, *_PICKLES)})
    pattern = re.compile(rf"({stems})(-\d+-of-\d+)?\.([\w-]+?)(-\d+-of-\d+)?\.(safetensors|bin)")
    for name in files:
        if match := pattern.fullmatch(name):
            yield match[3]


def _no_weights(name: str, folder: str, files: Collection[str]) -> Exception:
    """What is wrong with a network that has no plain weights of an allowed format."""
    where = _called(name)
    way_out = "; --no-safety-checker leaves it out" if name == _SAFETY_CHECKER else ""
    if pickled := _weights(files, None, pickles=True):
        return ValueError(
            f"{where} has pickles only ({folder}{pickled[0]}), which can run code when they are opened; safelight "
            f"export --allow-pickle reads their tensors and nothing else{way_out}"
        )
    if known := sorted(set(_variants(files))):
        return FileNotFoundError(f"{where} has weights of the variants {', '.join(known)} only: ask for one{way_out}")
    return FileNotFoundError(f"{where} has no weights{way_out}")


def _called(component: str) -> str:
    """What an error calls a component; a network alone has no name."""
    return component or "the network"


def _is_small(name: str) -> bool:
    """Whether a file is a configuration or a vocabulary, at the root or in a component's folder."""
    path = PurePosixPath(name)
    return path.suffix in {".json", ".txt"} and len(path.parts) <= 2
