"""Weights in PyTorch's pickle format, read where a user allows it, by torch's unpickler that makes only tensors."""

import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safelight.reference.regular_file import open_regular_file
from safelight.runtime.text_files import read_json_object

from .weights import write_safetensors

#: how the names of files in the pickle format end
SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")

#: what diffusers calls its pickled weights and their index, and what transformers does
_WEIGHTS = (
    "diffusion_pytorch_model.bin.index{}.json",
    "diffusion_pytorch_model.bin{}.index.json",
    "diffusion_pytorch_model{}.bin",
    "pytorch_model{}.bin",
    "pytorch_model.bin.index{}.json",
)


def read_pickle(path: Path) -> dict[str, Any]:
    """What a file in PyTorch's format holds, memory-mapped where the format allows it.

    Raises:
        ValueError: the file asks for anything but tensors and plain values, of which nothing is run; or it is broken,
            or not a dictionary.
    """
    open_regular_file(path).close()  # which may refuse it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of instructions that the unpickler might refuse: if it does, it says so
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {named[1]}" if named else "it is no file of tensors"
        raise ValueError(f"{path} is refused, and nothing of it was run: {reason}") from error
    except Exception as error:  # whatever the unpickler stumbles over
        raise ValueError(f"{path} is truncated or corrupt; download it again ({type(error).__name__})") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path} holds a {type(contents).__name__}; expected tensors by their names")
    return contents


def tensors_of(contents: dict[str, Any]) -> tuple[dict[str, Tensor], int | None]:
    """The tensors of a file by their names, and the training step that some files have beside them.

    Args:
        contents: of a file; where it has a `state_dict`, that is taken, as diffusers does.
    """
    step = None
    while isinstance(contents.get("state_dict"), dict):
        step = contents.get("global_step", step)
        contents = contents["state_dict"]
    step = contents.get("global_step", step)
    tensors = {name: value for name, value in contents.items() if isinstance(value, Tensor)}
    return tensors, step if isinstance(step, int) else None


def weight_files(folder: Path, *, variant: str | None = None) -> list[Path]:
    """The pickled files that together hold a component's weights: one, or the shards that an index names, or none.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: the index is broken.
    """
    infix = "" if variant is None else f".{variant}"
    found = next((path for name in _WEIGHTS if (path := folder / name.format(infix)).is_file()), None)
    if found is None or found.suffix != ".json":
        return [found] if found else []
    weight_map = read_json_object(found).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{found} has no weight_map")
    shards = []
    for name in sorted({str(name) for name in weight_map.values()}):
        if Path(name).name != name or not (folder / name).is_file():
            raise FileNotFoundError(f"{found} names {name}, which is not there")
        shards.append(folder / name)
    return shards


def convert(weights: Sequence[Path], config: Path, target: Path) -> None:
    """Writes a component's folder anew, with safetensors in place of pickled weights.

    Args:
        weights: pickled files.
        config: the component's `config.json`.
        target: the new folder, which is made.

    Raises:
        ValueError: a file is refused or broken; see `read_pickle`.
    """
    target.mkdir()
    shutil.copyfile(config, target / "config.json")
    tensors: dict[str, Tensor] = {}
    for file in weights:
        tensors |= tensors_of(read_pickle(file))[0]
    entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_safetensors(target / "model.safetensors", entries, tensors.__getitem__)
