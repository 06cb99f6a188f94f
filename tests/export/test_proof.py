"""The proof that an export carries: replayed it is equal, and every planted fault is found by its numbers alone."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np
import onnx
import pytest
from safetensors.torch import load_file, save_file

from safelight.export.answers import load_reference, overflows
from safelight.export.checkpoint import open_checkpoint
from safelight.export.folder import export_model
from safelight.export.networks import describe
from safelight.export.options import ExportOptions
from safelight.export.proof import record
from safelight.runtime import DiffusionPipeline, cli
from safelight.runtime.fidelity import FOLDER, FidelityError, Proof, check
from safelight.runtime.manifest import file_record, read_manifest
from safelight.runtime.model_folder import open_model_folder

Tensors = dict[str, np.ndarray]
HEAVY = ("torch", "transformers", "diffusers", "onnx", "onnxscript", "onnx_ir", "safelight.reference")


@pytest.fixture
def folder(linear_export: Path, tmp_path: Path) -> Path:
    """An export to break."""
    return Path(shutil.copytree(linear_export, tmp_path / "model"))


def seal(folder: Path) -> None:
    """Makes the hashes those of the files, so that numbers alone can tell."""
    manifest = read_manifest(folder)
    assert manifest is not None
    replace(manifest, files={name: file_record(folder / name) for name in manifest.files}).write(folder)


def change_weights(folder: Path, network: str, change: Callable[[Tensors], object]) -> None:
    """Changes weights where they lie in the file that all graphs of a network point into."""
    path = folder / network / "model.onnx_data"
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    tensors = {
        name: np.frombuffer(content, np.float32, (end - begin) // 4, start + begin).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
        for begin, end in [entry["data_offsets"]]
    }
    change(tensors)
    path.write_bytes(content)
    seal(folder)


def change_epsilon(folder: Path, network: str, operator: str, factor: float) -> None:
    """Changes the epsilon of the first norm of a kind, in the canonical graph."""
    path = folder / network / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == operator)
    (epsilon,) = (attribute for attribute in node.attribute if attribute.name == "epsilon")
    epsilon.f *= factor
    path.write_bytes(model.SerializeToString())
    seal(folder)


def validate(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    """Exit status, the report, and the sentence at the end."""
    status = cli.main(["validate", str(folder), *options])
    printed = capsys.readouterr()
    return status, printed.out, (printed.err.splitlines() or [""])[-1].removeprefix("safelight: ")


def zero(tensors: Tensors, name: str) -> None:
    tensors[name][:] = 0


def swap(tensors: Tensors, one: str, other: str) -> None:
    assert tensors[one].shape == tensors[other].shape
    tensors[one][:], tensors[other][:] = tensors[other].copy(), tensors[one].copy()


def add(tensors: Tensors, name: str, position: int, amount: float) -> None:
    tensors[name][position] += amount


_UNET_ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1"


@pytest.mark.parametrize(
    ("network", "change"),
    [
        ("vae_encoder", lambda t: zero(t, "encoder.mid_block.resnets.0.conv1.weight")),
        ("unet", lambda t: zero(t, "down_blocks.1.attentions.0.proj_out.bias")),
        ("unet", lambda t: swap(t, f"{_UNET_ATTENTION}.to_q.weight", f"{_UNET_ATTENTION}.to_v.weight")),
        ("text_encoder", lambda t: add(t, "text_model.encoder.layers.0.mlp.fc1.bias", 7, 1e-3)),
        ("vae_decoder", lambda t: add(t, "decoder.conv_norm_out.bias", 0, np.nan)),
    ],
    ids=["zeroed weight", "zeroed bias", "swapped weights", "one entry", "NaN"],
)
def test_wrong_weights_are_found_and_the_network_named(
    folder: Path, capsys: pytest.CaptureFixture[str], network: str, change: Callable[[Tensors], object]
) -> None:
    change_weights(folder, network, change)
    status, report, sentence = validate(folder, capsys)
    assert status == 1
    assert sentence.startswith(f"{network}: model.onnx differs from the reference: output ")
    failing = [line for line in report.splitlines() if "FAILS" in line]
    assert len(failing) >= 2, "both graphs read these weights"
    assert failing[0].startswith(network)


@pytest.mark.parametrize(
    ("network", "operator", "factor"),
    [
        ("text_encoder", "LayerNormalization", 10),
        ("unet", "GroupNormalization", 100),
        ("unet", "LayerNormalization", 100),
        ("vae_encoder", "GroupNormalization", 10),
    ],
)
def test_a_wrong_epsilon_is_found(
    folder: Path, capsys: pytest.CaptureFixture[str], network: str, operator: str, factor: float
) -> None:
    change_epsilon(folder, network, operator, factor)
    status, _, sentence = validate(folder, capsys, "--target", "onnx")
    assert status == 1
    assert sentence.startswith(f"{network}: model.onnx differs from the reference: output ")
    assert "(and " not in sentence, "the lowered graph and the other networks are right"


def test_the_graph_of_another_network_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (folder / "vae_decoder").glob("model.*"):
        shutil.copyfile(folder / "vae_encoder" / file.name, file)
    seal(folder)
    status, _, sentence = validate(folder, capsys)
    assert status == 1
    assert sentence.startswith("vae_decoder: ")
    assert "missing input sample" in sentence


@pytest.mark.parametrize("name", ["unet/model.onnx_data", "vae_decoder/config.json", "fidelity/proof.json"])
def test_other_files_than_those_recorded_do_not_validate(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    status, report, sentence = validate(folder, capsys)
    assert (status, report) == (1, "")
    assert f"{name} is not the file that was exported" in sentence
    (folder / name).write_bytes(content[:-2])
    assert "it is truncated or was changed" in validate(folder, capsys)[2]
    (folder / name).unlink()
    assert f"is not whole: {name} is missing" in validate(folder, capsys)[2]


def test_validate_needs_no_torch_and_writes_what_it_shows(linear_export: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r} or name in {HEAVY!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from safelight.runtime import cli
sys.exit(cli.main(["validate", {str(linear_export)!r}, "--json", {str(file)!r}]))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    anew = program.replace('"--json"', '"--checkpoint"')
    refused = subprocess.run([sys.executable, "-c", anew], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("safelight: --checkpoint needs: pip install 'safelight[export]'")
    written = json.loads(file.read_text())
    assert written["failures"] == written["unchecked"] == []
    for network in ("text_encoder", "unet", "vae_encoder", "vae_decoder"):
        found = written["components"][network]
        assert found["limit"] == found["half_precision"] / 32
        assert {"onnx", "onnxruntime-cpu"} == set(found["graphs"])
        for graph in found["graphs"].values():
            assert 0 < graph["relative_error"] < found["limit"] < 2e-4
        assert network in result.stdout
    run = written["run"]
    assert len(run["drift"]) == len(run["half_precision_drift"]) == 7  # PNDM evaluates once more than it steps
    assert all(0 < drift < limit for drift, limit in zip(run["drift"], run["drift_limit"], strict=True))
    assert all(1e-4 < drift < 1e-2 for drift in run["half_precision_drift"])
    assert run["ssim"] > 0.9999
    assert 40 < run["half_precision_psnr"] < 80


def test_show_prints_what_the_export_found_and_runs_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for graph in folder.rglob("*.onnx"):
        graph.write_bytes(b"")
    status, report, _ = validate(folder, capsys, "--show", "--json", str(folder / "report.json"))
    assert status == 0
    assert report.startswith("component     graph            relative error  limit")
    assert "run of StableDiffusionPipeline: " in report
    assert json.loads((folder / "report.json").read_text())["components"]["unet"]["half_precision"] > 0


def test_only_the_target_asked_for_is_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "unet" / "model.onnx").write_bytes(b"no graph")
    seal(folder)
    status, report, _ = validate(folder, capsys, "--target", "onnxruntime-cpu")
    assert status == 0
    assert "unet, onnx: not run here: --target onnxruntime-cpu was asked for" in report
    status, _, sentence = validate(folder, capsys)
    assert status == 1
    assert "unet/model.onnx is no ONNX graph that can be used: " in sentence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "tensorrt"], "has no graphs for 'tensorrt'; it has onnx, onnxruntime-cpu"),
        (["--backend", "none"], "unknown backend 'none'"),
        (["--steps", "3"], "another prompt, size, seed or number of steps needs --checkpoint"),
        (["--atol", "0"], "atol must be above 0, got 0.0"),
        (["--atol", "1e-9"], "the limit is absolute 1.0e-09"),
        (["--checkpoint", "nowhere"], "nowhere does not exist"),
    ],
)
def test_unusable_options_are_refused(
    linear_export: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    status, _, sentence = validate(linear_export, capsys, *options)
    assert status == 1
    assert message in sentence


def test_folders_without_a_proof_say_how_to_make_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    files = {name: found for name, found in manifest.files.items() if not name.startswith(FOLDER)}
    components = {name: replace(found, fidelity=None) for name, found in manifest.components.items()}
    replace(manifest, files=files, components=components, fidelity=None).write(folder)
    assert f"safelight validate {folder} --checkpoint SOURCE" in validate(folder, capsys)[2]
    assert "carries no report of its fidelity" in validate(folder, capsys, "--show")[2]
    (folder / "safelight.json").unlink()
    assert "has no safelight.json: it was not exported by safelight" in validate(folder, capsys)[2]


def test_a_proof_is_made_anew_from_the_checkpoint(
    folder: Path, linear_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / FOLDER)
    manifest = read_manifest(folder)
    assert manifest is not None
    files = {name: found for name, found in manifest.files.items() if not name.startswith(FOLDER)}
    replace(manifest, files=files, fidelity=None).write(folder)
    options = ["--checkpoint", str(linear_checkpoint), "--steps", "2", "--height", "40", "--width", "64", "--seed", "5"]
    assert validate(folder, capsys, *options, "--prompt", "red apple")[0] == 0
    status, report, _ = validate(folder, capsys, "--show")
    assert status == 0
    for shown in ("num_inference_steps 2", "height 40", "width 64", "seed 5", "prompt 'red apple'"):
        assert shown in report
    assert validate(folder, capsys)[0] == 0


def test_a_folder_that_fails_keeps_the_proof_that_it_had(
    folder: Path, odd_checkpoint: Path, linear_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Path(shutil.copytree(linear_checkpoint, tmp_path / "other"))
    weights = load_file(checkpoint / "text_encoder" / "model.safetensors")
    name = next(name for name in weights if name.endswith("final_layer_norm.bias"))
    save_file({**weights, name: weights[name] + 1e-2}, checkpoint / "text_encoder" / "model.safetensors")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    status, _, sentence = validate(folder, capsys, "--checkpoint", str(checkpoint), "--steps", "2")
    assert status == 1
    assert sentence.startswith("text_encoder: model.onnx differs from the reference")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_run_is_what_the_pipeline_makes(linear_export: Path) -> None:
    """The reference's picture is the exported pipeline's, for the same call by hand."""
    folder = open_model_folder(linear_export)
    proof = Proof.read(folder)
    assert folder.manifest is not None
    assert proof.run is not None
    assert proof.picture is not None
    assert proof.picture.std() > 5
    with DiffusionPipeline.from_pretrained(linear_export, requires_safety_checker=False) as pipeline:
        pipeline.set_progress_bar_config(disable=True)
        (picture,) = pipeline(**proof.run.arguments, output_type="np").images
    assert np.abs(picture * 255 - proof.picture).max() < 0.6
    origins = {(call.network, call.origin) for call in proof.calls}
    reached = {(network, "run") for network in ("text_encoder", "unet", "vae_decoder")}
    examples = {(network, "example") for network in folder.manifest.components}
    assert origins == reached | examples | {("vae_encoder", "picture")}


@pytest.mark.parametrize(
    ("networks", "run"),
    [
        ({"unet"}, None),
        ({"text_encoder", "vae_decoder"}, None),
        ({"vae_encoder", "vae_decoder"}, "AutoencoderKL"),
    ],
)
def test_parts_of_a_pipeline_have_the_run_that_they_can_have(
    linear_export: Path, linear_checkpoint: Path, networks: set[str], run: str | None
) -> None:
    folder = open_model_folder(linear_export)
    proof = record(open_checkpoint(linear_checkpoint), folder, networks=networks, weights_dtype="fp32")
    assert (proof.run and proof.run.class_name) == run
    assert {call.network for call in proof.calls} == set(proof.spreads) == networks
    assert {call.origin for call in proof.calls} == ({"example", "run"} if run else {"example"})
    assert folder.manifest is not None
    parts = {name: found for name, found in folder.manifest.components.items() if name in networks}
    report = check(replace(folder, manifest=replace(folder.manifest, components=parts)), proof)
    report.raise_for_failure()
    assert report.run_missing == (
        None if run else "the folder holds a part of a pipeline, or a UNet that no pipeline calls"
    )
    with pytest.raises(FidelityError, match="the proof has no calls of it; make the proof anew with --checkpoint"):
        check(folder, proof)


def test_what_nothing_here_can_run_is_said_so(linear_export: Path) -> None:
    folder = open_model_folder(linear_export)
    assert folder.manifest is not None
    unet = folder.manifest.components["unet"]
    components = {**folder.manifest.components, "unet": replace(unet, dtype="bf16")}
    report = check(
        replace(folder, manifest=replace(folder.manifest, components=components)), Proof.read(folder), target="onnx"
    )
    assert report.failures == []
    assert report.unchecked == ["unet"]
    assert report.components["unet"].graphs["onnx"].not_run == "onnxruntime has no bfloat16 on cpu"
    assert report.run_missing == "unet cannot be run here"
    assert "no run: unet cannot be run here" in str(report)


def test_proofs_are_small(linear_export: Path) -> None:
    assert sum(path.stat().st_size for path in (linear_export / FOLDER).iterdir()) < 150_000


FAMILIES = ["SD2", "SDXL", "REFINER", "LCM", "PIX2PIX", "INPAINTING", "SDXL_INPAINTING", "DEPTH", "CHECKED"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, with NumPy 2
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_proven_by_its_own_pipeline(tiny: Callable[[str], tuple[Path, Path]], name: str) -> None:
    export, _ = tiny(name)
    folder = open_model_folder(export)
    proof = Proof.read(folder)
    assert folder.manifest is not None
    assert proof.run is not None
    tasks = {"INPAINTING": "StableDiffusionInpaintPipeline", "SDXL_INPAINTING": "StableDiffusionXLInpaintPipeline"}
    assert proof.run.class_name == tasks.get(name, folder.class_name)
    reached = {call.network for call in proof.calls if call.origin in ("run", "picture")}
    assert reached | {"safety_checker"} == set(folder.manifest.components) | {"safety_checker"}
    report = folder.manifest.fidelity
    assert report is not None
    assert len(report["run"]["drift"]) >= 4
    assert report["run"]["psnr"] is None or report["run"]["psnr"] > report["run"]["half_precision_psnr"] + 10
    for component in folder.manifest.components.values():
        assert component.fidelity is not None
        assert 2e-4 < component.fidelity["half_precision"] < 2e-2
        assert all(graph["not_run"] is None for graph in component.fidelity["graphs"].values())


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder in which what passes 65504 is made small again: in float32 it is the one that it was."""
    checkpoint = Path(shutil.copytree(checkpoints.make_tiny_autoencoder(), tmp_path_factory.mktemp("tiny") / "vae"))
    file = checkpoint / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for name in weights:
        if name.startswith("decoder.layers.2.conv.0."):
            weights[name] *= 2.0**18
        elif name == "decoder.layers.2.conv.2.weight":
            weights[name] *= 2.0**-18
    save_file(weights, file)
    return checkpoint


def test_an_overflow_is_no_export_in_half_precision(
    overflowing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a network that is too large to be looked at before."""
    monkeypatch.setattr("safelight.export.component.LOOKED_AT_BELOW", 0)
    with pytest.raises(FidelityError) as error:
        export_model(
            open_checkpoint(overflowing),
            tmp_path / "out",
            ExportOptions(dtype="fp16", weights_dtype="fp32", targets=()),
            processes=False,
        )
    sentence = str(error.value)
    assert sentence.startswith("vae_decoder: model.onnx differs from the reference: float16 overflows in the reference")
    assert "compute this network in float32" in sentence
    assert not (tmp_path / "out").exists()


def test_an_overflow_is_recorded_where_float32_has_none(
    overflowing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(overflowing), str(tmp_path / "out"), "--quiet"]) == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    found = {name: component.fidelity for name, component in manifest.components.items()}
    assert {name: fidelity["overflows"] for name, fidelity in found.items() if fidelity} == {
        "vae_encoder": False,
        "vae_decoder": True,
    }
    spread = found["vae_decoder"]["half_precision"]  # type: ignore[index]  # an eighth of bfloat16's
    assert 1e-4 < spread < 1e-2
    status, report, _ = validate(tmp_path / "out", capsys)
    assert status == 0
    assert "float16 overflows" in next(line for line in report.splitlines() if line.startswith("vae_decoder"))
    assert "run of AutoencoderTiny: height 192, width 192" in report


def test_overflows_tells_the_network_that_does(overflowing: Path) -> None:
    (component,) = open_checkpoint(overflowing).components
    config = load_reference(component, ()).config.to_dict()
    sizes = {"batch": 1, "height": 16, "width": 16, "latent_height": 4, "latent_width": 4}
    found = {}
    for description in describe(component.class_name, component.name, config, {}):
        shape = [sizes[side] if isinstance(side, str) else side for side in description.inputs[0].shape]
        inputs = {description.inputs[0].name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
        found[description.name] = overflows(description, load_reference(component, ()), [inputs])
    assert found == {"vae_encoder": False, "vae_decoder": True}


def test_half_precision_exports_are_held_to_the_spread_of_halves(capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoints.export_checkpoint(checkpoints.make_tiny_autoencoder(), dtype="fp16")
    manifest = read_manifest(folder)
    assert manifest is not None
    for component in manifest.components.values():
        assert component.fidelity is not None
        assert component.fidelity["dtype"] == "float16"
        assert component.fidelity["limit"] == 3 * component.fidelity["half_precision"]
        for graph in component.fidelity["graphs"].values():
            assert 1e-5 < graph["relative_error"] < component.fidelity["limit"] < 2e-2
    assert validate(folder, capsys)[0] == 0
