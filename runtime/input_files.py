"""The files that the command makes a picture from: read, and known again by their contents."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .backends import Array
from .image_input import open_image
from .manifest import file_record
from .textual_inversion import embedding_file

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

#: parameters that are files of arrays
ARRAYS = ("latents", "prompt_embeds", "negative_prompt_embeds", "depth_map")
#: parameters that are pictures
PICTURES = ("image", "mask_image")
#: the parameter that is a list of files, each with a word that the text encoder learns
EMBEDDINGS = "textual_inversions"
#: the parameter that says what was in the files: path -> sha256
CONTENTS = "input_sha256"


def read_array(path: str | Path) -> Array:
    """The array of a `.npy` file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, is damaged, or holds Python objects, which are pickled.
    """
    with Path(path).open("rb") as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except (ValueError, MemoryError) as error:  # the latter: a header that promises terabytes
            raise ValueError(f"{path} cannot be read as a .npy file of numbers: {error}") from error


def read_picture(path: str | Path) -> "Image | Array":
    """The picture of a file, or the latents of a `.npy` file; raises as `open_image` and `read_array` do."""
    return read_array(path) if Path(path).suffix.lower() == ".npy" else open_image(path)


def contents(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The sha256 of each file that the parameters name, by its path; what is not there is left to those who read it.

    Raises:
        ValueError: a parameter that must name a file does not.
    """
    files = {path: embedding_file(path) if name == EMBEDDINGS else Path(path) for name, path in _files(parameters)}
    return {path: file_record(file).sha256 for path, file in files.items() if file.is_file()}


def check_contents(picture: Path, recorded: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Makes sure that what a picture was made from is there, and warns where it has changed.

    Args:
        picture: that is to be made again.
        recorded: its parameters.
        parameters: the same, but for what the user gave in their place and the `contents` of now.

    Raises:
        FileNotFoundError: a file is not there.
    """
    before, now = (dict(each.get(CONTENTS) or {}) for each in (recorded, parameters))
    named = {path for _, path in _files(recorded)}
    for name, path in _files(parameters):
        if path in named and path not in now:
            raise FileNotFoundError(f"{picture} was made from {path}, which is not there: give it with {option(name)}")
        if path in now and before.get(path, now[path]) != now[path]:
            logger.warning("%s is not what it was when %s was made: expect another picture", path, picture)


def option(parameter: str) -> str:
    """The command's option for a parameter."""
    own = {"mask_image": "--mask", EMBEDDINGS: "--textual-inversion"}
    return own.get(parameter, f"--{parameter.replace('_', '-')}")


def _files(parameters: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The parameters that are files, each with its path."""
    named = [(name, parameters[name]) for name in (*ARRAYS, *PICTURES) if parameters.get(name) is not None]
    named += [(EMBEDDINGS, path) for path in parameters.get(EMBEDDINGS, ())]
    for name, path in named:
        if not isinstance(path, str):
            raise ValueError(f"{option(name)} must name a file, got {path!r}")
        yield name, path
