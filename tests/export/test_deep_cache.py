"""The two graphs of DeepCache: what they compute, what they leave out, and who is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from cuda_operators import inline
from deep_cached import deep_cached
from graphs import Traced, traced
from pairs import relative

from safelight.export import lowering
from safelight.export.component import canonical_graph
from safelight.export.deep_cache import Variant, branches, deep_graph, shallow_graph
from safelight.export.networks import describe
from safelight.export.options import ExportOptions
from safelight.export.trace import parameters
from safelight.export.weights import bind
from safelight.reference import UNet2DConditionModel
from safelight.runtime.backends import Array, open_network
from safelight.runtime.manifest import CACHED_FEATURE, DEEP, SHALLOW, read_manifest

#: two layers a level, as published UNets have, and attention at the outermost; pooled text and sizes as of SDXL
CONFIG: dict[str, Any] = {
    "sample_size": 6,
    "block_out_channels": [12, 20],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 2,
    "cross_attention_dim": 14,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 + 6 * 4,
}
BRANCHES = range(6)  # conv_in, two layers, a halving, two layers
#: what the shallow graph of each computes on the way down, beside `conv_in`; on the way up the same, backwards
COMPUTED = {
    0: [],
    1: ["0.resnets.0", "0.attentions.0"],
    2: ["0.resnets.0", "0.attentions.0", "0.resnets.1", "0.attentions.1"],
    3: ["0.resnets.0", "0.attentions.0", "0.resnets.1", "0.attentions.1", "0.downsamplers.0"],
}
LIMIT = 1e-5  # relative, float32


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return traced("UNet2DConditionModel", CONFIG, torch.float32, tmp_path_factory.mktemp("unet"))


@dataclass(frozen=True)
class Call:
    """Two calls' inputs of the network, as steps of a picture have them: of other samples and times, the same text."""

    first: dict[str, Array]
    second: dict[str, Array]


@pytest.fixture(scope="module")
def calls() -> Call:
    rng = np.random.default_rng(0)
    conditions = {
        "encoder_hidden_states": rng.standard_normal((2, 5, 14)).astype(np.float32),
        "text_embeds": rng.standard_normal((2, 6)).astype(np.float32),
        "time_ids": rng.integers(0, 64, (2, 6)).astype(np.float32),
    }

    def call(timestep: float) -> dict[str, Array]:
        sample = rng.standard_normal((2, 4, 11, 7)).astype(np.float32)
        return {"sample": sample, "timestep": np.full(2, timestep, np.float32), **conditions}

    return Call(call(801.0), call(701.0))


def opened(unet: Traced, variant: Variant, rewrite: Callable[[ir.Model], object] = lambda _: None) -> Any:
    """Writes a variant, rewritten, beside the UNet's weights, and opens it."""
    graph = variant.graph.clone()
    rewrite(graph)
    lowering.tidy(graph)
    bind(graph, parameters(graph, variant.description), unet.weights)
    path = unet.weights.path.with_name("variant.onnx")
    ir.save(graph, path)
    return open_network(path)


def expected(unet: Traced, calls: Call, branch: int) -> list[Array]:
    """What the reference gives in two calls, the second of which takes the feature of the first."""

    def answer(inputs: dict[str, Array]) -> Array:
        return unet.reference.predict(**{name: torch.from_numpy(value) for name, value in inputs.items()}).numpy()

    with torch.inference_mode(), deep_cached(unet.reference, cache_interval=2, branch=branch):
        return [answer(calls.first), answer(calls.second)]


def cached_calls(deep: Any, shallow: Any, calls: Call) -> list[Array]:
    """The same with the two graphs."""
    first = deep(calls.first)
    inputs = {**calls.second, CACHED_FEATURE: first[CACHED_FEATURE]}
    return [first["out_sample"], shallow({spec.name: inputs[spec.name] for spec in shallow.inputs})["out_sample"]]


@pytest.mark.parametrize("branch", BRANCHES)
def test_two_calls_are_those_of_the_reference_that_takes_the_feature(unet: Traced, calls: Call, branch: int) -> None:
    deep = opened(unet, deep_graph(unet.graph, unet.description, branch))
    shallow = opened(unet, shallow_graph(unet.graph, unet.description, branch))
    found, wanted = cached_calls(deep, shallow, calls), expected(unet, calls, branch)
    assert relative(found[0], wanted[0]) < LIMIT
    assert relative(found[1], wanted[1]) < LIMIT
    elsewhere = expected(unet, calls, (branch + 1) % len(BRANCHES))
    assert relative(found[1], elsewhere[1]) > 100 * LIMIT, "the test cannot tell branches apart"


@pytest.mark.parametrize("branch", COMPUTED)
def test_a_shallow_graph_reads_the_weights_of_the_outermost_blocks_alone(unet: Traced, branch: int) -> None:
    shallow = shallow_graph(unet.graph, unet.description, branch)
    names = [str(value.name) for value in parameters(shallow.graph, shallow.description)]
    parts = {".".join(name.split(".")[1:4]) for name in names if name.startswith("down_blocks.")}
    assert parts == set(COMPUTED[branch])
    up = {".".join(name.split(".")[1:4]) for name in names if name.startswith("up_blocks.")}
    outermost = {f"1.{part}.{layer}" for layer in (2, 1, 0)[: branch + 1] for part in ("resnets", "attentions")}
    inner = {"0.resnets.2", "0.attentions.2", "0.upsamplers.0"} if branch == 3 else set()
    assert up == outermost | inner
    others = {name.split(".")[0] for name in names} - {"down_blocks", "up_blocks"}
    assert others == {"conv_in", "time_embedding", "add_embedding", "conv_norm_out", "conv_out"}


def test_the_canonical_graph_stays_as_it_is(unet: Traced) -> None:
    before = [(node.name, [value.name for value in node.outputs]) for node in unet.graph.graph]
    deep_graph(unet.graph, unet.description, 1)
    shallow_graph(unet.graph, unet.description, 1)
    assert [(node.name, [value.name for value in node.outputs]) for node in unet.graph.graph] == before
    assert [value.name for value in unet.graph.graph.outputs] == ["out_sample"]


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "onnxruntime-cuda"])
def test_lowered_variants_are_the_canonical_ones(unet: Traced, calls: Call, target: str) -> None:
    def lower(graph: ir.Model) -> None:
        assert any(lowering.TARGETS[target].lower(graph).values())
        if target == "onnxruntime-cuda":
            inline(graph)  # what only CUDA has kernels for

    deep = opened(unet, deep_graph(unet.graph, unet.description, 1), lower)
    shallow = opened(unet, shallow_graph(unet.graph, unet.description, 1), lower)
    for found, wanted in zip(cached_calls(deep, shallow, calls), expected(unet, calls, 1), strict=True):
        assert relative(found, wanted) < LIMIT


def test_the_feature_of_a_bfloat16_graph_is_float32_outside() -> None:
    one_level = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [12]}
    small = {
        **one_level,
        "layers_per_block": 1,
        "addition_embed_type": None,
        "projection_class_embeddings_input_dim": None,
    }
    config = UNet2DConditionModel.from_config({**CONFIG, **small}).config.to_dict()
    (description,) = describe("UNet2DConditionModel", "unet", config, {})
    graph, _ = canonical_graph(description, "UNet2DConditionModel", config, "bf16")
    deep, shallow = deep_graph(graph, description, 0), shallow_graph(graph, description, 0)
    given = shallow.graph.graph.inputs[len(shallow.description.inputs) - 1]
    assert [(value.name, value.dtype) for value in (*deep.graph.graph.outputs, given)] == [
        ("out_sample", ir.DataType.FLOAT),
        (CACHED_FEATURE, ir.DataType.FLOAT),
        (CACHED_FEATURE, ir.DataType.FLOAT),
    ]
    (inside,) = {usage.node.outputs[0].dtype for usage in given.uses()}
    assert inside == ir.DataType.BFLOAT16


def test_branches_are_counted_from_the_outside() -> None:
    names = [f"up_blocks.{block}.resnets.{layer}.norm1.weight" for block in (0, 1, 10) for layer in (0, 1)]
    assert branches([*names, "mid_block.resnets.0.norm1.weight"])[:3] == [(10, 1), (10, 0), (1, 1)]


def test_an_export_has_them_over_the_same_weights(tiny: Callable[[str], tuple[Path, Path]]) -> None:
    folder, _ = tiny("SDXL")
    manifest = read_manifest(folder)
    assert manifest is not None
    record = manifest.components["unet"]
    assert record.cache_branch_id == 1
    assert record.variants == {
        variant: {"onnx": f"unet/model.{variant}.onnx", "onnxruntime-cpu": f"unet/model.{variant}.onnxruntime-cpu.onnx"}
        for variant in (DEEP, SHALLOW)
    }
    assert manifest.components["vae_decoder"].variants == {}
    assert record.fidelity is not None
    measured = {name: graph["relative_error"] for name, graph in record.fidelity["graphs"].items()}
    assert measured.keys() == {
        f"{variant}{target}" for variant in ("", "deep.", "shallow.") for target in ("onnx", "onnxruntime-cpu")
    } - {"deep.onnx", "shallow.onnx"} | {"deep", "shallow"}
    assert all(0 < error < record.fidelity["limit"] for error in measured.values())


# who is refused


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--deep-cache", "--cache-branch-id", "6"),
            "cache_branch_id must be below 6, as many as this UNet has skips, ",
        ),
        (("--deep-cache", "--cache-branch-id", "-1"), "cache_branch_id must be 0 or more, got -1"),
        (("--cache-branch-id", "1"), "--cache-branch-id is of DeepCache's graphs: ask for them, --deep-cache"),
        (("--deep-cache", "--components", "vae"), "--deep-cache is of a UNet2DConditionModel, and none is exported"),
    ],
)
def test_graphs_that_cannot_be(
    linear_checkpoint: Path, tmp_path: Path, fails: Callable[..., str], options: tuple[str, ...], sentence: str
) -> None:
    assert fails(linear_checkpoint, tmp_path / "out", *options).startswith(sentence)


def test_the_branch_is_part_of_what_an_export_is_of() -> None:
    assert ExportOptions(cache_branch_id=0) != ExportOptions()
