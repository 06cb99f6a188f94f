"""What a proof is made of: examples, views, pictures' likeness, limits, and files that hold no proof."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.metrics
from skimage import data

from safelight.runtime import bundled_model
from safelight.runtime.backends import open_network
from safelight.runtime.fidelity import (
    PROOF,
    TENSORS,
    Example,
    Proof,
    RecordedCall,
    Run,
    RunOptions,
    RunSpread,
    Spread,
    View,
    check,
    drift,
    psnr,
    ssim,
)
from safelight.runtime.fidelity.drawing import draw_mask, draw_picture
from safelight.runtime.fidelity.report import (
    ComponentFidelity,
    FidelityError,
    GraphFidelity,
    Report,
    RunFidelity,
    limit,
    run_limits,
)
from safelight.runtime.image_input import preprocess_image
from safelight.runtime.manifest import ComponentRecord, Manifest, TensorRecord, file_record
from safelight.runtime.model_folder import ModelFolder, open_model_folder


def test_examples_are_the_same_everywhere() -> None:
    """MurmurHash3's finalizer of 0 is 0 and of 1 is 0x514E28B7; an example is the mean of the four bytes."""
    first, second = Example((2,), 0).array()
    assert first == np.float32(-510 / 148)
    assert second == np.float32((0x51 + 0x4E + 0x28 + 0xB7 - 510) / 148)
    assert Example((2,), 0, "int64", below=1000).array().tolist() == [0, 0x514E28B7 % 1000]


def test_examples_look_normal_and_differ_by_seed() -> None:
    values = Example((3, 40, 500), 7).array()
    assert values.dtype == np.float32
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs(np.corrcoef(values.ravel()[1:], values.ravel()[:-1])[0, 1]) < 0.01
    assert abs(np.corrcoef(values.ravel(), Example((3, 40, 500), 8).array().ravel())[0, 1]) < 0.01


@pytest.mark.parametrize(
    "fields", [((2**20, 2**20), 0), ((2, 0), 0), ((2,), 0, "float64"), ((2,), 0, "int64", 0), ((2,), 0, "int64", 2**40)]
)
def test_examples_of_no_sense_are_refused(fields: Any) -> None:
    with pytest.raises(ValueError, match="an example cannot"):
        Example(*fields)


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 71, 53)])
def test_views_give_the_error_of_the_whole(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    expected = generator.normal(size=shape).astype(np.float32)
    noise = generator.normal(size=shape).astype(np.float32) * 1e-3
    view = View.of(expected)
    assert view.values.size <= 512
    assert view.errors(expected) == (0, 0)
    relative, absolute = view.errors(expected + noise)
    exact = np.linalg.norm(noise) / np.linalg.norm(expected)
    assert exact * 0.8 < relative < exact * 1.6
    assert absolute > np.abs(noise).max() * (0.999 if expected.size < 512 else 0.5)
    assert view.errors(0 * expected)[0] == 1


def test_nothing_escapes_a_sketch() -> None:
    """Each entry alone, changed by its own magnitude, shows as large as it is."""
    expected = np.random.default_rng(0).normal(size=(1, 3, 40, 41)).astype(np.float32)
    view = View.of(expected)
    for position in range(0, expected.size, 7):
        changed = expected.copy()
        changed.flat[position] += 1
        assert view.errors(changed)[1] == pytest.approx(1, rel=1e-4)
        changed.flat[position] = np.nan
        assert view.errors(changed) == (math.inf, math.inf)
    for places in (1, 41, 512):  # by 512 every entry meets the sum that it was in
        assert view.errors(np.roll(expected.ravel(), places).reshape(expected.shape))[0] > 1


def test_views_refuse_another_shape_or_kind_and_count_decisions() -> None:
    ones = np.ones((2, 2), np.float32)
    assert View.of(ones).errors(ones[:1]) == (math.inf, math.inf)
    assert View.of(ones).errors(np.ones((2, 2), np.int64)) == (math.inf, math.inf)
    assert View.of(ones).errors(np.ones((2, 2), np.float16)) == (0, 0)
    neither, one = np.zeros(2, np.bool_), np.array([True, False])
    assert View.of(neither).errors(neither) == View.of(one).errors(one) == (0, 0)
    assert View.of(one).errors(neither) == View.of(neither).errors(one) == (1, 1)
    zeros = np.zeros((2, 2), np.float32)
    assert View.of(zeros).errors(zeros) == (0, 0)
    assert View.of(zeros).errors(ones)[0] > 1


def test_pictures_are_compared_as_scikit_image_compares_them() -> None:
    picture = data.astronaut()[100:180, 60:190]
    noise = np.random.default_rng(0).integers(-12, 13, picture.shape)
    changed = np.clip(picture.astype(int) + noise, 0, 255).astype(np.uint8)
    assert psnr(changed, picture) == pytest.approx(skimage.metrics.peak_signal_noise_ratio(picture, changed))
    expected = skimage.metrics.structural_similarity(
        picture,
        changed,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )
    assert 0.5 < expected < 0.95
    assert ssim(changed, picture) == pytest.approx(expected, abs=1e-9)


def test_psnr_and_ssim_have_their_closed_forms() -> None:
    black, grey = np.zeros((16, 20, 3), np.uint8), np.full((16, 20, 3), 10, np.uint8)
    assert psnr(grey, black) == pytest.approx(20 * math.log10(25.5))
    assert psnr(grey, grey) == math.inf
    assert ssim(grey, grey) == 1
    c1 = (0.01 * 255) ** 2
    assert ssim(grey, black) == pytest.approx(c1 / (100 + c1))


def test_drift_is_of_the_latents_alone() -> None:
    generator = np.random.default_rng(0)
    steps = [generator.normal(size=(2, channels, 4, 4)) for channels in (5, 5, 4)]
    moved = [step.copy() for step in steps]
    moved[1][:, 4] += 1  # the depth beside the latents
    assert drift(moved, steps) == [0, 0]
    moved[2] *= 1.25
    assert drift(moved, steps) == [0, pytest.approx(0.25)]
    moved[1][0, 0, 0, 0] = np.nan
    assert drift(moved, steps)[0] == math.inf


def test_the_drawn_picture_and_mask_are_no_flat_ones() -> None:
    picture, mask = draw_picture(24, 40), draw_mask(24, 40)
    assert picture.shape == (24, 40, 3)
    assert picture.dtype == mask.dtype == np.uint8
    assert picture.std(axis=(0, 1)).min() > 20
    assert 0.1 < (mask == 255).mean() < 0.6
    assert set(np.unique(mask)) == {0, 255}


def test_limits_come_from_the_spread_and_pass_no_zeros() -> None:
    spread = Spread(half_precision=1.28e-3, overflows=False, weights=0.0)
    assert limit("float32", spread) == pytest.approx(4e-5)
    assert limit("float16", spread) == pytest.approx(3.84e-3)
    assert limit("bfloat16", spread) == pytest.approx(8 * 3.84e-3)
    assert limit("float32", replace(spread, weights=1e-3)) == pytest.approx(1.04e-3)
    assert limit("float16", replace(spread, weights=1e-3)) == pytest.approx(3.84e-3)
    assert limit("bfloat16", replace(spread, half_precision=0.4)) == 0.5


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float32"), ("cuda", "tf32"), ("cuda:1", "tf32")])
def test_float32_is_tf32_on_a_gpu(device: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def on_the_cpu(graph: Path, *, backend: str, device: str, **_: Any) -> Any:
        opened.append(device)
        return open_network(graph, backend=backend)

    monkeypatch.setattr(sys.modules[check.__module__], "open_network", on_the_cpu)
    folder = open_model_folder(bundled_model())
    proof = Proof.read(folder)
    report = check(folder, proof, device=device, target="onnx")
    assert set(opened) == {device}
    assert not report.failures
    for name, found in report.components.items():
        assert found.dtype == dtype
        assert found.limit == limit(dtype, proof.spreads[name])
    assert report.run is not None
    assert (report.run.drift_limit[0] > 2 * report.run.half_precision_drift[0]) == (dtype == "tf32")


def test_a_run_must_be_nearer_than_half_precision_where_it_is_not_that() -> None:
    assert run_limits({"float32"}, 0.0, [1.6e-3], 48.0) == ([pytest.approx(1e-4)], 48.0)
    assert run_limits({"float32"}, 1e-4, [1.6e-3], 48.0) == ([pytest.approx(6.4e-3)], 42.0)
    assert run_limits({"float32", "float16"}, 0.0, [1.6e-3], 48.0) == ([pytest.approx(6.4e-3)], 42.0)
    drifts, picture = run_limits({"bfloat16"}, 0.0, [1.6e-3], 48.0)
    assert drifts == [pytest.approx(8 * 6.4e-3)]
    assert picture == pytest.approx(48 - 6 - 18.06, abs=0.01)
    assert run_limits({"float32"}, 0.0, [1.6e-3], math.inf)[1] == 50.0


def made_proof() -> Proof:
    picture = draw_picture(16, 16)
    pixels = preprocess_image(picture[None].astype(np.float32) / 255, factor=1)
    latents = np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32)
    calls = [
        RecordedCall(
            network="unet",
            origin="run",
            inputs={
                "sample": np.concatenate([latents, latents]),
                "timestep": np.array([981.1, 981.1], np.float32),
                "input_ids": np.arange(200).reshape(2, 100),
            },
            outputs={"out_sample": View.of(latents)},
        ),
        RecordedCall(
            network="vae_encoder",
            origin="picture",
            inputs={"sample": pixels, "halves": latents.astype(np.float16).astype(np.float32)},
            outputs={"flagged": View.of(np.array([True, False]))},
        ),
        RecordedCall(network="unet", origin="example", inputs={"sample": Example((2, 4, 5, 5), 3)}, outputs={}),
    ]
    return Proof(
        calls=calls,
        spreads={"unet": Spread(half_precision=1e-3, overflows=True, weights=0.0)},
        run=Run("StableDiffusionPipeline", {"prompt": "a cat", "seed": 0}),
        run_spread=RunSpread(drift=[1e-3, 2e-3], psnr=math.inf),
        picture=picture,
        versions={"torch": "2"},
    )


@pytest.fixture
def written(tmp_path: Path) -> Callable[[], ModelFolder]:
    """A folder with a proof; called again after a change, with the hashes of the change."""
    made_proof().write(tmp_path)

    def folder() -> ModelFolder:
        files = {name: file_record(tmp_path / name) for name in (PROOF, TENSORS)}
        manifest = Manifest(dtype="fp32", weights_dtype="fp32", components={}, files=files)
        return ModelFolder(tmp_path, "StableDiffusionPipeline", {}, manifest)

    return folder


def test_a_proof_comes_back_bit_for_bit(written: Callable[[], ModelFolder]) -> None:
    expected, found = made_proof(), Proof.read(written())
    assert (found.spreads, found.run, found.run_spread) == (expected.spreads, expected.run, expected.run_spread)
    np.testing.assert_array_equal(found.picture, expected.picture)
    for one, other in zip(found.calls, expected.calls, strict=True):
        assert (one.network, one.origin, one.outputs.keys()) == (other.network, other.origin, other.outputs.keys())
        for name, value in other.arrays().items():
            assert one.arrays()[name].dtype == value.dtype
            np.testing.assert_array_equal(one.arrays()[name], value)
        for name, view in other.outputs.items():
            assert one.outputs[name].shape == view.shape
            np.testing.assert_array_equal(one.outputs[name].values, view.values)


def test_a_proof_holds_each_row_once_and_as_narrow_as_it_can_be(written: Callable[[], ModelFolder]) -> None:
    """The latents once, the picture as bytes once, halves as halves, the token ids; the example not at all."""
    floats, bytes_, halves, tokens = 4 * 256, 3 * 16 * 16, 2 * 256, 8 * 200
    size = written().file(TENSORS).stat().st_size
    content = floats + 4 * 256 + bytes_ + 3 * 16 * 16 + halves + tokens
    assert content < size + 256 < content + 2000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda proof: proof.update(version=2), "it is of version 2, this safelight reads 1"),
        (lambda proof: proof.pop("calls"), "'calls'"),
        (lambda proof: proof["run"].update(class_name="os"), "no run is of a os"),
        (lambda proof: proof["run"]["arguments"].update(callback=1), "no run has the arguments callback"),
        (lambda proof: proof["calls"][0]["inputs"]["sample"].update(rows=["none"]), "none"),
        (lambda proof: proof["calls"][0]["inputs"]["sample"].update(dtype="object"), "an input cannot be object"),
        (lambda proof: proof["calls"][0]["inputs"]["sample"].update(shape=[3, 3]), "of 512 entries cannot"),
        (lambda proof: proof["calls"][0]["inputs"]["sample"].update(rows=["0"] * 2**20), "entries cannot have"),
        (lambda proof: proof["calls"][2]["inputs"]["sample"]["example"].update(shape=[10**15]), "an example cannot"),
        (lambda proof: proof["spreads"]["unet"].update(more=1), "more"),
    ],
)
def test_what_is_no_proof_is_refused(
    written: Callable[[], ModelFolder], tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    record = json.loads((tmp_path / PROOF).read_text())
    change(record)
    (tmp_path / PROOF).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"proof.json is no proof of fidelity: .*{message}"):
        Proof.read(written())


def test_damaged_proofs_are_refused(written: Callable[[], ModelFolder], tmp_path: Path) -> None:
    before = written()
    content = (tmp_path / TENSORS).read_bytes()
    (tmp_path / TENSORS).write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is not the file that was exported"):
        Proof.read(before)
    with pytest.raises(ValueError, match="is truncated or corrupt"):
        Proof.read(written())
    (tmp_path / TENSORS).unlink()
    with pytest.raises(FileNotFoundError, match=r"fidelity/tensors.safetensors is missing"):
        Proof.read(before)


def test_options_of_no_run_are_refused() -> None:
    with pytest.raises(ValueError, match="num_inference_steps must be at least 1, got 0"):
        RunOptions(num_inference_steps=0)
    with pytest.raises(ValueError, match="height must be at least 1, got -8"):
        RunOptions(height=-8)


def component(**changes: Any) -> ComponentFidelity:
    graph = GraphFidelity(relative_error=1e-6, absolute_error=2e-5, output="out_sample", call="call 1 (run)")
    fields: dict[str, Any] = {
        "dtype": "float32",
        "limit": 1e-5,
        "absolute_limit": None,
        "half_precision": 1e-3,
        "overflows": False,
        "weights": 0.0,
        "graphs": {"onnx": graph, "openvino": GraphFidelity.none("it is for another engine")},
    }
    return ComponentFidelity(**fields | changes)


def report(unet: ComponentFidelity, run: RunFidelity | None = None) -> Report:
    missing = None if run else "the folder holds a part of a pipeline, or a UNet that no pipeline calls"
    return Report(components={"unet": unet}, run=run, run_missing=missing, backend="onnxruntime", device="cpu")


def of_run(**changes: Any) -> RunFidelity:
    fields: dict[str, Any] = {
        "class_name": "StableDiffusionPipeline",
        "arguments": {"seed": 0},
        "drift": [1e-6, 2e-6],
        "drift_limit": [1e-4, 1e-4],
        "half_precision_drift": [1e-3, 1e-3],
        "psnr": math.inf,
        "psnr_limit": 48.0,
        "ssim": 1.0,
        "half_precision_psnr": 48.0,
    }
    return RunFidelity(**fields | changes)


def graph_with(error: float) -> dict[str, GraphFidelity]:
    return {"onnx": GraphFidelity(relative_error=error, absolute_error=error, output="out_sample", call="call 1 (run)")}


@pytest.mark.parametrize(
    ("faulty", "sentence"),
    [
        (report(component(graphs=graph_with(2e-5))), "unet: model.onnx differs from the reference: output out_sample"),
        (report(component(graphs=graph_with(math.inf))), "unet: model.onnx differs from the reference"),
        (report(component(graphs=graph_with(math.nan))), "unet: model.onnx differs from the reference"),
        (report(component(absolute_limit=1e-5)), "the limit is absolute 1.0e-05"),
        (report(component(dtype="float16", overflows=True)), "unet: model.onnx .*float16 overflows"),
        (report(component(), of_run(drift=[1e-6, 2e-4])), "drifts from the reference: 2.0e-04 after step 2"),
        (report(component(), of_run(drift=[math.nan, 0.0])), "drifts from the reference: nan after step 1"),
        (report(component(), of_run(psnr=47.0)), "a PSNR of 47.0 dB, the limit is 48.0 dB"),
    ],
)
def test_what_is_not_within_its_limits_fails(faulty: Report, sentence: str) -> None:
    with pytest.raises(FidelityError, match=sentence):
        faulty.raise_for_failure()
    if faulty.run is None:
        assert "FAILS" in str(faulty)


def test_what_is_within_its_limits_passes() -> None:
    good = report(component(), of_run())
    good.raise_for_failure()
    assert good.unchecked == []
    report(component(overflows=True)).raise_for_failure()  # in float32 it does not
    lines = str(good).splitlines()
    assert lines[1].split() == ["unet", "onnx", "1.0e-06", "1.0e-05", "1.0e-03"]
    assert lines[2].split() == ["openvino", "not", "run", "here"]
    assert "unet, openvino: not run here: it is for another engine" in lines
    assert lines[-2] == "picture                 PSNR infinite, the same bytes, SSIM 1.000000"
    assert lines[-1] == "  in half precision     PSNR 48.0 dB"
    nothing = report(component(graphs={"openvino": GraphFidelity.none("it is for another engine")}))
    assert nothing.unchecked == ["unet"]


def test_a_report_lies_in_the_manifest_and_comes_back() -> None:
    expected = report(component(), of_run())
    tensor = TensorRecord(name="out_sample", dtype="float32", shape=["batch"])
    record = ComponentRecord(
        class_name="UNet2DModel", graphs={}, weights="", transposed=[], inputs=[tensor], outputs=[tensor]
    )
    manifest = Manifest(dtype="fp32", weights_dtype="fp32", components={"unet": record}, files={})
    with pytest.raises(FileNotFoundError, match="carries no report of its fidelity"):
        Report.of(manifest)
    recorded = expected.recorded_in(manifest)
    text = json.dumps([recorded.fidelity, recorded.components["unet"].fidelity, expected.as_json()], allow_nan=False)
    assert json.loads(text)[0]["run"]["psnr"] is None
    assert Report.of(recorded) == expected
    with pytest.raises(ValueError, match="report of fidelity is none"):
        Report.of(replace(recorded, fidelity={"run": None, "surplus": 1}))
