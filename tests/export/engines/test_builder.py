"""Engines by the real wheel of TensorRT for RTX, which builds them on any machine, and runs none of them here."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorrt_rtx
import torch
from engine_graphs import CASES, FLAVOUR, graph_of, silent, task_of
from graphs import traced

from safelight.export import lowering
from safelight.export.engines import builder
from safelight.export.engines.builder import PlanTask, build_plan, read_network
from safelight.export.engines.phases import Phases
from safelight.export.engines.timing_cache import keep_timing_cache, use_timing_cache
from safelight.runtime.engines import Profile, ShapeRange
from safelight.runtime.engines.flavours import flavour
from safelight.runtime.manifest import TensorRecord
from safelight.runtime.source import bundled_model

TRT = flavour(FLAVOUR)
#: what a plan begins with
MAGIC = b"vtrt"


@pytest.mark.parametrize(("name", "network"), CASES)
def test_every_network_builds_in_float16(name: str, network: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    folder, vae = model(name), network.startswith("vae")
    result = build_plan(task_of(folder, network, tmp_path / "plan"), progress=silent)
    plan = (tmp_path / "plan").read_bytes()
    weights = json.loads((folder / "safelight.json").read_text())["files"][f"{network}/model.onnx_data"]["size"]
    assert plan.startswith(MAGIC)
    assert len(plan) > weights / 2  # which are stored in 4 bytes each, or in 2
    dtypes = {tensor.name: tensor.dtype for tensor in (*result.inputs, *result.outputs)}
    integers = {name: dtypes.pop(name) for name in ("input_ids", "timestep") if name in dtypes}
    assert integers == ({"timestep": "float32"} if network == "unet" else {} if vae else {"input_ids": "int64"})
    assert set(dtypes.values()) == {"float32" if vae else "float16"}
    assert result.outputs[0].shape[0] == "batch"
    assert 0 < result.seconds < 600


def layers(graph: Path) -> Counter[str]:
    """How many layers of each kind TensorRT reads."""
    made = builder._logger(TRT)
    network, _parser = read_network(TRT, tensorrt_rtx.Builder(made), made, graph)
    return Counter(network.get_layer(at).type.name for at in range(network.num_layers))


@pytest.mark.parametrize(("heads", "fused"), [(1, 2), (4, 0)])  # of 64 channels, and of 16
def test_attention_is_one_kernel_where_there_is_one(heads: int, fused: int, tmp_path: Path) -> None:
    config = {
        "hidden_size": 64,
        "intermediate_size": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "vocab_size": 100,
        "max_position_embeddings": 16,
    }
    network = traced("CLIPTextModel", config, torch.float16, tmp_path)
    found = layers(network.write("model.tensorrt.onnx", lowering.TARGETS["tensorrt"].lower))
    assert (found["ATTENTION_INPUT"], found["SOFTMAX"]) == (fused, 2 - fused)


def test_bfloat16_computes_in_it_and_has_float32_borders(tmp_path: Path) -> None:
    result = build_plan(task_of(bundled_model(), "text_encoder", tmp_path / "plan", dtype="bf16"), progress=silent)
    assert {tensor.dtype for tensor in result.outputs} == {"float32"}
    made = builder._logger(TRT)
    network, _parser = read_network(
        TRT, tensorrt_rtx.Builder(made), made, graph_of(bundled_model(), "text_encoder", "bf16")
    )
    products = [layer for layer in map(network.get_layer, range(network.num_layers)) if "MATRIX" in layer.type.name]
    assert {layer.get_output(0).dtype.name for layer in products} == {"BF16"}


@pytest.fixture
def product(tmp_path: Path) -> PlanTask:
    """A matrix product: y = x w, of 8 channels."""
    weights = onnx.numpy_helper.from_array(np.ones((8, 8), np.float16), "w")
    return write_graph(tmp_path, [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], [weights])


def write_graph(folder: Path, nodes: list[Any], weights: list[Any]) -> PlanTask:
    half = onnx.TensorProto.FLOAT16
    x, y = (onnx.helper.make_tensor_value_info(name, half, ["batch", 8]) for name in "xy")
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=[onnx.helper.make_opsetid("", 21)]
    )
    model.ir_version = 10
    onnx.save(model, folder / "model.onnx")
    shapes = {"x": ShapeRange(smallest=(1, 8), usual=(2, 8), largest=(4, 8))}
    return PlanTask(
        flavour=FLAVOUR,
        network="product",
        graph=folder / "model.onnx",
        plan=folder / "plan",
        profiles=(Profile(label="1 to 4", shapes=shapes),),
        inputs=(TensorRecord(name="x", dtype="float16", shape=["batch", 8]),),
        outputs=(TensorRecord(name="y", dtype="float16", shape=["batch", 8]),),
        gpus=("sm89",),
    )


def test_a_node_that_tensorrt_does_not_know_is_named(tmp_path: Path) -> None:
    task = write_graph(tmp_path, [onnx.helper.make_node("Unheard", ["x"], ["y"], name="odd", domain="other")], [])
    with pytest.raises(ValueError, match=r"TensorRT cannot read .*model.onnx: node odd \(Unheard\): "):
        build_plan(task, progress=silent)
    assert not task.plan.exists()


def test_what_is_no_graph_is_refused(product: PlanTask) -> None:
    product.graph.write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"TensorRT cannot read .*model.onnx: \S"):
        build_plan(product, progress=silent)


def test_what_tensorrt_cannot_build_is_told_in_its_words(product: PlanTask) -> None:
    """Halves of another kind, which Turing has no arithmetic for."""
    text = onnx.load(product.graph)
    for value in (*text.graph.input, *text.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    text.graph.initializer[0].data_type = onnx.TensorProto.BFLOAT16
    onnx.save(text, product.graph)
    with pytest.raises(ValueError, match=r"^TensorRT cannot build the product: .*sm75.*datatypes"):
        build_plan(replace(product, gpus=("sm75",)), progress=silent)
    assert not product.plan.exists()


def test_a_profile_that_tensorrt_does_not_take_is_refused(product: PlanTask) -> None:
    shapes = {"x": ShapeRange(smallest=(4, 8), usual=(2, 8), largest=(1, 8))}
    with pytest.raises(ValueError, match="product: TensorRT takes no profile of 1 to 4"):
        build_plan(replace(product, profiles=(replace(product.profiles[0], shapes=shapes),)), progress=silent)


def test_inputs_must_be_those_of_the_manifest(product: PlanTask) -> None:
    other = (TensorRecord(name="sample", dtype="float16", shape=["batch", 8]),)
    with pytest.raises(ValueError, match="the graph of product has x, and the manifest sample"):
        build_plan(replace(product, inputs=other), progress=silent)


def test_one_profile_of_the_engine_for_each_bucket(product: PlanTask, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = builder._configuration

    def configuration(*arguments: Any) -> Any:
        seen.append(original(*arguments))
        return seen[0]

    monkeypatch.setattr(builder, "_configuration", configuration)
    wide = Profile(label="16", shapes={"x": ShapeRange(smallest=(16, 8), usual=(16, 8), largest=(16, 8))})
    task = replace(product, profiles=(*product.profiles, wide), gpus=("sm80", "sm120"), optimization_level=1)
    build_plan(replace(task, memory_limit=2 * 10**9), progress=silent)
    (config,) = seen
    assert config.num_optimization_profiles == 2
    assert [config.get_compute_capability(at).name for at in range(2)] == ["SM80", "SM120"]
    assert config.builder_optimization_level == 1
    assert config.get_memory_pool_limit(tensorrt_rtx.MemoryPoolType.WORKSPACE) == 2 * 10**9
    assert config.get_flag(tensorrt_rtx.BuilderFlag.TF32)
    assert not config.get_flag(tensorrt_rtx.BuilderFlag.STRIP_PLAN)


def test_stripped_plan_leaves_out_exactly_the_weights_that_are_named(
    product: PlanTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as TensorRT for RTX goes without NVIDIA's driver: what it is told."""
    seen: list[Any] = []
    original = builder._configuration

    def configuration(trt: Any, made: Any, network: Any, task: PlanTask) -> Any:
        config = original(trt, made, network, task)
        flags = ("STRIP_PLAN", "REFIT_INDIVIDUAL", "REFIT", "REFIT_IDENTICAL")
        seen.append([config.get_flag(getattr(tensorrt_rtx.BuilderFlag, flag)) for flag in flags])
        seen.append([network.are_weights_marked_refittable(name) for name in ("w", "unknown")])
        return config

    monkeypatch.setattr(builder, "_configuration", configuration)
    try:
        build_plan(replace(product, refittable=("w",)), progress=silent)
    except ValueError as error:
        assert "CUDA_SUCCESS" in str(error)  # noqa: PT017 - where there is a driver, it builds
    assert seen == [[True, True, False, False], [True, False]]
    with pytest.raises(ValueError, match="product: TensorRT has no weight v of the graph"):
        build_plan(replace(product, refittable=("w", "v")), progress=silent)


def test_progress_is_told_while_it_builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("safelight.export.engines.phases._TELL_EVERY", 0.0)
    lines: list[str] = []
    build_plan(task_of(bundled_model(), "vae_decoder", tmp_path / "plan"), progress=lines.append)
    assert (lines[0], lines[-1]) == ("vae_decoder: reading the graph", "vae_decoder: writing the plan")
    percent = [int(line.removeprefix("vae_decoder: building, ").removesuffix("%")) for line in lines[1:-1]]
    assert percent == sorted(percent)
    assert percent[0] < 20
    assert 70 < percent[-1] <= 100


def test_phases_within_phases() -> None:
    phases = Phases()
    assert phases.fraction() == 0
    phases.start("build", None, 4)
    phases.step("build", 0)
    phases.start("layers", "build", 10)
    assert phases.fraction() == 1 / 4
    phases.step("layers", 4)
    assert phases.fraction() == pytest.approx(1 / 4 + 1 / 8)
    phases.step("layers", 9)
    phases.finish("layers")
    phases.step("build", 1)
    assert phases.fraction() == 1 / 2
    phases.step("unknown", 3)
    phases.finish("unknown")
    phases.start("nothing to do", "build", 0)
    assert phases.fraction() == 1 / 2


@pytest.mark.parametrize(
    ("error", "kind"), [("OutOfMemory (Requested size was 5)", MemoryError), ("other", ValueError)]
)
def test_want_of_memory_is_told_apart(error: str, kind: type[Exception]) -> None:
    failure = builder._failure("unet", ["first", "second", "third", error])
    assert type(failure) is kind
    assert str(failure).endswith(f"second; third; {error}")
    assert "does not say why" in str(builder._failure("unet", []))


@pytest.mark.filterwarnings("ignore:.*no-ops in TensorRT-RTX:DeprecationWarning")
def test_timing_cache_is_kept_and_used_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "timings"
    made = builder._logger(TRT)  # which has to be there as long as the builder is
    config = tensorrt_rtx.Builder(made).create_builder_config()
    keep_timing_cache(use_timing_cache(config, path), path)
    assert path.stat().st_mode & 0o777 == 0o600
    content = path.read_bytes()
    keep_timing_cache(use_timing_cache(config, path), path)
    assert path.read_bytes() == content
    path.write_bytes(b"of something else")
    keep_timing_cache(use_timing_cache(config, path), path)
    assert path.read_bytes() == content
    path.chmod(0o666)
    use_timing_cache(config, path)
    assert "chmod go-w" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == ["timings"]


def test_timings_of_another_gpu_are_begun_anew(tmp_path: Path) -> None:
    """With a configuration that stands for TensorRT's: that of TensorRT for RTX takes every cache."""

    class Configuration:
        used: bytes | None = None

        def create_timing_cache(self, content: bytes) -> bytes:
            return content

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            if cache == b"foreign" and not ignore_mismatch:
                return False
            self.used = cache
            return True

    path, config = tmp_path / "timings", Configuration()
    path.write_bytes(b"foreign")
    assert use_timing_cache(config, path) == b""
    assert config.used == b""
    path.write_bytes(b"own")
    assert use_timing_cache(config, path) == b"own"
