"""Operations of a graph: closed forms, and PyTorch's own count."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode

from safelight.benchmarks.flops import graph_flops
from safelight.export.networks import build, describe

SIZES = {"batch": 2, "height": 10, "width": 14, "latent_height": 7, "latent_width": 9, "sequence_length": 32}


def write(folder: Path, nodes: list[Any], inputs: dict[str, list[Any]], output: str = "y", opset: int = 23) -> Path:
    """A graph of inputs alone."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "graph", values, [result]), opset_imports=[helper.make_opsetid("", opset)]
    )
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_a_convolution_is_its_outputs_times_the_weights_of_one(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[2, 2], pads=[1, 1, 1, 1])
    graph = write(tmp_path, [node], {"x": ["batch", 6, "height", "width"], "w": [8, 3, 3, 3]})
    # out: 3 x 8 x 5 x 7
    assert graph_flops(graph, {"x": (3, 6, 10, 14)}) == 2 * (3 * 8 * 5 * 7) * (3 * 3 * 3)


def test_products_of_matrices(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Gemm", ["a", "b"], ["gemm"], transA=1, transB=1),
        helper.make_node("MatMul", ["product", "gemm"], ["y"]),
    ]
    graph = write(tmp_path, nodes, {"x": ["batch", 5, 7], "w": [7, 11], "a": [4, 11], "b": [13, 4]})
    assert graph_flops(graph, {"x": (3, 5, 7)}) == 2 * 3 * 5 * 7 * 11 + 2 * 11 * 4 * 13 + 2 * 3 * 5 * 11 * 13


def test_attention_is_two_products(tmp_path: Path) -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    inputs: dict[str, list[Any]] = {"q": ["batch", 5, "n", 8], "k": ["batch", 5, 77, 8], "v": ["batch", 5, 77, 12]}
    graph = write(tmp_path, [node], inputs)
    shapes = {"q": (2, 5, 40, 8), "k": (2, 5, 77, 8), "v": (2, 5, 77, 12)}
    assert graph_flops(graph, shapes) == 2 * (2 * 5 * 40 * 77 * 8) + 2 * (2 * 5 * 40 * 77 * 12)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_networks_operations_are_those_that_torch_counts(
    component: str, linear_checkpoint: Path, linear_export: Path
) -> None:
    index = json.loads((linear_checkpoint / "model_index.json").read_text())
    config = json.loads((linear_checkpoint / component / "config.json").read_text())
    class_name = index[component][1]
    model: Any = build(class_name, config, torch.float32)
    for description in describe(class_name, component, model.config.to_dict(), index):
        sizes = SIZES | ({"height": 56, "width": 72} if component == "vae" else {})
        examples = [tensor.without_values(sizes, torch.float32) for tensor in description.inputs]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            description.module(model)(*examples)
        shapes = {tensor.name: tuple(x.shape) for tensor, x in zip(description.inputs, examples, strict=True)}
        counted = graph_flops(linear_export / description.name / "model.onnx", shapes)
        assert counted == counter.get_total_flops() > 10**6


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"z": (1, 2)}, r"has no input z; it has x, w$"),
        ({"x": (1, 2, 3)}, r"input x has 2 dimensions, got \(1, 2, 3\)$"),
        ({}, r"the shape of 'y', of MatMul product, does not follow from the inputs'$"),
    ],
)
def test_shapes_that_do_not_fit(inputs: dict[str, tuple[int, ...]], sentence: str, tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = write(tmp_path, [node], {"x": ["a", 3], "w": [3, 4]})
    with pytest.raises(ValueError, match=sentence):
        graph_flops(graph, inputs)


def test_attention_without_heads_is_not_guessed_at(tmp_path: Path) -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=2, kv_num_heads=2)
    graph = write(tmp_path, [node], {name: [1, 3, 8] for name in "qkv"})
    with pytest.raises(ValueError, match=r"expected \(batch, heads, tokens, width\), got \(1, 3, 8\)"):
        graph_flops(graph, {})
