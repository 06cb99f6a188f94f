"""Every network of the bundled model and of tiny checkpoints, for every GPU that TensorRT for RTX builds for.

`make test-engines`. With SAFELIGHT_RECORD=FILE the numbers are written there (benchmarks/results/engine-matrix.json).
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from engine_graphs import CASES, FLAVOUR, silent, task_of
from graphs import operators, traced
from recorded import record

from safelight.export import lowering
from safelight.export.engines.builder import PlanTask, build_plan
from safelight.export.engines.gpus import known_gpus
from safelight.export.options import DTYPES
from safelight.export.worker import run_apart
from safelight.runtime.engines import Profile, ShapeRange
from safelight.runtime.engines.flavours import flavour
from safelight.runtime.manifest import TensorRecord

pytestmark = pytest.mark.engine_matrix

GPUS = known_gpus(flavour(FLAVOUR))
#: Turing has no bfloat16
ROWS = [(gpu, dtype) for gpu in GPUS for dtype in ("fp16", "bf16") if (gpu, dtype) != ("sm75", "bf16")]
#: networks with attention in float32, of which TensorRT for RTX has no matrix products for Turing
NOT_ON_TURING = {("SD2", "unet"), ("SDXL", "vae_decoder"), ("SDXL", "vae_encoder")}


@pytest.mark.parametrize(("gpu", "dtype"), ROWS)
@pytest.mark.parametrize(("name", "network"), CASES)
def test_builds(name: str, network: str, gpu: str, dtype: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    vae_dtype = "bf16" if dtype == "bf16" else "fp32"
    task = task_of(model(name), network, tmp_path / "plan", dtype=dtype, vae_dtype=vae_dtype, gpu=gpu)
    if gpu == "sm75" and (name, network) in NOT_ON_TURING:
        with pytest.raises(ValueError, match=r"node_MatMul_\d+' for Turing \(SM75\): FP32 GEMM is not supported"):
            build_plan(task, progress=silent)
        record(f"{name.lower()} {network}, {gpu}, {dtype}", refused="FP32 GEMM is not supported")
        return
    result = build_plan(task, progress=silent)
    borders = {"float32"} if dtype == "bf16" or network.startswith("vae") else {"float16"}
    assert {tensor.dtype for tensor in result.outputs} == borders
    size = task.plan.stat().st_size
    assert size > task.graph.with_name("model.onnx_data").stat().st_size / 2
    record(f"{name.lower()} {network}, {gpu}, {dtype}", seconds=round(result.seconds, 2), plan_bytes=size)


@pytest.mark.parametrize(("name", "network"), CASES)
def test_memory_of_a_build(name: str, network: str, model: Callable[[str], Path], tmp_path: Path) -> None:
    task = task_of(model(name), network, tmp_path / "plan")
    _, peak = run_apart(build_plan, task, name=network, progress=silent)
    assert 100e6 < peak < 2e9
    record(f"{name.lower()} {network}, sm89, fp16", peak_memory=peak)


@pytest.mark.parametrize(("gpu", "dtype"), ROWS)
def test_fused_attention_builds(gpu: str, dtype: str, tmp_path: Path) -> None:
    """Heads of 40 channels, to the picture itself and to the text."""
    config = {
        "sample_size": 8,
        "block_out_channels": [80],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 24,
        "norm_num_groups": 8,
    }
    network = traced("UNet2DConditionModel", config, DTYPES[dtype], tmp_path)
    graph = network.write("model.tensorrt.onnx", lowering.TARGETS["tensorrt"].lower)
    assert operators(graph)["Attention"] == 2 * (1 + 1 + 2)
    sizes = {"batch": 2, "height": 8, "width": 8, "sequence_length": 5}
    described = network.description
    shapes = {}
    for tensor in described.inputs:
        shape = tuple(sizes[side] if isinstance(side, str) else side for side in tensor.shape)
        shapes[tensor.name] = ShapeRange(smallest=shape, usual=shape, largest=shape)
    task = PlanTask(
        flavour=FLAVOUR,
        network="unet",
        graph=graph,
        plan=tmp_path / "plan",
        profiles=(Profile(label="8x8", shapes=shapes),),
        inputs=tuple(TensorRecord(name=x.name, dtype="", shape=list(x.shape)) for x in described.inputs),
        outputs=tuple(TensorRecord(name=x.name, dtype="", shape=list(x.shape)) for x in described.outputs),
        gpus=(gpu,),
    )
    result = build_plan(task, progress=silent)
    record(f"fused attention, {gpu}, {dtype}", seconds=round(result.seconds, 2), plan_bytes=task.plan.stat().st_size)
