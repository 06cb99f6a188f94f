"""Whether a graph may be given to an engine: it computes with known operators, on weights that lie beside it.

Engines read whatever file a graph names as its weights, and hand a node of another domain to whoever registered it.
"""

import re
from pathlib import Path

from .onnx_file import ExternalTensor, GraphContents, read_graph

_STANDARD, _MICROSOFT = ("", "ai.onnx"), "com.microsoft"
#: what optimizers and exporters write of ONNX Runtime's own: they compute, and touch nothing else
_MICROSOFT_OPERATORS = frozenset(
    {
        "Attention",
        "BiasAdd",
        "BiasGelu",
        "BiasSplitGelu",
        "DequantizeLinear",
        "DynamicQuantizeMatMul",
        "EmbedLayerNormalization",
        "FastGelu",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "FusedMatMulActivation",
        "Gelu",
        "GemmFastGelu",
        "GroupNorm",
        "GroupQueryAttention",
        "Inverse",
        "MatMulBnb4",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MultiHeadAttention",
        "NhwcConv",
        "NhwcFusedConv",
        "NhwcMaxPool",
        "PackedAttention",
        "PackedMultiHeadAttention",
        "QAttention",
        "QGemm",
        "QLinearAdd",
        "QLinearConcat",
        "QLinearConv",
        "QLinearMul",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "QuantizeLinear",
        "QuickGelu",
        "RotaryEmbedding",
        "SkipGroupNorm",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "TransposeMatMul",
        "Trilu",
    }
)
#: holds, or names, an engine that was compiled from a graph: machine code, for the providers that read it by this name
_COMPILED = "EPContext"

_EXTERNAL_KEYS = ("location", "offset", "length", "checksum")
#: characters that are no part of a file's name everywhere; "*" also begins what ONNX Runtime takes for an address in
#: its own memory: */_ORT_MEM_ADDR_/*
_LOCATION = re.compile(r'[^\x00-\x1f\\:*?"<>|]+')
_NO_NAMES = ("", ".", "..")
_NUMBER = re.compile("[0-9]{1,18}")
_SHOWN = 60  # characters of what somebody else wrote


def check_graph(path: Path) -> set[Path]:
    """Refuses a graph that is not safe to open.

    Args:
        path: of an ONNX file.

    Returns:
        The files that its weights lie in, all below its folder by their names; where links lead was not looked at.
        They have every byte that the graph asks for.

    Raises:
        FileNotFoundError: a file of its weights is not there.
        ValueError: it is no ONNX graph, or one that asks for other files, for bytes that are not there, or for unknown
            operators; the message names them.
    """
    contents = read_graph(path)
    try:
        _check_operators(contents)
        return _weight_files(contents, path.parent)
    except ValueError as error:
        raise ValueError(f"{path} is refused: {error}") from error


def _check_operators(contents: GraphContents) -> None:
    for domain, name in sorted(contents.operators):
        spelled = f"{domain}.{name}"[:_SHOWN] if domain else name[:_SHOWN]
        if name == _COMPILED:
            raise ValueError(f"it has a node {spelled}, which loads machine code; export the model itself")
        if domain not in _STANDARD and not (domain == _MICROSOFT and name in _MICROSOFT_OPERATORS):
            raise ValueError(f"it has a node {spelled}, which is an operator neither of ONNX nor known here")


def _weight_files(contents: GraphContents, folder: Path) -> set[Path]:
    sizes: dict[str, int] = {}  # of the files at the locations, in bytes
    for tensor in contents.external:
        if unknown := [key for key in tensor.entries if key not in _EXTERNAL_KEYS]:
            raise ValueError(f"{tensor.name} has external data with an unknown entry {unknown[0][:_SHOWN]!r}")
        location = tensor.entries.get("location", "")
        if location not in sizes:
            sizes[location] = _size(tensor.name, location, folder)
        if tensor.length is None:
            raise ValueError(f"{tensor.name} has external data, and a dtype that has no size")
        offset, length = _number(tensor, "offset", 0), _number(tensor, "length", tensor.length)
        if length != tensor.length:
            raise ValueError(f"{tensor.name} has {length} bytes of external data, and {tensor.length} by its shape")
        if offset + length > sizes[location]:
            raise ValueError(
                f"{tensor.name} is the bytes from {offset} to {offset + length} of {location}, "
                f"which has {sizes[location]}"
            )
    return {folder / location for location in sizes}


def _size(tensor: str, location: str, folder: Path) -> int:
    """The size of the file at a location, once that is a plain path."""
    if not _LOCATION.fullmatch(location) or any(part in _NO_NAMES for part in location.split("/")):
        raise ValueError(
            f"{tensor} has external data at {location[:_SHOWN]!r}, expected the path of a file below the graph's folder"
        )
    path = folder / location
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not whole: {location}, with weights of the graph in it, is missing")
    if not path.is_file():
        raise ValueError(f"{tensor} has external data at {location}, which is no regular file")
    return path.stat().st_size


def _number(tensor: ExternalTensor, key: str, default: int) -> int:
    text = tensor.entries.get(key)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{tensor.name} has external data of {key} {text[:_SHOWN]!r}, expected a number of bytes")
    return int(text)
