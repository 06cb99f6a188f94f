"""ONNX files as somebody else may have written them: read as onnx reads them, or refused by name."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from safelight.runtime import bundled_model
from safelight.runtime.graph_check import check_graph
from safelight.runtime.onnx_file import read_graph

BUNDLED = sorted(bundled_model().glob("*/*.onnx"))


def external(name: str = "w", shape: tuple[int, ...] = (2,), dtype: int = TensorProto.FLOAT, **entries: object):
    """A tensor whose bytes lie in another file; the default is two floats at the start of "weights"."""
    tensor = TensorProto(name=name, dims=shape, data_type=dtype, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "weights", **entries}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def graph(*nodes: onnx.NodeProto, initializers: tuple[TensorProto, ...] = (), **fields) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "graph", [], [], initializer=list(initializers), **fields)


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor)


def save(folder: Path, model: onnx.GraphProto | onnx.ModelProto | bytes) -> Path:
    """A graph in a folder, beside 8 bytes of "weights"."""
    (folder / "weights").write_bytes(b"\0" * 8)
    model = helper.make_model(model) if isinstance(model, onnx.GraphProto) else model
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def nested(inner: onnx.GraphProto, depth: int) -> onnx.GraphProto:
    for _ in range(depth):
        inner = graph(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=graph()))
    return inner


def graphs_within(found: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield found
    for node in found.node:
        for attribute in node.attribute:
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                yield from graphs_within(inner)


# what is read


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_reads_what_onnx_reads(path: Path) -> None:
    contents = read_graph(path)
    model = onnx.load(path, load_external_data=False)
    graphs = list(graphs_within(model.graph))
    assert contents.operators == {(node.domain, node.op_type) for found in graphs for node in found.node}
    expected = [
        (tensor.name, {entry.key: entry.value for entry in tensor.external_data})
        for found in graphs
        for tensor in found.initializer
        if tensor.external_data
    ]
    assert [(tensor.name, tensor.entries) for tensor in contents.external] == expected
    assert all(tensor.length == int(tensor.entries["length"]) for tensor in contents.external)
    assert check_graph(path) == {path.parent / "model.onnx_data"}


@pytest.mark.parametrize("dtype", sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}))
@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (0, 7)])
def test_lengths_are_those_that_onnx_writes(tmp_path: Path, dtype: int, shape: tuple[int, ...]) -> None:
    contents = read_graph(save(tmp_path, graph(initializers=(external(shape=shape, dtype=dtype),))))
    if dtype == TensorProto.STRING:
        expected = None
    else:
        array = np.zeros(shape, helper.tensor_dtype_to_np_dtype(dtype))
        expected = len(numpy_helper.from_array(array).raw_data)
    assert contents.external[0].length == expected


def test_finds_tensors_and_nodes_wherever_they_are(tmp_path: Path) -> None:
    node = helper.make_node("Inner", [], [], domain="somebody")
    sparse = onnx.SparseTensorProto(values=external("values"), indices=external("indices"))
    holder = helper.make_node("Holder", [], [])
    holder.attribute.add(name="one", t=external("t"))
    holder.attribute.add(name="many", tensors=[external("tensors.0"), external("tensors.1")])
    holder.attribute.add(name="graphs", graphs=[graph(node), graph(initializers=(external("in a list"),))])
    holder.attribute.add(name="sparse", sparse_tensor=onnx.SparseTensorProto(values=external("s")))
    holder.attribute.add(name="sparses", sparse_tensors=[onnx.SparseTensorProto(indices=external("ss"))])
    found = nested(graph(holder, initializers=(external("deep"),)), 3)
    found.sparse_initializer.append(sparse)
    contents = read_graph(save(tmp_path, found))
    assert contents.operators == {("", "If"), ("", "Holder"), ("somebody", "Inner")}
    names = ["t", "tensors.0", "tensors.1", "in a list", "s", "ss", "deep", "values", "indices"]
    assert [tensor.name for tensor in contents.external] == names


def test_other_fields_are_passed_over(tmp_path: Path) -> None:
    """Of every kind: negative integers of ten bytes, fixed widths, packed numbers, documentation, metadata."""
    node = helper.make_node("Op", ["x"], ["y"], i=-1, f=1.5, s="text", ints=[-1, 2**62], floats=[1.0, 2.0])
    value = helper.make_tensor("v", TensorProto.DOUBLE, [2], [1.0, 2.0])
    model = helper.make_model(graph(node, initializers=(value,), doc_string="x" * 300), producer_name="somebody")
    model.metadata_props.add(key="key", value="value")
    contents = read_graph(save(tmp_path, model))
    assert contents.operators == {("", "Op")}
    assert contents.external == []


# what passes


def test_weights_may_be_shared_and_lie_in_folders_below(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "more.weights").write_bytes(b"\0" * 100)
    tensors = (
        external("a", offset=0, length=8),
        external("b", offset=4, length=4, shape=(1,)),
        external("c", checksum="0" * 40),
        external("d", location="below/more.weights", offset=96, shape=(1,)),
        external("e", location="below/more.weights", offset=100, length=0, shape=(0,)),
    )
    found = check_graph(save(tmp_path, graph(initializers=tensors)))
    assert found == {tmp_path / "weights", tmp_path / "below" / "more.weights"}


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("MatMul", ["x", "y"], ["z"]),
        helper.make_node("MatMul", ["x", "y"], ["z"], domain="ai.onnx"),
        *(
            helper.make_node(name, ["x"], ["z"], domain="com.microsoft")
            for name in ("MultiHeadAttention", "GroupNorm", "SkipGroupNorm", "BiasSplitGelu", "QuickGelu", "NhwcConv")
        ),
    ],
    ids=lambda node: node.op_type,
)
def test_known_operators_pass(tmp_path: Path, node: onnx.NodeProto) -> None:
    assert check_graph(save(tmp_path, nested(graph(node), 2))) == set()


def test_known_operators_of_onnx_runtime_are_its_own() -> None:
    """A name that ONNX Runtime does not have could only be somebody else's."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    from safelight.runtime.graph_check import _MICROSOFT_OPERATORS

    own = {schema.name for schema in get_all_operator_schema() if schema.domain == "com.microsoft"}
    assert own >= _MICROSOFT_OPERATORS
    assert not _MICROSOFT_OPERATORS & {"EPContext", "PythonOp", "Snpe", "Tokenizer"}


# what is refused: places of weights


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd",
        "../weights",
        "below/../../weights",
        "./weights",
        "below//weights",
        "weights/",
        "",
        "..",
        "..\\weights",
        "below\\..\\..\\weights",
        "C:\\weights",
        "C:weights",
        "file:///etc/passwd",
        "weights\0.txt",
        "weights\n",
        "*/_ORT_MEM_ADDR_/*",
        "x" * 10_000 + "/..",
    ],
)
def test_places_that_are_not_below_the_graph_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "model").mkdir()
    for path in (tmp_path / "weights", tmp_path / "model" / "*" / "_ORT_MEM_ADDR_" / "*"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0" * 100)
    path = save(tmp_path / "model", graph(initializers=(external(location=location),)))
    with pytest.raises(ValueError, match=rf"{path} is refused: w has external data at .*, expected the path") as error:
        check_graph(path)
    assert len(str(error.value)) < 400


def test_no_place_at_all_is_refused(tmp_path: Path) -> None:
    for tensor in (external(location=None), external(location=None, offset=0)):
        with pytest.raises(ValueError, match=r"w has external data at ''"):
            check_graph(save(tmp_path, graph(initializers=(tensor,))))


@pytest.mark.parametrize(
    "hide",
    [
        lambda tensor: graph(constant(tensor)),
        lambda tensor: nested(graph(initializers=(tensor,)), 5),
        lambda tensor: graph(helper.make_node("Op", [], [], tensors=[tensor])),
        lambda tensor: graph(sparse_initializer=[onnx.SparseTensorProto(values=tensor)]),
        lambda tensor: graph(helper.make_node("Loop", [], [], body=graph(constant(tensor)))),
    ],
    ids=["constant", "nested", "list", "sparse", "loop"],
)
def test_places_are_looked_at_wherever_a_tensor_is(tmp_path: Path, hide: Callable) -> None:
    (tmp_path / "model").mkdir()
    path = save(tmp_path / "model", hide(external("hidden", location="../weights")))
    with pytest.raises(ValueError, match=r"hidden has external data at '\.\./weights'"):
        check_graph(path)


def test_a_place_counts_even_where_the_tensor_says_that_it_has_none(tmp_path: Path) -> None:
    tensor = external(location="../weights")
    tensor.data_location = TensorProto.DEFAULT
    with pytest.raises(ValueError, match=r"w has external data at '\.\./weights'"):
        check_graph(save(tmp_path, graph(initializers=(tensor,))))


def test_missing_weights_pipes_and_folders_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for location in ("pipe", "folder"):
        with pytest.raises(ValueError, match=rf"w has external data at {location}, which is no regular file"):
            check_graph(save(tmp_path, graph(initializers=(external(location=location),))))
    with pytest.raises(FileNotFoundError, match=r"is not whole: none, with weights of the graph in it, is missing"):
        check_graph(save(tmp_path, graph(initializers=(external(location="none"),))))


# what is refused: numbers


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize(
    "value",
    ["-1", "-9223372036854775808", str(2**63), str(2**64), "9" * 5000, "", " 0", "0x0", "1e3", "1_0", "٣"],
)
def test_numbers_that_are_none_are_refused(tmp_path: Path, key: str, value: str) -> None:
    path = save(tmp_path, graph(initializers=(external(**{key: value}),)))
    with pytest.raises(
        ValueError, match=rf"w has external data of {key} {re.escape(repr(value[:60]))}, expected a num"
    ):
        check_graph(path)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (external(offset=1), "w is the bytes from 1 to 9 of weights, which has 8"),
        (external(offset=10**15), "w is the bytes from 1000000000000000 to 1000000000000008 of weights, which has 8"),
        (external(offset=10**18 - 1), "w is the bytes from 9{18} to .* of weights, which has 8"),
        (external(length=10**15), "w has 1000000000000000 bytes of external data, and 8 by its shape"),
        (external(length=4), "w has 4 bytes of external data, and 8 by its shape"),
        (external(length=0), "w has 0 bytes of external data, and 8 by its shape"),
        (external(shape=(3,)), "w is the bytes from 0 to 12 of weights, which has 8"),
        (external(shape=(10**15,)), "w is the bytes from 0 to 4000000000000000 of weights, which has 8"),
        (external(shape=(2**31, 2**31, 2**31)), "w is the bytes from 0 to .* of weights, which has 8"),
        (external(dtype=TensorProto.STRING), "w has external data, and a dtype that has no size"),
        (external(dtype=99), "w has external data, and a dtype that has no size"),
        (external(basepath="/etc"), "w has external data with an unknown entry 'basepath'"),
        (external(prepacked_0="x|0;8;0"), "w has external data with an unknown entry 'prepacked_0'"),
    ],
    ids=lambda value: "" if isinstance(value, TensorProto) else value[:40],
)
def test_bytes_that_are_not_there_are_refused(tmp_path: Path, tensor: TensorProto, message: str) -> None:
    path = save(tmp_path, graph(initializers=(tensor,)))
    with pytest.raises(ValueError, match=rf"{path} is refused: {message}"):
        check_graph(path)


def twice(key: str) -> TensorProto:
    tensor = external(offset=0, length=8)
    tensor.external_data.add(key=key, value="../weights")
    return tensor


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        *((twice(key), f"w has external data with two of '{key}'") for key in ("location", "offset", "length")),
        (external(shape=(-1,)), "w has a negative size"),
        (external(shape=(2,) * 10_000), "a tensor has more than 64 dimensions"),
        (
            TensorProto(name="w", data_type=1, dims=[10**15]),
            "w has .* bytes, and 1000000000000000 elements by its shape",
        ),
        (
            TensorProto(name="w", data_type=1, dims=[10**15], raw_data=b"\0" * 8),
            "w has 8 bytes, expected 4000000000000000",
        ),
        (TensorProto(name="w", data_type=1, dims=[2], raw_data=b"\0" * 12), "w has 12 bytes, expected 8"),
    ],
    ids=lambda value: "" if isinstance(value, TensorProto) else value[:40],
)
def test_tensors_that_contradict_themselves_are_refused(tmp_path: Path, tensor: TensorProto, message: str) -> None:
    for found in (graph(initializers=(tensor,)), nested(graph(constant(tensor)), 2)):
        path = save(tmp_path, found)
        with pytest.raises(ValueError, match=rf"{path} is no ONNX graph that can be used: {message}"):
            check_graph(path)


# what is refused: operators


@pytest.mark.parametrize(
    ("domain", "name", "message"),
    [
        ("com.microsoft", "EPContext", "a node com.microsoft.EPContext, which loads machine code"),
        ("", "EPContext", "a node EPContext, which loads machine code"),
        ("somebody", "EPContext", "a node somebody.EPContext, which loads machine code"),
        ("com.microsoft", "PythonOp", "a node com.microsoft.PythonOp, which is an operator neither of ONNX nor"),
        (
            "com.microsoft",
            "Tokenizer",
            "a node com.microsoft.Tokenizer, which is an operator neither of ONNX nor",
        ),
        ("ai.onnx.contrib", "PyOp", "a node ai.onnx.contrib.PyOp, which is an operator neither of ONNX nor"),
        ("my.ops", "Evil", "a node my.ops.Evil, which is an operator neither of ONNX nor"),
        ("com.microsoft ", "Gelu", "a node com.microsoft .Gelu, which is an operator neither of ONNX nor"),
    ],
)
@pytest.mark.parametrize("depth", [0, 3])
def test_other_operators_are_refused_by_name(tmp_path: Path, domain: str, name: str, message: str, depth: int) -> None:
    path = save(tmp_path, nested(graph(helper.make_node(name, [], ["y"], domain=domain)), depth))
    with pytest.raises(ValueError, match=rf"{path} is refused: it has {message}"):
        check_graph(path)


@pytest.mark.parametrize("domain", ["", "com.microsoft", "somebody"])
def test_functions_of_its_own_are_refused(tmp_path: Path, domain: str) -> None:
    """They could stand in for ONNX's own operators, and call each other without end."""
    function = helper.make_function(domain, "MatMul", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [])
    path = save(tmp_path, helper.make_model(graph(), functions=[function]))
    with pytest.raises(ValueError, match=r"it has functions of its own; onnx\.inliner\.inline_local_functions"):
        check_graph(path)


def test_graphs_for_training_are_refused(tmp_path: Path) -> None:
    model = helper.make_model(graph())
    model.training_info.add(algorithm=graph(initializers=(external(location="/etc/passwd"),)))
    with pytest.raises(ValueError, match="it has graphs for training"):
        check_graph(save(tmp_path, model))


# what is refused: files that are none

GRAPH = b"\x3a"  # the tag of a model's graph
ATTACKS = {
    "nothing": (b"", "it has 0 bytes"),
    "no graph": (b"\x08\x08", "it has 0 graphs"),
    "two graphs": (GRAPH + b"\0" + GRAPH + b"\0", "it has 2 graphs"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "a field is of the unknown kind 6"),
    "zeros": (b"\0" * 100, "a field has the number 0"),
    "only a tag": (GRAPH, "it ends within a field"),
    "half a length": (GRAPH + b"\x80", "it ends within a field"),
    "half an integer": (b"\x08\x80\x80", "it ends within a field"),
    "beyond the end": (GRAPH + b"\x05\0\0", "a field is longer than what holds it"),
    "beyond its message": (GRAPH + b"\x02\x0a\x05" + b"\0" * 9, "a field is longer than what holds it"),
    "an integer beyond its message": (GRAPH + b"\x02\x08\x80\x01\x08\x01", "a field is longer than what holds it"),
    "a fixed width beyond the end": (b"\x09\0\0\0", "a field is longer than what holds it"),
    "a length of 2**62": (GRAPH + b"\x80" * 8 + b"\x40", "a field is longer than what holds it"),
    "a length of 2**64 - 1": (GRAPH + b"\xff" * 9 + b"\x01", "a field is longer than what holds it"),
    "more than 64 bits": (GRAPH + b"\xff" * 9 + b"\x02", "a number has more than 64 bits"),
    "eleven bytes": (b"\x08" + b"\x80" * 10 + b"\x01", "a number is longer than 10 bytes"),
    "a tag of 33 bits": (b"\xba\x80\x80\x80\x10\0", "a field has the number"),
    "a group": (b"\x3b\x3c", "a field is of the unknown kind 3"),
    "kind 7": (b"\x3f\0", "a field is of the unknown kind 7"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_malformed_files_are_refused(tmp_path: Path, attack: str) -> None:
    content, message = ATTACKS[attack]
    path = save(tmp_path, content)
    with pytest.raises(ValueError, match=rf"{path} is no ONNX graph.*: {message}"):
        check_graph(path)


def test_a_file_larger_than_a_protocol_buffer_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, graph())
    os.truncate(path, 2**31)
    with pytest.raises(
        ValueError, match=r"model\.onnx is no ONNX graph: it has 2147483648 bytes, expected 1 to 2147483647"
    ):
        check_graph(path)


def test_small_pieces_without_end_are_refused(tmp_path: Path) -> None:
    """They would be much more in memory than they are in the file."""
    tensor, node = b"\x2a\x02\x70\x01", b"\x0a\x05\x22\x03%03x"
    pieces = {
        "it has more than 100000 tensors in other files": tensor * 100_001,
        "it has nodes of more than 1000 operators": b"".join(node % number for number in range(1001)),
        "a tensor has more than 64 dimensions": b"\x2a\x42\x0a\x40" + b"\1" * 64 + b"\x2a\x43\x0a\x41" + b"\1" * 65,
    }
    for message, content in pieces.items():
        path = save(tmp_path, GRAPH + varint(len(content)) + content)
        with pytest.raises(ValueError, match=f"model.onnx is no ONNX graph that can be used: {message}"):
            check_graph(path)
    assert len(read_graph(save(tmp_path, GRAPH + varint(400_000) + tensor * 100_000)).external) == 100_000


def test_values_that_readers_would_merge_are_refused(tmp_path: Path) -> None:
    """A lenient reader joins two tensors of one attribute: each may look harmless."""
    for field in (
        {"t": external(location=None, offset=10**15)},
        {"g": graph()},
        {"sparse_tensor": onnx.SparseTensorProto()},
    ):
        content = 2 * onnx.AttributeProto(**field).SerializeToString()
        assert onnx.AttributeProto.FromString(content).ListFields()
        for tag in (b"\x2a", b"\x0a", GRAPH):  # an attribute of a node of a graph
            content = tag + varint(len(content)) + content
        path = save(tmp_path, content)
        with pytest.raises(ValueError, match="an attribute has two values"):
            check_graph(path)


def varint(value: int) -> bytes:
    content = b""
    while value >= 0x80:
        content += bytes([value & 0x7F | 0x80])
        value >>= 7
    return content + bytes([value])


def test_graphs_without_end_are_refused(tmp_path: Path) -> None:
    assert check_graph(save(tmp_path, nested(graph(), 31))) == set()
    deep = b""
    for tag in (b"\x32", b"\x2a", b"\x0a") * 20_000:  # a graph of a node with an attribute that is a graph ...
        deep = tag + varint(len(deep)) + deep
    for content in (nested(graph(), 32), GRAPH + varint(len(deep)) + deep):
        with pytest.raises(ValueError, match="its graphs are nested more than 32 deep"):
            check_graph(save(tmp_path, content))


def test_names_that_are_not_unicode_are_refused(tmp_path: Path) -> None:
    content = helper.make_model(graph(helper.make_node("Operator", [], []))).SerializeToString()
    with pytest.raises(ValueError, match="utf-8"):
        check_graph(save(tmp_path, content.replace(b"Operator", b"Operat\xff\xfe")))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_stays_flat(tmp_path: Path) -> None:
    """Whatever a graph claims, and however large the weights within it are."""
    claims = {
        "length": graph(initializers=(external(length=10**15),)),
        "offset": graph(initializers=(external(offset=10**15),)),
        "shape": graph(initializers=(external(shape=(10**15,)),)),
        "constant": graph(constant(TensorProto(name="w", data_type=1, dims=[10**15]))),
        "raw": graph(initializers=(TensorProto(name="w", data_type=1, dims=[10**15], raw_data=b"\0"),)),
    }
    for name, found in claims.items():
        (tmp_path / name).mkdir()
        save(tmp_path / name, found)
    raw = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[2**26], raw_data=b"\1" * 2**26)
    (tmp_path / "large").mkdir()
    save(tmp_path / "large", graph(initializers=(raw,)))
    (tmp_path / "sparse").mkdir()
    os.truncate(save(tmp_path / "sparse", graph()), 2**31 - 1)
    (tmp_path / "endless").mkdir()
    os.truncate(save(tmp_path / "endless", graph()), 2**40)
    script = """
import sys
from pathlib import Path
from safelight.runtime.graph_check import check_graph

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:"))

before = peak()
for path in sorted(Path().glob("*/model.onnx")):
    try:
        check_graph(path)
        print(path.parent.name)
    except ValueError:
        pass
print(peak() - before)
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split()[:-1] == ["large"]
    assert int(result.stdout.split()[-1]) < 20
