"""Images channels last, (batch, height, width, channels), for the kernels of CUDA that want them so.

Conv becomes com.microsoft.NhwcConv and GroupNormalization com.microsoft.GroupNorm. What lies between them follows:
element-wise operators, concatenations of channels, nearest-neighbour scaling, images as tokens and back. Transposes
remain where a graph's own inputs and outputs, or another operator, have channels first.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir
from onnx_ir import tape

from .multi_head_attention import MICROSOFT, MICROSOFT_VERSION
from .primitives import node_inputs, value_dtype

_LAST, _FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # the permutations: to channels last, and back
_SPATIAL_AXES, _SPATIAL_AXES_LAST = [2, 3], [1, 2]


def to_channels_last(model: ir.Model) -> dict[str, int]:
    """Rewrites the convolutions and group norms of a graph, and what lies between them, in place.

    Returns:
        How many Conv and GroupNormalization nodes were replaced, and how many Sigmoid, which are the SiLUs that became
        part of a GroupNorm.
    """
    return _ChannelsLast(model).rewrite()


class _ChannelsLast:
    """The graph while it is rewritten: old nodes stay until every image has been looked at."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.op = tape.Tape(model.graph)
        self.computed: dict[ir.Value, ir.Value] = {}  # image -> the same, computed channels last
        self.converted: dict[ir.Value, ir.Value] = {}  # image -> the same, by a transpose or what amounts to one
        self.counts = Counter({"Conv": 0, "GroupNormalization": 0, "Sigmoid": 0})

    def rewrite(self) -> dict[str, int]:
        nodes = list(self.model.graph)
        for node in nodes:
            if node.outputs[0] not in self.computed and (follow := _FOLLOWERS.get(node.op_type)):
                follow(self, node)
        for image, last in (self.converted | self.computed).items():
            last.type, last.shape = image.type, _shape_last(image)
        for node in reversed(nodes):
            self._replace(node)
        self.model.graph.sort()
        if self.counts.total():
            self.model.opset_imports[MICROSOFT] = MICROSOFT_VERSION
        return dict(self.counts)

    def _replace(self, node: ir.Node) -> None:
        """Removes a node that nothing reads any more; what still reads its image gets a transpose."""
        output = node.outputs[0]
        last = self.computed.get(output)
        if last is not None and _is_read(output):
            first = self.op.op("Transpose", [last], attributes={"perm": _FIRST})
            first.name, first.type, first.shape = output.name, output.type, output.shape
            output.replace_all_uses_with(first, replace_graph_outputs=True)
        if not any(_is_read(value) for value in node.outputs):
            self.model.graph.remove(node, safe=True)

    def last(self, image: ir.Value) -> ir.Value:
        """An image channels last."""
        if image in self.computed:
            return self.computed[image]
        if image not in self.converted:
            self.converted[image] = self._convert(image)
        return self.converted[image]

    def _convert(self, image: ir.Value) -> ir.Value:
        node = image.producer()
        if node is not None and node.op_type == "Unsqueeze" and _constant(node.inputs[1]) == _SPATIAL_AXES:
            return self.op.op("Unsqueeze", [node.inputs[0], self._ints(_SPATIAL_AXES_LAST)])  # a vector of channels
        if node is not None and (tokens := _tokens_of(node)) is not None:
            return self.op.op("Reshape", [tokens, self._permuted(node_inputs(node, 2)[1])])
        return self.op.op("Transpose", [image], attributes={"perm": _LAST})

    def _permuted(self, sizes: ir.Value) -> ir.Value:
        """The four numbers of (batch, channels, height, width) in the order of channels last."""
        if sizes.const_value is not None:
            return self._constant(f"{sizes.name}.channels_last", ir.tensor(sizes.const_value.numpy()[_LAST]))
        return self.op.op("Gather", [sizes, self._ints(_LAST)])

    def _ints(self, values: list[int]) -> ir.Value:
        name = f"channels_last.{'_'.join(map(str, values))}"
        return self._constant(name, ir.tensor(values, dtype=ir.DataType.INT64))

    def _constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """The constant of a name, which belongs to one tensor."""
        return self.model.graph.initializers.get(name) or self.op.initializer(tensor, name=name)

    def conv(self, node: ir.Node) -> None:
        sample, weight, *bias = node.inputs
        if sample is None or weight is None or not _is_image(sample):
            return
        weight = self.op.op("Transpose", [weight], attributes={"perm": _LAST})  # which ONNX Runtime does when it loads
        self.computed[node.outputs[0]] = self.op.op(
            "NhwcConv", [self.last(sample), weight, *bias], attributes=_attributes(node), domain=MICROSOFT
        )
        self.counts["Conv"] += 1

    def group_norm(self, node: ir.Node) -> None:
        sample, *affine = node_inputs(node, 3)
        if not _is_image(sample):
            return
        scale, bias = (  # float32 whatever the sample is
            value
            if value_dtype(value) == ir.DataType.FLOAT
            else self.op.op("Cast", [value], attributes={"to": ir.DataType.FLOAT})
            for value in affine
        )
        silu = _silu_of(node.outputs[0])
        attributes = {
            "groups": node.attributes.get_int("num_groups"),
            "epsilon": node.attributes.get_float("epsilon", 1e-5),
            "activation": int(silu is not None),
            "channels_last": 1,
        }
        self.computed[node.outputs[0] if silu is None else silu] = self.op.op(
            "GroupNorm", [self.last(sample), scale, bias], attributes=attributes, domain=MICROSOFT
        )
        self.counts["GroupNormalization"] += 1
        self.counts["Sigmoid"] += silu is not None

    def element_wise(self, node: ir.Node) -> None:
        values = node_inputs(node, len(node.inputs))
        if any(value in self.computed for value in values) and all(_is_image(v) or _is_scalar(v) for v in values):
            inputs = [value if _is_scalar(value) else self.last(value) for value in values]
            self.computed[node.outputs[0]] = self.op.op(node.op_type, inputs, attributes=_attributes(node))

    def concat(self, node: ir.Node) -> None:
        values = node_inputs(node, len(node.inputs))
        if node.attributes.get_int("axis") == 1 and any(value in self.computed for value in values):
            inputs = [self.last(value) for value in values]
            self.computed[node.outputs[0]] = self.op.op("Concat", inputs, attributes={"axis": 3})

    def resize(self, node: ir.Node) -> None:
        sample, *how = node.inputs  # region, scales, sizes: all but one of them missing
        nearest = node.attributes.get_string("mode", "nearest") == "nearest"
        if sample is not None and sample in self.computed and nearest and "axes" not in node.attributes:
            inputs = [self.computed[sample], *(None if value is None else self._permuted(value) for value in how)]
            self.computed[node.outputs[0]] = self.op.op("Resize", inputs, attributes=_attributes(node))

    def shape(self, node: ir.Node) -> None:
        (image,) = node_inputs(node, 1)
        if image in self.computed:
            start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", 4)
            sizes = self.op.op("Shape", [self.computed[image]])
            node.outputs[0].replace_all_uses_with(self.op.op("Gather", [sizes, self._ints(_FIRST[start:end])]))

    def transpose(self, node: ir.Node) -> None:
        """(batch, channels, height * width) to tokens: of an image channels last, a mere reshape."""
        reshape = node_inputs(node, 1)[0].producer()
        if tuple(node.attributes.get_ints("perm") or ()) != (0, 2, 1) or reshape is None:
            return
        image = reshape.inputs[0] if reshape.op_type == "Reshape" else None
        if image is None or image not in self.computed or not _flattens(reshape):
            return
        assert image.shape is not None
        channels = image.shape[1]
        assert isinstance(channels, int)
        tokens = self.op.op("Reshape", [self.computed[image], self._ints([0, -1, channels])])
        tokens.type, tokens.shape = node.outputs[0].type, node.outputs[0].shape
        node.outputs[0].replace_all_uses_with(tokens)


#: operator -> how it follows images channels last
_FOLLOWERS: Mapping[str, Callable[[_ChannelsLast, ir.Node], None]] = MappingProxyType(
    {
        "Conv": _ChannelsLast.conv,
        "GroupNormalization": _ChannelsLast.group_norm,
        "Concat": _ChannelsLast.concat,
        "Resize": _ChannelsLast.resize,
        "Shape": _ChannelsLast.shape,
        "Transpose": _ChannelsLast.transpose,
        **dict.fromkeys(("Add", "Mul", "Div", "Cast", "Relu", "Sigmoid", "Tanh"), _ChannelsLast.element_wise),
    }
)


def _silu_of(value: ir.Value) -> ir.Value | None:
    """The product of a value and its sigmoid, where nothing else reads the value."""
    nodes = {usage.node for usage in value.uses()}
    if len(nodes) != 2 or value.is_graph_output():
        return None
    sigmoid = next((node for node in nodes if node.op_type == "Sigmoid"), None)
    product = next((node for node in nodes if node.op_type == "Mul"), None)
    if sigmoid is None or product is None or set(product.inputs) != {value, sigmoid.outputs[0]}:
        return None
    return product.outputs[0] if len(sigmoid.outputs[0].uses()) == 1 else None


def _tokens_of(node: ir.Node) -> ir.Value | None:
    """The (batch, height * width, channels) tokens that are transposed and reshaped to an image here."""
    if node.op_type != "Reshape" or not _is_image(node.outputs[0]):
        return None
    flat = node_inputs(node, 1)[0]
    transpose = flat.producer()
    if transpose is None or transpose.op_type != "Transpose" or flat.shape is None or flat.shape.rank() != 3:
        return None
    same_channels = node.outputs[0].shape is not None and flat.shape[1] == node.outputs[0].shape[1]
    swaps = tuple(transpose.attributes.get_ints("perm") or ()) == (0, 2, 1)
    return node_inputs(transpose, 1)[0] if swaps and same_channels and isinstance(flat.shape[1], int) else None


def _flattens(reshape: ir.Node) -> bool:
    """Whether a Reshape makes (batch, channels, height * width) of an image."""
    image, flat = reshape.inputs[0], reshape.outputs[0]
    assert image is not None
    if image.shape is None or flat.shape is None or flat.shape.rank() != 3:
        return False
    return isinstance(flat.shape[1], int) and flat.shape[1] == image.shape[1]


def _is_image(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.rank() == 4


def _shape_last(image: ir.Value) -> ir.Shape | None:
    return None if image.shape is None else ir.Shape([image.shape[axis] for axis in _LAST])


def _is_scalar(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.rank() == 0


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _constant(value: ir.Value | None) -> list[int] | None:
    tensor = None if value is None else value.const_value
    return None if tensor is None else [int(number) for number in tensor.numpy().reshape(-1)]


def _attributes(node: ir.Node) -> dict[str, ir.Attr]:
    return dict(node.attributes)
