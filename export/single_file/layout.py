"""A tensor of the original layout and what becomes of it in diffusers' layout, and how such tables are written."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

#: the shape of every tensor of a file, by its name there
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Piece:
    """A tensor of the file, or a part of it, as diffusers' layout has it."""

    key: str  # in the file
    third: int | None = None  # query, key and value lie one above the other: which of them, 0 to 2
    transposed: bool = False
    linear: bool = False  # a convolution of one pixel, which diffusers has as a linear layer

    def take(self, tensor: Tensor) -> Tensor:
        """The piece of the tensor that is called `key`."""
        if self.third is not None:
            tensor = tensor.chunk(3)[self.third]
        if self.linear:
            tensor = tensor.reshape(tensor.shape[:2])
        return tensor.T if self.transposed else tensor


Pieces = dict[str, Piece]


@dataclass(frozen=True)
class Network:
    """A network of a file: the folder that it gets, its configuration, and its tensors by diffusers' names."""

    name: str
    class_name: str
    config: Mapping[str, Any]
    pieces: Mapping[str, Piece]


def layers(
    original: str, ours: str, names: Mapping[str, str], parameters: Sequence[str] = ("weight", "bias")
) -> Pieces:
    """The pieces of layers that the two layouts spell differently.

    Args:
        original: what comes before each name in the file.
        ours: what comes before each name in diffusers' layout.
        names: of the layers: the file's -> diffusers'.
        parameters: of every layer.
    """
    return {
        f"{ours}{name}.{parameter}": Piece(f"{original}{spelled}.{parameter}")
        for spelled, name in names.items()
        for parameter in parameters
    }


def alike(names: Iterable[str]) -> dict[str, str]:
    """Layers that both layouts spell alike."""
    return {name: name for name in names}


def shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    """The shape of a tensor that the file must have.

    Raises:
        ValueError: it does not.
    """
    if key not in shapes:
        raise ValueError(f"lacks the tensor {key}")
    return shapes[key]


def count(shapes: Shapes, pattern: str) -> int:
    """How many of the tensors named by a pattern there are: `{}` stands for 0, 1, 2 ... without a gap."""
    number = 0
    while pattern.format(number) in shapes:
        number += 1
    return number
