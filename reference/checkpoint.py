"""Reading a component's folder of a checkpoint: `config.json` and safetensors, and nothing that could run code.

A folder of a checkpoint as diffusers and transformers write it::

    unet/config.json
    unet/diffusion_pytorch_model.safetensors          or model.safetensors
    unet/diffusion_pytorch_model.fp16.safetensors     variant="fp16"
    unet/diffusion_pytorch_model.safetensors.index.json and the shards that it names
    unet/diffusion_pytorch_model.safetensors.index.fp16.json, or .safetensors.fp16.index.json as diffusers once had it
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .json_file import read_json_object
from .safetensors_file import SafetensorsFile

#: what diffusers calls its weights and their index, in the order in which it looks for them, and what transformers does
_WEIGHTS = (
    "diffusion_pytorch_model.safetensors.index{}.json",
    "diffusion_pytorch_model.safetensors{}.index.json",
    "diffusion_pytorch_model{}.safetensors",
    "model{}.safetensors",
    "model.safetensors.index{}.json",
)
#: of files that are pickles, which can run code when they are opened
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
_NARROWEST = torch.float16
_NAMED_IN_ERRORS = 5


def component_folder(folder: str | Path, subfolder: str | None = None) -> Path:
    """The folder of one network, which has a `config.json`.

    Args:
        folder: a component's folder, or with `subfolder` the checkpoint that holds it.
        subfolder: the component's name, such as "unet".

    Raises:
        FileNotFoundError: it is no folder, or has no `config.json`.
    """
    path = Path(folder) if subfolder is None else Path(folder) / subfolder
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; expected one with config.json and safetensors weights")
    if not (path / "config.json").is_file():
        if (path / "model_index.json").is_file():
            raise FileNotFoundError(f"{path} is a whole pipeline; name one of its networks, such as subfolder='unet'")
        raise FileNotFoundError(f"{path} has no config.json, so it is no network of a diffusers checkpoint")
    return path


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of a component's `config.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a JSON object, or a Git LFS pointer.
    """
    return read_json_object(component_folder(folder) / "config.json")


def find_weights(folder: Path, *, variant: str | None = None) -> list[Path]:
    """The safetensors files that together hold a component's weights: one, or the shards that an index names.

    Args:
        folder: a component's folder.
        variant: such as "fp16", of files named `diffusion_pytorch_model.fp16.safetensors`.

    Raises:
        FileNotFoundError: there are none, or a shard is missing.
        ValueError: there is only pickle, which is refused, or the index is broken.
    """
    if (path := _weights(folder, variant)) is not None:
        return _shards(path) if path.suffix == ".json" else [path]
    infix = _infix(variant)
    expected = f"diffusion_pytorch_model{infix}.safetensors or model{infix}.safetensors"
    if present := sorted(path.name for path in folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder} has no {expected}, only {abbreviated(present)}; is variant={variant!r} meant?"
        )
    if pickles := sorted(path.name for suffix in PICKLE_SUFFIXES for path in folder.glob(f"*{suffix}")):
        raise ValueError(
            f"{folder / pickles[0]} is a pickle, which can run code when it is opened, and is refused; convert it: "
            "load it with diffusers or transformers and call save_pretrained(folder, safe_serialization=True), "
            "or export it with --allow-pickle, which reads tensors and nothing else"
        )
    raise FileNotFoundError(f"{folder} has no weights; expected {expected}")


def has_weights(folder: Path, *, variant: str | None = None) -> bool:
    """Whether a component's folder has safetensors weights of a variant, or an index of them."""
    return _weights(folder, variant) is not None


class Weights(Protocol):
    """The weights of a network by its own names; each is read when it is asked for."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of every weight."""
        ...

    def __getitem__(self, name: str) -> Tensor:
        """One weight, on the CPU."""
        ...


class CheckpointWeights:
    """The weights that lie in a checkpoint's files, exactly those that a network has.

    Each is read from its file when it is asked for, into memory of its own, so that no more than one need be in memory.
    """

    def __init__(
        self,
        files: Sequence[Path],
        shapes: Mapping[str, Sequence[int]],
        *,
        rename: Callable[[str], str] = lambda name: name,
        ignored: Collection[str] = (),
    ) -> None:
        """Looks at the headers.

        Args:
            files: safetensors files, from `find_weights`.
            shapes: of every parameter of the network, by its name.
            rename: gives the network's name for the file's.
            ignored: parameters, by the network's spelling, that a file may have and the network does not need.

        Raises:
            ValueError: tensors are missing, surplus, misshapen or quantized, or a file is broken; the message names
                them.
        """
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        found = [(file, spelled, rename(spelled)) for file in map(SafetensorsFile, files) for spelled in file.tensors]
        found = [entry for entry in found if entry[2] not in ignored]
        place = str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} shards)"
        _check(place, [(spelled, name, file.tensors[spelled].shape) for file, spelled, name in found], shapes)
        for file, spelled, _ in found:
            refuse_quantized(file.path, spelled, file.tensors[spelled].dtype)
        self._places = {name: (file, spelled) for file, spelled, name in found}

    def __getitem__(self, name: str) -> Tensor:
        """One weight, in the file's dtype.

        A 1x1 convolution's weight where a linear layer's is expected (old VAE attention) loses its last two
        dimensions, which makes them the same thing.

        Raises:
            KeyError: the network has none of this name.
            ValueError: the file is not what it was when its header was read.
        """
        file, spelled = self._places[name]
        return file.read(spelled).reshape(self.shapes[name])


def _check(place: str, found: Iterable[tuple[str, str, tuple[int, ...]]], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raises ValueError unless the tensors are those of `shapes`, each once."""
    seen: set[str] = set()
    surplus, misshapen = [], []
    for spelled, name, shape in found:
        if name not in shapes or name in seen:
            surplus.append(spelled)
        elif shape not in (tuple(shapes[name]), (*shapes[name], 1, 1)):
            misshapen.append(f"{spelled} is {list(shape)} and should be {list(shapes[name])}")
        seen.add(name)
    missing = [name for name in shapes if name not in seen]
    kinds = {"missing": missing, "surplus": surplus, "misshapen": misshapen}
    faults = [f"{len(names)} {kind}: {abbreviated(names)}" for kind, names in kinds.items() if names]
    if faults:
        raise ValueError(f"{place} does not hold the tensors that its config.json describes; {'; '.join(faults)}")


def _weights(folder: Path, variant: str | None) -> Path | None:
    """The file of a component's weights, or the index of their shards."""
    candidates = (folder / name.format(_infix(variant)) for name in _WEIGHTS)
    return next((path for path in candidates if path.is_file()), None)


def _infix(variant: str | None) -> str:
    return "" if variant is None else f".{variant}"


def _shards(index: Path) -> list[Path]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map")
    shards = []
    for name in sorted({str(name) for name in weight_map.values()}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names {name!r}, which is not a safetensors file beside it")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index} names {name}, which is not there")
        shards.append(index.parent / name)
    return shards


def refuse_quantized(path: Path, name: str, dtype: torch.dtype) -> None:
    """Raises ValueError where a tensor is of integers, or of floating-point numbers of less than 16 bits."""
    if not dtype.is_floating_point or dtype.itemsize < _NARROWEST.itemsize:
        raise ValueError(f"{path}: {name} is {dtype}; quantized weights are not supported")


def abbreviated(names: Sequence[str]) -> str:
    """The first few of some names, for an error."""
    shown = ", ".join(names[:_NAMED_IN_ERRORS])
    return shown if len(names) <= _NAMED_IN_ERRORS else f"{shown}, ..."


__all__ = [
    "PICKLE_SUFFIXES",
    "CheckpointWeights",
    "Weights",
    "abbreviated",
    "component_folder",
    "find_weights",
    "has_weights",
    "read_config",
    "refuse_quantized",
]
