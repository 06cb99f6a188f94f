"""What is in an ONNX file, as far as an engine would open or run it: its operators, and the weights in other files.

The file is a protocol buffer, of which this reads the wire format (protobuf.dev/programming-guides/encoding) with the
numbers that onnx.proto gives to the fields. It takes milliseconds, needs no onnx package, and believes nothing: what a
lenient reader might take for something else is refused.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

_LARGEST_FILE = 2**31 - 1  # bytes, of any protocol buffer
_LARGEST_TAG = 2**32 - 1
_LARGEST_SIZE = 2**63 - 1
_MOST_DEPTH = 32  # of graphs within graphs, at three messages each: protobuf stops at a hundred messages
_MOST_DIMENSIONS = 64
_SHORT = 64  # bytes
# so that a file of small pieces does not become much more in memory than it is on disk
_MOST_TENSORS, _MOST_OPERATORS = 100_000, 1000

#: TensorProto.DataType -> bits of an element; 0 (undefined) and 8 (strings) have no size
_BITS = {
    **dict.fromkeys((25, 26), 2),
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((27, 28), 6),
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
}


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose bytes lie in another file."""

    name: str
    entries: dict[str, str]  # as the graph has them: "location", "offset", "length", ...
    length: int | None  # in bytes, by dtype and shape; None where the dtype has no size


@dataclass(frozen=True)
class GraphContents:
    """Of a graph and all graphs within it."""

    operators: set[tuple[str, str]] = field(default_factory=set)  # (domain, name) of every node
    external: list[ExternalTensor] = field(default_factory=list)


def read_graph(path: Path) -> GraphContents:
    """Reads an ONNX file.

    Raises:
        ValueError: it is none; or it holds functions or training graphs, which an inference needs none of.
    """
    size = path.stat().st_size
    if not 0 < size <= _LARGEST_FILE:
        raise ValueError(f"{path} is no ONNX graph: it has {size} bytes, expected 1 to {_LARGEST_FILE}")
    # mapped, for weights within the graph are skipped: pages that nobody touches are never in memory
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(data)
        try:
            reader.model()
        except IndexError as error:
            raise ValueError(f"{path} is no ONNX graph: it ends within a field") from error
        except ValueError as error:
            raise ValueError(f"{path} is no ONNX graph that can be used: {error}") from error
        return reader.contents


def border_dtypes(path: Path) -> set[int]:
    """The numbers that `TensorProto.DataType` gives to the dtypes of a graph's own inputs and outputs.

    Args:
        path: of an ONNX file that `read_graph` reads.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = [(0, len(data))]
        for tags in ((_GRAPH,), (_INPUT, _OUTPUT), (_TYPE,), (_TENSOR_TYPE,)):
            found = [(a, b) for begin, end in found for tag, a, b in _fields(data, begin, end) if tag in tags]
        return {value for begin, end in found for tag, value, _ in _fields(data, begin, end) if tag == _ELEMENT_TYPE}


def _integer(number: int) -> int:
    """The tag of a field that holds an integer."""
    return number << 3


def _bytes(number: int) -> int:
    """The tag of a field that holds a message, a string, bytes, or packed integers."""
    return number << 3 | 2


# of ModelProto
_GRAPH, _TRAINING, _FUNCTION = _bytes(7), _bytes(20), _bytes(25)
# of GraphProto
_NODE, _INITIALIZER, _SPARSE_INITIALIZER = _bytes(1), _bytes(5), _bytes(15)
_INPUT, _OUTPUT = _bytes(11), _bytes(12)
# of ValueInfoProto, and of the TypeProto and TypeProto.Tensor within
_TYPE, _TENSOR_TYPE, _ELEMENT_TYPE = _bytes(2), _bytes(1), _integer(1)
# of NodeProto
_OPERATOR, _ATTRIBUTE, _DOMAIN = _bytes(4), _bytes(5), _bytes(7)
# of AttributeProto: one, and several
_TENSOR, _SUBGRAPH, _SPARSE_TENSOR = _bytes(5), _bytes(6), _bytes(22)
_TENSORS, _SUBGRAPHS, _SPARSE_TENSORS = _bytes(10), _bytes(11), _bytes(23)
# of SparseTensorProto
_VALUES, _INDICES = _bytes(1), _bytes(2)
# of TensorProto
_SIZE, _SIZES, _DTYPE, _NAME = _integer(1), _bytes(1), _integer(2), _bytes(8)
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = _bytes(9), _bytes(13), _integer(14)
# of StringStringEntryProto
_KEY, _VALUE = _bytes(1), _bytes(2)


class _Reader:
    """Walks over the bytes of a file, of which only names are copied; messages are given by where they begin and end.

    A message that may occur once is refused when it occurs twice: readers of protocol buffers merge the two.
    """

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.contents = GraphContents()
        self._plain: set[bytes] = set()  # short attributes without tensors and graphs: most nodes have another's

    def model(self) -> None:
        """Reads a ModelProto, which is the whole file."""
        graphs = 0
        for tag, start, stop in _fields(self.data, 0, len(self.data)):
            if tag == _GRAPH:
                graphs += 1
                self._graph(start, stop, depth=1)
            elif tag == _FUNCTION:
                raise ValueError("it has functions of its own; onnx.inliner.inline_local_functions takes them out")
            elif tag == _TRAINING:
                raise ValueError("it has graphs for training; clear its training_info")
        if graphs != 1:
            raise ValueError(f"it has {graphs} graphs")

    def _graph(self, begin: int, end: int, depth: int) -> None:
        if depth > _MOST_DEPTH:
            raise ValueError(f"its graphs are nested more than {_MOST_DEPTH} deep")
        for tag, start, stop in _fields(self.data, begin, end):
            if tag == _NODE:
                self._node(start, stop, depth)
            elif tag == _INITIALIZER:
                self._tensor(start, stop)
            elif tag == _SPARSE_INITIALIZER:
                self._sparse_tensor(start, stop)

    def _node(self, begin: int, end: int, depth: int) -> None:
        domain = operator = b""
        for tag, start, stop in _fields(self.data, begin, end):
            if tag == _ATTRIBUTE:
                self._attribute(start, stop, depth)
            elif tag == _OPERATOR:
                operator = self.data[start:stop]
            elif tag == _DOMAIN:
                domain = self.data[start:stop]
        self.contents.operators.add((domain.decode(), operator.decode()))
        if len(self.contents.operators) > _MOST_OPERATORS:
            raise ValueError(f"it has nodes of more than {_MOST_OPERATORS} operators")

    def _attribute(self, begin: int, end: int, depth: int) -> None:
        content = self.data[begin:end] if end - begin <= _SHORT else b""
        if content in self._plain:
            return
        plain = True
        found: set[int] = set()
        for tag, start, stop in _fields(self.data, begin, end):
            if tag in (_TENSOR, _TENSORS):
                self._tensor(start, stop)
            elif tag in (_SUBGRAPH, _SUBGRAPHS):
                self._graph(start, stop, depth + 1)
            elif tag in (_SPARSE_TENSOR, _SPARSE_TENSORS):
                self._sparse_tensor(start, stop)
            else:
                continue
            plain = False
            if tag in (_TENSOR, _SUBGRAPH, _SPARSE_TENSOR):
                _add_once(found, tag, "an attribute has two values")
        if plain and content and len(self._plain) < _MOST_OPERATORS:
            self._plain.add(content)

    def _sparse_tensor(self, begin: int, end: int) -> None:
        found: set[int] = set()
        for tag, start, stop in _fields(self.data, begin, end):
            if tag in (_VALUES, _INDICES):
                _add_once(found, tag, "a sparse tensor has two lists of values or of indices")
                self._tensor(start, stop)

    def _tensor(self, begin: int, end: int) -> None:
        name, dtype, location = "a tensor", 0, 0
        shape: list[int] = []
        raw: int | None = None
        entries: dict[str, str] = {}
        for tag, start, stop in _fields(self.data, begin, end):
            if tag == _SIZE:
                shape.append(start)
            elif tag == _SIZES:
                shape.extend(islice(_packed(self.data, start, stop), _MOST_DIMENSIONS + 1))
            elif tag == _DTYPE:
                dtype = start
            elif tag == _NAME:
                name = self.data[start:stop].decode()
            elif tag == _RAW_DATA:
                raw = stop - start
            elif tag == _DATA_LOCATION:
                location = start
            elif tag == _EXTERNAL_DATA:
                key, value = self._entry(start, stop)
                if key in entries:
                    raise ValueError(f"{name} has external data with two of {key!r}")
                entries[key] = value
            if len(shape) > _MOST_DIMENSIONS:
                raise ValueError(f"{name} has more than {_MOST_DIMENSIONS} dimensions")
        elements = _product(name, shape)
        length = (elements * _BITS[dtype] + 7) // 8 if dtype in _BITS else None
        if entries or location:
            self.contents.external.append(ExternalTensor(name, entries, length))
            if len(self.contents.external) > _MOST_TENSORS:
                raise ValueError(f"it has more than {_MOST_TENSORS} tensors in other files")
        elif raw is not None and raw != length:
            raise ValueError(f"{name} has {raw} bytes, expected {length} by its dtype and shape")
        elif elements > (end - begin) * 4:  # of 2 bits, the narrowest
            raise ValueError(f"{name} has {end - begin} bytes, and {elements} elements by its shape")

    def _entry(self, begin: int, end: int) -> tuple[str, str]:
        key = value = b""
        for tag, start, stop in _fields(self.data, begin, end):
            if tag == _KEY:
                key = self.data[start:stop]
            elif tag == _VALUE:
                value = self.data[start:stop]
        return key.decode(), value.decode()


def _add_once(found: set[int], tag: int, message: str) -> None:
    if tag in found:
        raise ValueError(message)
    found.add(tag)


def _product(name: str, shape: list[int]) -> int:
    """The number of elements of a shape."""
    if any(size > _LARGEST_SIZE for size in shape):  # as a negative number looks here
        raise ValueError(f"{name} has a negative size")
    elements = 1
    for size in shape:
        elements *= size
    return elements


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message: the tag, then the value of an integer and 0, or where a field of bytes begins and ends.

    Numbers of a fixed width, which nothing here asks for, are left out.

    Raises:
        IndexError: the data end within a field.
        ValueError: the message is malformed.
    """
    while position < end:
        tag = data[position]
        position += 1
        if tag >= 0x80:
            tag, position = _varint(data, position - 1)
            if tag > _LARGEST_TAG:  # of which some readers see the last 32 bits
                raise ValueError(f"a field has the number {tag >> 3}")
        if tag < 8:
            raise ValueError("a field has the number 0")
        kind = tag & 7
        if kind == 2:
            length = data[position]
            position += 1
            if length >= 0x80:
                length, position = _varint(data, position - 1)
            start, position = position, position + length
            if position <= end:
                yield tag, start, position
        elif kind == 0:
            value = data[position]
            position += 1
            if value >= 0x80:
                value, position = _varint(data, position - 1)
            if position <= end:
                yield tag, value, 0
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field is of the unknown kind {kind}")
    if position > end:
        raise ValueError("a field is longer than what holds it")


def _packed(data: mmap.mmap, position: int, end: int) -> Iterator[int]:
    while position < end:
        value, position = _varint(data, position)
        yield value
    if position > end:
        raise ValueError("a number is longer than what holds it")


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    """An integer of 64 bits, seven in each byte, the lowest first; and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    else:
        raise ValueError("a number is longer than 10 bytes")
    if value >= 2**64:
        raise ValueError("a number has more than 64 bits")
    return value, position
