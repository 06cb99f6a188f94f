"""Model folders in 8 bits: what is written, what it computes, and what is not kept."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, create_calibrator

from safelight.export.engines.build import BuildOptions, build_engines
from safelight.export.quantization import calibration, folder, network
from safelight.export.quantization.gate import FAST_ENOUGH, Timing, at_own_size, timed
from safelight.export.quantization.request import OPERATORS, Request, check_processor, check_request, is_sensitive
from safelight.export.quantization.stored import float_graph
from safelight.runtime import DiffusionPipeline, bundled_model, cli
from safelight.runtime.engines.store import EngineStore
from safelight.runtime.fidelity import Proof, Spread, check, limit, psnr
from safelight.runtime.fidelity.report import INT8, run_limits
from safelight.runtime.manifest import read_manifest
from safelight.runtime.model_folder import ModelFolder, open_model_folder

VNNI = {"fpu", "avx512_vnni"}


def here(function: Callable[..., Any], *arguments: Any, name: str, progress: Callable[[str], None]) -> tuple[Any, int]:
    """In the test's own process: see `run_apart`."""
    return function(*arguments, progress=progress), 0


def as_fast(ratio: float) -> Callable[..., dict[str, Timing]]:
    """What `time_networks` finds where the result takes so much of the source's time."""

    def found(_source: ModelFolder, _result: ModelFolder, calls: dict[str, Any], **_: Any) -> dict[str, Timing]:
        timing = Timing(backend="onnxruntime", precision="auto", shapes={}, source=[2.0] * 3, result=[2.0 * ratio] * 3)
        return dict.fromkeys(calls, timing)

    return found


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run in place of eight, on a processor that has the instructions."""
    monkeypatch.setattr(calibration, "PROMPTS", calibration.PROMPTS[:1])
    monkeypatch.setattr(folder, "run_apart", here)
    monkeypatch.setattr("safelight.export.quantization.request._flags", lambda: VNNI)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with its UNet and its decoder in 8 bits, as the command writes it."""
    path = tmp_path_factory.mktemp("quantized") / "int8"
    options = ["--networks", "unet,vae_decoder", "--backend", "onnxruntime", "--threads", "1", "--keep-anyway"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safelight.export.quantization.request._flags", lambda: VNNI)
        assert cli.main(["quantize", str(bundled_model()), str(path), *options]) == 0
    return path


@pytest.fixture(scope="module")
def weights_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "int8"
    options = ["--networks", "unet", "--activations", "none", "--backend", "onnxruntime", "--threads", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "time_networks", as_fast(2.0))  # they need not be faster
        assert cli.main(["quantize", str(bundled_model()), str(path), *options]) == 0
    return path


def quantize(destination: Path, *options: str) -> int:
    """Of the smallest network that a run calls."""
    fixed = ["--networks", "vae_decoder", "--backend", "onnxruntime", "--threads", "1"]
    return cli.main(["quantize", str(bundled_model()), str(destination), *fixed, *options])


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_ranges_are_those_of_the_calibrator_of_onnx_runtime(tmp_path: Path) -> None:
    graph = bundled_model() / "vae_decoder" / "model.onnx"
    model, _ = float_graph(graph)
    onnx.save(model, tmp_path / "model.onnx")
    latents = np.random.default_rng(0).standard_normal((3, 1, 4, 6, 5), dtype=np.float32)
    calls = [{"latent_sample": each} for each in latents]

    class Reader(CalibrationDataReader):
        left = iter(calls)

        def get_next(self) -> Any:
            return next(self.left, None)

    calibrator = create_calibrator(tmp_path / "model.onnx", list(OPERATORS), str(tmp_path / "augmented.onnx"))
    calibrator.collect_data(Reader())
    expected = {name: found.range_value for name, found in calibrator.compute_data().items()}
    found = calibration.activation_ranges(graph, sorted(expected), calls)
    assert len(expected) > 20
    for name, (least, most) in expected.items():
        np.testing.assert_allclose(found[name], (least.item(), most.item()), rtol=1e-4, atol=1e-5, err_msg=name)


def test_weights_are_rounded_to_the_nearest_of_255_steps_of_each_channel(quantized: Path) -> None:
    source, result = open_model_folder(bundled_model()), open_model_folder(quantized)
    assert result.manifest is not None
    record = result.manifest.components["unet"].quantization
    assert record is not None
    before, after = source.weights("unet"), result.weights("unet")
    assert set(record.in_float) == {name for name in before if is_sensitive(name) and name.endswith(".weight")}
    rounded = {name.removesuffix("_quantized") for name in after if name.endswith("_quantized")}
    assert len(rounded) == sum(record.operators.values()) > 100
    for name in before:
        if name not in rounded:
            assert after[name].dtype == np.float16  # as the source stores it
            np.testing.assert_array_equal(after[name], before[name])
            continue
        whole, scale = after[f"{name}_quantized"], np.asarray(after[f"{name}_scale"])
        assert whole.dtype == np.int8
        # the channels of a convolution come first; a MatMul's weight is stored as its transpose
        shape = (-1, *[1] * (whole.ndim - 1)) if whole.ndim == 4 else (1, -1)
        exact = before[name].astype(np.float32)
        others = tuple(axis for axis in range(exact.ndim) if axis != (0 if whole.ndim == 4 else 1))
        np.testing.assert_allclose(scale, np.abs(exact).max(axis=others) / 127.5, rtol=5e-3)
        step = scale.reshape(shape)
        assert (np.abs(whole * step - exact) <= 0.501 * step + 0.01 * np.abs(exact)).all(), name


def test_the_weight_file_is_a_safetensors_file_of_half_the_size(quantized: Path) -> None:
    path = quantized / "unet" / "model.onnx_data"
    tensors = safetensors.numpy.load_file(path)
    assert Counter(str(tensor.dtype) for tensor in tensors.values())["int8"] > 100
    assert path.stat().st_size < 0.6 * (bundled_model() / "unet" / "model.onnx_data").stat().st_size
    assert (quantized / "unet" / "model.onnx").stat().st_size < 500_000  # no weight is in the graph


def test_the_folder_is_whole_and_says_what_it_is(quantized: Path) -> None:
    result = open_model_folder(quantized)
    result.verify()
    assert result.manifest is not None
    source = read_manifest(bundled_model())
    assert source is not None
    files = {path.relative_to(quantized).as_posix() for path in quantized.rglob("*") if path.is_file()}
    assert files == {*result.manifest.files, "safelight.json"}
    for name, record in result.manifest.components.items():
        assert (record.quantization is not None) == (name in ("unet", "vae_decoder"))
        assert record.inputs == source.components[name].inputs
    unet = result.manifest.components["unet"]
    assert unet.graphs == {"onnx": "unet/model.onnx"}
    assert unet.quantization is not None
    assert unet.quantization.quantizer == f"onnxruntime {onnxruntime.__version__}"
    assert unet.quantization.calls == 8 * 6  # prompts, steps
    assert unet.quantization.measured is not None
    assert len(unet.quantization.measured["source"]) == len(unet.quantization.measured["result"]) >= 5
    assert unet.fidelity is not None
    assert 0.005 < unet.fidelity["graphs"]["onnx"]["relative_error"] < unet.fidelity["limit"]
    layers = sum(unet.quantization.operators.values())
    counted = operators(quantized / "unet" / "model.onnx")
    # one for each weight, and one for each activation, which several layers may read
    assert layers < counted["DequantizeLinear"] == layers + counted["QuantizeLinear"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_both_engines_keep_within_the_limits(backend: str, quantized: Path) -> None:
    result = open_model_folder(quantized)
    report = check(result, Proof.read(result), backend=backend, threads=1)
    report.raise_for_failure()
    assert report.run is not None
    assert report.run.psnr > 30
    assert {name: part.dtype for name, part in report.components.items()} == {
        "text_encoder": "float32",
        "unet": INT8,
        "vae_decoder": INT8,
        "vae_encoder": "float32",
    }
    for name in ("unet", "vae_decoder"):
        assert report.components[name].graphs["onnx"].relative_error > 3e-3, "it computes in float"


def test_a_pipeline_opens_it(quantized: Path) -> None:
    pictures = []
    for model in (bundled_model(), quantized):
        pipeline = DiffusionPipeline.from_pretrained(model, backend="onnxruntime", threads=1)
        pipeline.set_progress_bar_config(disable=True)
        found = pipeline("green frog", num_inference_steps=8, seed=3, output_type="np").images[0]
        pictures.append((found * 255).round().astype(np.uint8))
    assert 28 < psnr(pictures[1], pictures[0]) < 60


def test_weights_alone_compute_what_widened_weights_compute(weights_alone: Path) -> None:
    counted = operators(weights_alone / "unet" / "model.onnx")
    assert counted["QuantizeLinear"] == 0
    result = open_model_folder(weights_alone)
    assert result.manifest is not None
    record = result.manifest.components["unet"].quantization
    assert record is not None
    assert record.activations is None
    assert record.operators.keys() == {"Conv", "MatMul"}
    assert counted["DequantizeLinear"] == sum(record.operators.values()) > 100
    weights = result.weights("unet")
    model, _ = float_graph(bundled_model() / "unet" / "model.onnx")
    for tensor in model.graph.initializer:
        if (whole := weights.get(f"{tensor.name}_quantized")) is not None:
            scale = weights[f"{tensor.name}_scale"]
            wide = whole * (scale.reshape(-1, 1, 1, 1) if whole.ndim == 4 else scale)
            tensor.CopyFrom(numpy_helper.from_array(wide.astype(np.float32), tensor.name))
    call = Proof.read(result).of("unet")[0].arrays()
    options = onnxruntime.SessionOptions()  # with optimizations, a MatMul would quantize its activations
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    graphs = (model.SerializeToString(), str(weights_alone / "unet" / "model.onnx"))
    (expected,), (found,) = (
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]).run(None, call)
        for graph in graphs
    )
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_a_slower_one_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folder, "time_networks", as_fast(1.25))
    assert quantize(tmp_path / "slow") == 1
    *_, sentence = capsys.readouterr().err.splitlines()
    assert sentence.startswith(
        "safelight: vae_decoder: int8 is 1.25 x the time of onnxruntime in its fastest precision"
    )
    assert " dB; at most 0.95 x is worth keeping; not kept (--keep-anyway keeps it)" in sentence
    assert not list(tmp_path.iterdir())
    assert quantize(tmp_path / "slow", "--keep-anyway") == 0
    assert "not within the gate: vae_decoder: int8 is 1.25 x" in capsys.readouterr().out
    open_model_folder(tmp_path / "slow").verify()


def test_a_fast_but_unfaithful_one_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranges that are a fifth of what they should be cut the activations off."""
    monkeypatch.setattr(folder, "time_networks", as_fast(0.5))

    def narrow(*arguments: Any) -> Any:
        found = calibration.activation_ranges(*arguments)
        return {name: (least / 5, most / 5) for name, (least, most) in found.items()}

    monkeypatch.setattr(network, "activation_ranges", narrow)
    assert quantize(tmp_path / "broken") == 1
    *_, sentence = capsys.readouterr().err.splitlines()
    assert sentence.startswith("safelight: vae_decoder: model.onnx differs from the reference: output sample of call")
    assert not list(tmp_path.iterdir())


def test_networks_are_timed_in_turn() -> None:
    order: list[str] = []

    class Named:
        inputs = outputs = ()

        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, inputs: Any, outputs: Any = None) -> dict[str, Any]:
            order.append(self.name)
            return {}

        def close(self) -> None:
            pass

    found = timed(Named("source"), Named("result"), {"x": np.zeros((2, 3))}, backend="none")
    assert order[4:8] == ["source", "result", "result", "source"]
    assert order.count("source") == order.count("result") == len(found.source) + 2
    assert found.shapes == {"x": [2, 3]}
    one_disturbed = replace(found, source=[1.0, 1.0, 1.0], result=[0.8, 50.0, 0.7])
    assert one_disturbed.ratio == 0.8 < FAST_ENOUGH
    assert json.dumps(one_disturbed.record())


def test_latents_are_of_the_models_own_size() -> None:
    source = open_model_folder(bundled_model())
    latents = np.arange(2 * 4 * 8 * 6, dtype=np.float32).reshape(2, 4, 8, 6)
    grown = at_own_size(source, "unet", {"sample": latents, "timestep": np.ones(2)})
    assert grown["sample"].shape == (2, 4, 16, 16)
    np.testing.assert_array_equal(grown["sample"][:, :, 8:, :6], latents)
    text = {"input_ids": np.zeros((1, 4))}
    assert at_own_size(source, "text_encoder", text) is text


def test_limits() -> None:
    spread = Spread(half_precision=1e-3, overflows=False, weights=0.0)
    assert limit(INT8, spread) == pytest.approx(0.064)
    assert limit(INT8, replace(spread, half_precision=0.1)) == 0.5
    drifts, least = run_limits({INT8, "float32"}, 0.0, [1e-3, 2e-3], 80.0)
    assert drifts == pytest.approx([0.064, 0.128])
    assert least == pytest.approx(80 - 6 - 20 * np.log10(16))
    assert run_limits({INT8, "float32"}, 0.0, [1e-3], 50.0)[1] == 30.0, "30 dB are asked of every one"


def test_layers_that_stay_in_float() -> None:
    assert is_sensitive("conv_in.weight")
    assert is_sensitive("decoder.conv_out.weight")
    assert is_sensitive("down_blocks.0.resnets.1.time_emb_proj.weight")
    assert is_sensitive("post_quant_conv.weight")
    assert not is_sensitive("down_blocks.0.resnets.1.conv1.weight")
    assert not is_sensitive("up_blocks.0.upsamplers.0.conv.weight")


def refused(source: Path, request: Request, kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind) as caught:
        check_request(open_model_folder(source), request)
    return str(caught.value)


def test_bad_requests(tmp_path: Path, quantized: Path) -> None:
    with pytest.raises(ValueError, match="weights can be quantized to int8, got 'int4'"):
        Request(weights="int4")
    with pytest.raises(ValueError, match="activations can be int8 or none, got 'fp8'"):
        Request(activations="fp8")
    with pytest.raises(ValueError, match="there must be a network to quantize"):
        Request(networks=())
    assert "has no network vae, transformer; it has text_encoder, unet" in refused(
        bundled_model(), Request(networks=("unet", "vae", "transformer"))
    )
    already = f"unet is quantized already (onnxruntime {onnxruntime.__version__}): start from the exported folder"
    assert refused(quantized, Request()) == already
    foreign = shutil.copytree(bundled_model(), tmp_path / "foreign")
    (foreign / "safelight.json").unlink()
    assert "has no safelight.json" in refused(foreign, Request())


def test_folders_that_cannot_be_quantized(tmp_path: Path) -> None:
    source = open_model_folder(bundled_model())
    assert source.manifest is not None
    for number, (manifest, kind, message) in enumerate(
        (
            (
                replace(source.manifest, files={n: r for n, r in source.manifest.files.items() if "proof" not in n}),
                FileNotFoundError,
                "carries no proof of fidelity, by which the result is judged",
            ),
            (
                replace(
                    source.manifest,
                    components={
                        **source.manifest.components,
                        "unet": replace(source.manifest.components["unet"], dtype="fp16"),
                    },
                ),
                ValueError,
                "unet computes in fp16: quantize an export of --dtype fp32",
            ),
        )
    ):
        copy = shutil.copytree(bundled_model(), tmp_path / str(number))
        manifest.write(copy)
        assert message in refused(copy, Request(), kind)


def test_processors() -> None:
    check_processor({"fpu", "avx2", "avx_vnni"})
    check_processor({"fp", "asimd", "asimddp"})
    check_processor(set())  # the system does not say
    with pytest.raises(ValueError, match=r"no products of 8-bit integers .* or use --activations none"):
        check_processor({"fpu", "avx2", "avx512f"})


def test_what_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert quantize(tmp_path / "out") == 1
    assert "has other content; name a folder that is new or empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10**6))
        assert quantize(tmp_path / "out") == 1
    assert "GB and" in (printed := capsys.readouterr().err)
    assert "has 0.0 GB free" in printed

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "model.onnx_data")

    monkeypatch.setattr(network, "save_graph", full)
    assert quantize(tmp_path / "out") == 1
    assert capsys.readouterr().err.endswith("safelight: No space left on device: model.onnx_data\n")
    assert not list(tmp_path.iterdir())


def test_engines_are_not_built_of_it(quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unet, vae_decoder is quantized"):
        build_engines(open_model_folder(quantized), BuildOptions(flavour="tensorrt-rtx"), EngineStore(tmp_path))


def test_neither_torch_nor_the_reference_is_needed() -> None:
    code = (
        "import sys; from safelight.export.quantization import folder; "
        "print({name for name in sys.modules if name in ('torch', 'safelight.reference', 'openvino')})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_without_onnx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert quantize(tmp_path / "out") == 1
    assert "quantize needs: pip install 'safelight[export]'" in capsys.readouterr().err
