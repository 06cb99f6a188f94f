"""From a single file to a folder in diffusers' layout, one network at a time."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safelight.reference.checkpoint import refuse_quantized
from safelight.reference.safetensors_file import SafetensorsFile, TensorEntry
from safelight.runtime.model_folder import MODEL_INDEX

from ..pickled import SUFFIXES as PICKLES
from ..pickled import read_pickle, tensors_of
from ..weights import write_safetensors
from .contents import PREDICTION_TYPES, Contents, contents
from .layout import Network, Shapes
from .tokenizer import write_tokenizer

_SAFETENSORS = ".safetensors"
_QUANTIZED = ".gguf"


@dataclass(frozen=True)
class OriginalFile:
    """A single file that was opened: what is told of its tensors, and a way to read each."""

    path: Path
    shapes: Shapes
    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], Tensor]
    global_step: int | None = None  # of the training, in files in PyTorch's own format


def open_file(path: Path, *, allow_pickle: bool = False) -> OriginalFile:
    """A single file's names and shapes, and a way to its tensors.

    Raises:
        ValueError: the file is of another format, pickled without leave, refused, or broken.
    """
    if path.suffix == _SAFETENSORS:
        file = SafetensorsFile(path)
        return OriginalFile(path, *_described(file.tensors), file.read)
    if path.suffix in PICKLES:
        if not allow_pickle:
            raise ValueError(
                f"{path} is a pickle, which can run code when it is opened, and is refused; --allow-pickle reads its "
                "tensors and nothing else"
            )
        tensors, step = tensors_of(read_pickle(path))
        return OriginalFile(path, *_described(tensors), tensors.__getitem__, step)
    if path.suffix == _QUANTIZED:
        raise ValueError(f"{path}: quantized weights are not supported")
    raise ValueError(
        f"{path} is a file of an unknown kind; a checkpoint is a folder with a {MODEL_INDEX}, or a single file that "
        f"ends in {_SAFETENSORS}, or with --allow-pickle in {', '.join(PICKLES)}"
    )


def identify(file: OriginalFile, *, prediction_type: str | None = None) -> Contents:
    """What a file holds.

    Args:
        file: that was opened.
        prediction_type: "epsilon" or "v_prediction"; inferred when None.

    Raises:
        ValueError: it holds nothing that can be exported, its tensors are not all known or not all there, or they are
            quantized.
    """
    if prediction_type not in (None, *PREDICTION_TYPES):
        raise ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")
    try:
        found = contents(file.shapes, prediction_type=prediction_type, global_step=file.global_step)
    except ValueError as error:
        raise ValueError(f"{file.path} {error}") from error
    for network in found.networks:
        for piece in network.pieces.values():
            refuse_quantized(file.path, piece.key, file.dtypes[piece.key])
    return found


def unpack(
    file: OriginalFile, found: Contents, folder: Path, *, progress: Callable[[str], None] = lambda _: None
) -> None:
    """Writes what a file holds as a folder in diffusers' layout.

    Args:
        file: that was opened.
        found: in it, from `identify`.
        folder: is made, or is empty.
        progress: told one line at each network.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for network in found.networks:
        progress(f"{network.name}: unpacking")
        _write_network(file, network, folder / network.name, progress)
    for name, pad_token in found.pad_tokens.items():
        write_tokenizer(folder / name, pad_token=pad_token)
    _write_json(folder / "scheduler" / "scheduler_config.json", found.scheduler)
    if found.image_processor:
        _write_json(folder / "feature_extractor" / "preprocessor_config.json", found.image_processor)
    _write_json(folder / MODEL_INDEX, found.index)


def _write_network(file: OriginalFile, network: Network, folder: Path, progress: Callable[[str], None]) -> None:
    folder.mkdir()
    _write_json(folder / "config.json", network.config)
    stem = "diffusion_pytorch_model" if "_class_name" in network.config else "model"
    entries = {
        name: (file.dtypes[piece.key], tuple(piece.take(torch.empty(file.shapes[piece.key], device="meta")).shape))
        for name, piece in network.pieces.items()
    }

    def read(name: str) -> Tensor:
        piece = network.pieces[name]
        return piece.take(file.read(piece.key))

    write_safetensors(folder / f"{stem}{_SAFETENSORS}", entries, read, progress=progress)


def _described(tensors: Mapping[str, Tensor | TensorEntry]) -> tuple[Shapes, Mapping[str, torch.dtype]]:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return shapes, {name: tensor.dtype for name, tensor in tensors.items()}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
