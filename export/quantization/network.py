"""One network in 8 bits, by ONNX Runtime's quantizer: a graph of QuantizeLinear and DequantizeLinear, and its weights.

Weights have a scale for each output channel and are symmetric; activations have one for the tensor and a zero point
(Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
equation 1). Both ONNX Runtime and OpenVINO turn such graphs into integer kernels.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

from safelight.runtime.manifest import QuantizationRecord
from safelight.runtime.model_folder import GRAPH

from .calibration import Call, activation_ranges
from .request import OPERATORS, is_sensitive
from .stored import StoredDtypes, float_graph, save_graph

Progress = Callable[[str], None]

#: by which the quantizer knows that a graph has the shapes of its tensors, as canonical ones have: it would write the
#: graph, and read it again, with three copies of the weights in memory
_INFERRED = {"onnx.infer": "onnxruntime.quant"}


@dataclass(frozen=True)
class Layers:
    """The nodes with weights of a graph: those that become integers, and those that do not."""

    quantized: list[Any]  # NodeProto
    in_float: list[Any]
    weights: dict[str, str]  # node -> its weight

    @classmethod
    def of(cls, model: Any, weights: StoredDtypes) -> "Layers":
        """Finds them.

        Args:
            model: a float graph; see `float_graph`.
            weights: the names of its weights.
        """
        found = {
            node.name: node.input[1]
            for node in model.graph.node
            if node.op_type in OPERATORS and node.input[1] in weights
        }
        nodes = [node for node in model.graph.node if node.name in found]
        sensitive = {name for name, weight in found.items() if is_sensitive(weight)}
        return cls(
            [node for node in nodes if node.name not in sensitive],
            [node for node in nodes if node.name in sensitive],
            found,
        )


def quantize_network(
    graph: Path, calls: Sequence[Call], activations: str | None, destination: Path, *, progress: Progress
) -> QuantizationRecord:
    """Writes the quantized graph of a network and its weight file.

    Memory holds the weights in float32 and in 8 bits.

    Args:
        graph: the canonical one; its weights lie beside it.
        calls: of which the ranges of activations are taken.
        activations: see `Request`.
        destination: a folder.
        progress: told one line at each stage.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
        ValueError: the network has no layer to quantize, or its numbers are not finite.
    """
    name = destination.name
    model, stored = float_graph(graph, load=False)  # while the calls are made, the engine has the weights
    layers = Layers.of(model, stored)
    if not layers.quantized:
        raise ValueError(f"{name} has no layer that can be quantized")
    ranges: dict[str, tuple[Any, Any]]
    inputs = sorted({node.input[0] for node in layers.quantized})
    if activations is None:
        nothing = np.zeros((), np.float32), np.ones((), np.float32)  # of pairs that are taken out again below
        ranges = dict.fromkeys(inputs, nothing)
    else:
        progress(f"{name}: the ranges of {len(inputs)} activations over {len(calls)} calls")
        ranges = activation_ranges(graph, inputs, calls)
    if broken := [tensor for tensor, ends in ranges.items() if not np.isfinite(ends).all()]:
        raise ValueError(f"{name}: {broken[0]} is not finite in a run: there is no range to quantize it in")
    progress(f"{name}: {len(layers.quantized)} layers become int8, {len(layers.in_float)} stay in float")
    model = _quantized(float_graph(graph)[0], layers, ranges)
    if activations is None:
        _leave_activations(model)
    save_graph(model, destination / GRAPH, stored)
    return QuantizationRecord(
        weights="int8",
        activations=activations,
        operators=dict(Counter(node.op_type for node in layers.quantized)),
        in_float=sorted(layers.weights[node.name] for node in layers.in_float),
        calls=0 if activations is None else len(calls),
        quantizer=f"onnxruntime {onnxruntime.__version__}",
    )


def _quantized(model: Any, layers: Layers, ranges: dict[str, tuple[Any, Any]]) -> Any:
    """The graph with a pair of QuantizeLinear and DequantizeLinear before each layer; `model` is used up."""
    onnx.helper.set_model_props(model, _INFERRED)
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=[node.name for node in layers.quantized],
        nodes_to_exclude=[],
        op_types_to_quantize=list(OPERATORS),
        extra_options={
            "ActivationSymmetric": False,
            "OpTypesToExcludeOutputQuantization": list(OPERATORS),  # sums of 32 bits go on as floats
            "QuantizeBias": False,
        },
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    del quantizer.model.model.metadata_props[:]
    return quantizer.model.model


def _leave_activations(model: Any) -> None:
    """Takes the pairs of QuantizeLinear and DequantizeLinear out again; weights have the latter alone."""
    sources = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    pairs = [node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in sources]
    floats = {node.output[0]: sources[node.input[0]] for node in pairs}
    kept = [node for node in model.graph.node if node.op_type != "QuantizeLinear" and node.output[0] not in floats]
    for node in kept:
        node.input[:] = [floats.get(tensor, tensor) for tensor in node.input]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    read = {tensor for node in kept for tensor in node.input}
    unread = [tensor for tensor in model.graph.initializer if tensor.name not in read]
    for tensor in unread:
        model.graph.initializer.remove(tensor)
