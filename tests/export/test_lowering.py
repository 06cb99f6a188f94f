"""Each lowering replaces what it says it replaces, and the result is still the same network."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from safelight.export import lowering
from safelight.export.networks import NetworkDescription, build, describe
from safelight.export.trace import parameters, trace
from safelight.export.weights import WeightFile, bind, store_transposed, write_weights
from safelight.reference import UNet2DConditionModel
from safelight.runtime.backends import Array, open_network

CONFIG = {
    "sample_size": 6,
    "block_out_channels": [12, 20],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": 14,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
ATTENTIONS = 2 * (1 + 2 + 1)  # self and cross, on the way down, up and in the middle


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[NetworkDescription, ir.Model, WeightFile]:
    torch.manual_seed(0)
    reference = UNet2DConditionModel.from_config(CONFIG)
    config = reference.config.to_dict()
    (description,) = describe("UNet2DConditionModel", "unet", config, {})
    graph = trace(description, build("UNet2DConditionModel", config, torch.float32))
    transposed = store_transposed(graph, parameters(graph, description))
    state = reference.state_dict()
    shapes = {str(value.name): state[str(value.name)].shape for value in parameters(graph, description)}
    path = tmp_path_factory.mktemp("unet") / "model.onnx_data"
    return (
        description,
        graph,
        write_weights(path, shapes, state.__getitem__, transposed=transposed, dtype=torch.float32),
    )


def run(traced: tuple[NetworkDescription, ir.Model, WeightFile], graph: ir.Model, name: str) -> Array:
    """Writes a graph beside the weights and runs it."""
    description, _, weights = traced
    lowering.tidy(graph)
    bind(graph, parameters(graph, description), weights)
    path: Path = weights.path.with_name(name)
    ir.save(graph, path)
    rng = np.random.default_rng(0)
    network = open_network(path)
    return network(
        {
            "sample": rng.standard_normal((2, 4, 7, 6)),
            "timestep": np.array([1.0, 700.5]),
            "encoder_hidden_states": rng.standard_normal((2, 5, 14)),
        }
    )["out_sample"]


def operators(graph: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph)


@pytest.fixture(scope="module")
def canonical(traced: tuple[NetworkDescription, ir.Model, WeightFile]) -> Array:
    return run(traced, traced[1].clone(), "canonical.onnx")


def test_canonical_graph_is_what_lowerings_start_from(traced: tuple[NetworkDescription, ir.Model, WeightFile]) -> None:
    description, graph, weights = traced
    found = operators(graph)
    norms = sum(name.endswith("norm1.weight") and ".resnets." in name for name in weights.tensors)
    assert found["Attention"] == ATTENTIONS
    assert found["GroupNormalization"] > norms
    assert graph.opset_imports[""] == 23
    names = {str(value.name) for value in parameters(graph, description)}
    assert names == set(UNet2DConditionModel.from_config(CONFIG).state_dict())


def test_linear_weights_are_stored_the_way_the_graph_reads_them(
    traced: tuple[NetworkDescription, ir.Model, WeightFile],
) -> None:
    _, graph, weights = traced
    assert "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight" in weights.transposed
    readers = {usage.node.op_type for value in graph.graph.inputs for usage in value.uses()}
    assert "Transpose" not in readers


def test_equal_weights_keep_their_names(
    traced: tuple[NetworkDescription, ir.Model, WeightFile], canonical: Array
) -> None:
    """All the norms of a new network are ones and zeros."""
    names = ir.load(traced[2].path.with_name("canonical.onnx")).graph.initializers
    assert set(traced[2].tensors) <= set(names)


@pytest.mark.parametrize("opset", lowering.OPSETS)
def test_older_opsets_give_the_same_numbers(
    traced: tuple[NetworkDescription, ir.Model, WeightFile], canonical: Array, opset: int
) -> None:
    graph = traced[1].clone()
    counts = lowering.to_opset(graph, opset)
    found = operators(graph)
    assert all(found[operator] == 0 for operator in counts)
    assert set(counts) == {
        name for name, since in (("Attention", 23), ("GroupNormalization", 21), ("Gelu", 20)) if opset < since
    }
    assert all(counts.values())
    np.testing.assert_allclose(run(traced, graph, f"opset{opset}.onnx"), canonical, atol=1e-5)


def test_onnxruntime_cpu_fuses_every_attention(
    traced: tuple[NetworkDescription, ir.Model, WeightFile], canonical: Array
) -> None:
    graph = traced[1].clone()
    transposes = operators(graph)["Transpose"]
    counts = lowering.TARGETS["onnxruntime-cpu"].lower(graph)
    assert counts == {"Attention": ATTENTIONS, "GroupNormalization": operators(traced[1])["GroupNormalization"]}
    assert operators(graph)["MultiHeadAttention"] == ATTENTIONS
    assert operators(graph)["Transpose"] == transposes - 4 * ATTENTIONS
    np.testing.assert_allclose(run(traced, graph, "onnxruntime-cpu.onnx"), canonical, atol=1e-5)
