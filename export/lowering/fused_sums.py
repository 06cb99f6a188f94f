"""Sums that are part of the operator that reads them, as ONNX Runtime's kernels for CUDA have it.

Each sum of its own reads and writes an activation once more, which is all that such an operator costs on a GPU. ONNX
Runtime makes a SkipLayerNormalization of a sum only where nothing else reads it, and everything in a transformer whose
norms come first does; SkipGroupNorm, BiasAdd and BiasSplitGelu it never makes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir import tape

from .multi_head_attention import MICROSOFT, MICROSOFT_VERSION
from .primitives import node_inputs

#: of the input of BiasSplitGelu, and of BiasAdd: their kernels know no others
SPLIT_GELU_WIDTHS = (2560, 5120, 10240)
BIAS_ADD_WIDTHS = (320, 640, 1280)


def fuse_sums(model: ir.Model) -> dict[str, int]:
    """Rewrites a graph in place, whose group norms are com.microsoft.GroupNorm already.

    Returns:
        How many nodes of each operator there are now.
    """
    counts = {
        "SkipLayerNormalization": _fuse(model, "LayerNormalization", _skip_layer_norm),
        "SkipGroupNorm": _fuse(model, "GroupNorm", _skip_group_norm),
        "BiasSplitGelu": _fuse(model, "Mul", _bias_split_gelu),
        "BiasAdd": _fuse(model, "Add", _bias_add),
    }
    if any(counts.values()):
        model.opset_imports[MICROSOFT] = MICROSOFT_VERSION
    return counts


def _fuse(model: ir.Model, op_type: str, fuse: Callable[[ir.Model, ir.Node], bool]) -> int:
    """Tries every node of a type, and counts those of which something else was made."""
    nodes = [node for node in model.graph if node.op_type == op_type]
    fused = sum(fuse(model, node) for node in nodes if node.graph is not None)  # None: another one took it in
    model.graph.sort()
    return fused


def _skip_layer_norm(model: ir.Model, norm: ir.Node) -> bool:
    """LayerNormalization(Add(Add(sample, bias), skip)), the bias or not; the sum is an output where others read it."""
    add = _producer(norm.inputs[0], "Add")
    if add is None or len(norm.inputs) != 3 or not _normalizes_last(norm):
        return False
    first, second = node_inputs(add, 2)
    if not _are_alike(first, second, rank=3):
        return False
    sample, bias, skip, inner = first, None, second, None
    for one, other in ((first, second), (second, first)):
        if bias is None and (biased := _biased(one)) is not None:
            (sample, bias), skip, inner = biased, other, one.producer()
    inputs = [sample, skip, *norm.inputs[1:], *([] if bias is None else [bias])]
    attributes = {"epsilon": norm.attributes.get_float("epsilon", 1e-5)}
    _replace_norm(model, norm, add, "SkipLayerNormalization", inputs, attributes, sum_output=3)
    _remove(model, inner)
    return True


def _skip_group_norm(model: ir.Model, norm: ir.Node) -> bool:
    """GroupNorm(Add(sample, skip)): two images, or an image and a vector of channels, (batch, 1, 1, channels)."""
    add = _producer(norm.inputs[0], "Add")
    if add is None:
        return False
    sample, skip = node_inputs(add, 2)
    if _is_vector(sample):
        sample, skip = skip, sample
    if _is_vector(sample) or not (_are_alike(sample, skip, rank=4) or _is_vector(skip)):
        return False
    inputs = [sample, *norm.inputs[1:], skip]
    _replace_norm(model, norm, add, "SkipGroupNorm", inputs, dict(norm.attributes), sum_output=1)
    return True


def _bias_split_gelu(model: ir.Model, product: ir.Node) -> bool:
    """Mul(left, Gelu(right)) of the halves of Add(sample, bias): the gated unit of a feed-forward network."""
    gelu = next((node for value in product.inputs if (node := _producer(value, "Gelu")) is not None), None)
    if gelu is None or gelu.attributes.get_string("approximate", "none") != "none":
        return False
    split = _producer(gelu.inputs[0], "Split")
    if split is None or len(split.outputs) != 2 or split.attributes.get_int("axis", 0) not in (-1, 2):
        return False
    left, right = split.outputs
    halves = {*product.inputs} == {left, gelu.outputs[0]}
    biased = _biased(node_inputs(split, 1)[0])
    if not halves or biased is None or any(len(value.uses()) != 1 for value in (left, right, gelu.outputs[0])):
        return False
    total = node_inputs(split, 1)[0]
    if total.shape is None or total.shape[2] not in SPLIT_GELU_WIDTHS or len(split.inputs) != 1:
        return False
    fused = tape.Tape(model.graph).op("BiasSplitGelu", list(biased), domain=MICROSOFT)
    _take_place(fused, product.outputs[0])
    for node in (product, gelu, split, total.producer()):
        _remove(model, node)
    return True


def _bias_add(model: ir.Model, add: ir.Node) -> bool:
    """Add(Add(sample, bias), skip)."""
    first, second = node_inputs(add, 2)
    if not _are_alike(first, second, rank=3) or first.shape is None or first.shape[2] not in BIAS_ADD_WIDTHS:
        return False
    for one, skip in ((first, second), (second, first)):
        if (biased := _biased(one)) is not None:
            fused = tape.Tape(model.graph).op("BiasAdd", [*biased, skip], domain=MICROSOFT)
            _take_place(fused, add.outputs[0])
            _remove(model, add)
            _remove(model, one.producer())
            return True
    return False


def _replace_norm(
    model: ir.Model,
    norm: ir.Node,
    add: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any],
    *,
    sum_output: int,
) -> None:
    """Puts an operator in the place of a norm and of the sum before it, which is its output where others read it."""
    total = add.outputs[0]
    is_read = len(total.uses()) > 1 or total.is_graph_output()
    outputs = tape.Tape(model.graph).op_multi_out(
        op_type, inputs, attributes, num_outputs=sum_output + 1 if is_read else 1, domain=MICROSOFT
    )
    for value in outputs[1:]:
        value.name = ""  # those that stay are not computed
    _take_place(outputs[0], norm.outputs[0])
    _remove(model, norm)
    if is_read:
        _take_place(outputs[sum_output], total)
    _remove(model, add)


def _biased(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The (batch, length, width) sample and the (width,) bias that are added up here, for a single reader."""
    add = _producer(value, "Add")
    if add is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    first, second = node_inputs(add, 2)
    if _rank(first) == 1:
        first, second = second, first
    return (first, second) if _rank(first) == 3 and _rank(second) == 1 else None


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _normalizes_last(norm: ir.Node) -> bool:
    """Whether a layer norm is over the last of three axes, and only its result is read."""
    return norm.attributes.get_int("axis", -1) in (-1, 2) and not any(value.uses() for value in norm.outputs[1:])


def _are_alike(first: ir.Value, second: ir.Value, *, rank: int) -> bool:
    """Whether two values have the same shape, as far as it is known: neither is repeated to fit the other."""
    return _rank(first) == rank and _sizes(first) == _sizes(second)


def _is_vector(image: ir.Value) -> bool:
    """Whether an image channels last is one number per channel."""
    return image.shape is not None and image.shape.rank() == 4 and image.shape[1] == image.shape[2] == 1


def _sizes(value: ir.Value) -> list[int | None]:
    """The shape, of which some sizes are not known, whatever they are called."""
    return [size if isinstance(size, int) else None for size in value.shape or ()]


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else value.shape.rank()


def _take_place(new: ir.Value, old: ir.Value) -> None:
    new.name, new.type, new.shape = old.name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _remove(model: ir.Model, node: ir.Node | None) -> None:
    if node is not None and node.graph is not None and not any(value.uses() for value in node.outputs):
        model.graph.remove(node, safe=True)
