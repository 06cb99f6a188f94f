"""The model folder that an export writes: layout, names, weights, manifest, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch

from safelight.export.checkpoint import open_checkpoint
from safelight.export.folder import export_model
from safelight.export.options import ExportOptions
from safelight.runtime import cli
from safelight.runtime.fidelity import FidelityError
from safelight.runtime.manifest import file_record, read_manifest
from safelight.runtime.model_folder import open_model_folder

NETWORKS = ("text_encoder", "unet", "vae_encoder", "vae_decoder")


def test_layout_is_optimums(odd_export: Path) -> None:
    for network in NETWORKS:
        assert {"config.json", "model.onnx", "model.onnx_data"} <= {p.name for p in (odd_export / network).iterdir()}
    names = {
        "text_encoder": (
            {"input_ids"},
            {"last_hidden_state", "pooler_output", *(f"hidden_states.{n}" for n in range(4))},
        ),
        "unet": ({"sample", "timestep", "encoder_hidden_states"}, {"out_sample"}),
        "vae_encoder": ({"sample"}, {"latent_parameters"}),
        "vae_decoder": ({"latent_sample"}, {"sample"}),
    }
    for network, (inputs, outputs) in names.items():
        graph = onnx.load(odd_export / network / "model.onnx", load_external_data=False).graph
        assert {value.name for value in graph.input} == inputs
        assert {value.name for value in graph.output} == outputs
    tokenizer = {path.name for path in (odd_export / "tokenizer").iterdir()}
    assert {"vocab.json", "merges.txt", "tokenizer.json"} <= tokenizer


def test_graphs_pass_onnxs_own_checker(odd_export: Path) -> None:
    for network in NETWORKS:
        graph = odd_export / network / "model.onnx"
        onnx.checker.check_model(graph, full_check=True)  # raises where the graph is not valid
        assert {opset.domain: opset.version for opset in onnx.load(graph, load_external_data=False).opset_import} == {
            "": 23
        }


def test_weights_are_a_safetensors_file_with_the_checkpoints_names(odd_export: Path, odd_checkpoint: Path) -> None:
    stored = safetensors.numpy.load_file(odd_export / "unet" / "model.onnx_data")
    source = safetensors.numpy.load_file(odd_checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    manifest = read_manifest(odd_export)
    assert manifest is not None
    transposed = manifest.components["unet"].transposed
    assert transposed
    assert stored.keys() == source.keys()
    for name, tensor in source.items():
        np.testing.assert_array_equal(stored[name].T if name in transposed else stored[name], tensor)


def test_all_graphs_of_a_network_share_its_weight_file(odd_export: Path) -> None:
    for graph in odd_export.glob("unet/*.onnx"):
        model = onnx.load(graph, load_external_data=False)
        external = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        assert len(external) > 50
        locations = {entry.value for t in external for entry in t.external_data if entry.key == "location"}
        assert locations == {"model.onnx_data"}
        assert graph.stat().st_size < 500_000


def test_manifest_records_every_file_and_the_fidelity(odd_export: Path, odd_checkpoint: Path) -> None:
    manifest = read_manifest(odd_export)
    assert manifest is not None
    on_disk = {str(path.relative_to(odd_export)) for path in odd_export.rglob("*") if path.is_file()}
    assert set(manifest.files) == on_disk - {"safelight.json"}
    for name, record in manifest.files.items():
        assert file_record(odd_export / name) == record
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert manifest.source["files"][weights] == file_record(odd_checkpoint / weights).sha256
    for component in manifest.components.values():
        assert component.fidelity is not None
        graphs = component.fidelity["graphs"]
        assert all(0 < graphs[target]["relative_error"] < 1e-5 for target in ("onnx", "onnxruntime-cpu"))


Fails = Callable[..., str]


def test_a_passed_tolerance_names_the_component_and_the_error(
    fails: Fails, linear_checkpoint: Path, tmp_path: Path
) -> None:
    sentence = fails(linear_checkpoint, tmp_path / "out", "--atol", "1e-12")
    assert sentence.startswith("text_encoder: model.onnx differs from the reference: output ")
    assert "relative error" in sentence
    assert "the limit is absolute 1.0e-12" in sentence


def test_a_wrong_graph_fails_validation(
    linear_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safelight.export import weights

    written = weights.write_weights

    def swapped(path: Path, shapes: Any, read: Callable[[str], torch.Tensor], **options: Any) -> Any:
        def reversed_bias(name: str) -> torch.Tensor:
            return read(name).flip(0) if name == "text_model.encoder.layers.0.mlp.fc1.bias" else read(name)

        return written(path, shapes, reversed_bias, **options)

    monkeypatch.setattr("safelight.export.component.write_weights", swapped)
    with pytest.raises(FidelityError, match=r"text_encoder: model\.onnx differs from the reference"):
        export_model(open_checkpoint(linear_checkpoint), tmp_path / "out", processes=False)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def copy(linear_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to break."""
    return Path(shutil.copytree(linear_checkpoint, tmp_path / "checkpoint"))


def test_other_content_is_left_alone(fails: Fails, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    assert "has other content; name a folder that is new or empty" in fails(copy, tmp_path / "out")
    (tmp_path / "file").write_text("precious")
    assert "is a file; name a folder" in fails(copy, tmp_path / "file")


def test_what_is_no_checkpoint_is_refused(fails: Fails, copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "does not exist, and is no hub id either" in fails(tmp_path / "none", out)
    assert "is a file of an unknown kind; a checkpoint is a folder" in fails(copy / "model_index.json", out)
    assert "is no checkpoint: it has no model_index.json" in fails(copy / "unet", out)
    (copy / "model_index.json").write_text("{")
    assert "model_index.json is not valid JSON" in fails(copy, out)


def test_missing_parts_are_named(fails: Fails, copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (copy / "vae" / "config.json").rename(copy / "vae" / "other.json")
    assert "vae has no config.json" in fails(copy, out)
    shutil.rmtree(copy / "vae")
    assert "lacks the component vae, which its model_index.json names" in fails(copy, out)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    shutil.copytree(copy / "unet", copy / "vae")
    assert "diffusion_pytorch_model.bin is a pickle" in fails(copy, out)


def test_unknown_classes_are_named(fails: Fails, copy: Path, tmp_path: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    index["unet"] = ["os", "system"]
    (copy / "model_index.json").write_text(json.dumps(index))
    assert "component unet is a system, which cannot be exported yet; known: " in fails(copy, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--opset", "12"], "opset must be one of 18, 19, 20, 21, 22, 23, got 12"),
        (["--dtype", "int4"], "unknown dtype 'int4'; known: fp32, fp16, bf16"),
        (["--atol", "-1"], "atol must be above 0, got -1.0"),
        (["--variant", "fp16"], "fp16"),
    ],
)
def test_unusable_options_are_refused(
    fails: Fails, linear_checkpoint: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    assert message in fails(linear_checkpoint, tmp_path / "out", *options)


def test_broken_weights_are_named(fails: Fails, copy: Path, tmp_path: Path) -> None:
    out, weights = tmp_path / "out", copy / "text_encoder" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    assert "model.safetensors is truncated or corrupt" in fails(copy, out)
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "model.safetensors is a Git LFS pointer, not the file itself; run: git lfs pull" in fails(copy, out)
    tensors = safetensors.numpy.load(content)
    name, tensor = tensors.popitem()
    safetensors.numpy.save_file({**tensors, "surplus": tensor}, weights)
    sentence = fails(copy, out)
    assert f"1 missing: text_model.{name}" in sentence
    assert "1 surplus: surplus" in sentence
    safetensors.numpy.save_file({**tensors, name: tensor[:1]}, weights)
    assert f"1 misshapen: {name}" in fails(copy, out)


def test_half_precision_storage_computes_in_single(linear_checkpoint: Path, tmp_path: Path) -> None:
    """What fp16 storage loses is the rounding of the weights, and the file is half as large."""
    assert (
        cli.main(["export", str(linear_checkpoint), str(tmp_path / "half"), "--weights-dtype", "fp16", "--quiet"]) == 0
    )
    manifest = open_model_folder(tmp_path / "half").manifest
    assert manifest is not None
    assert {tensor.dtype for tensor in manifest.components["unet"].inputs} == {"float32"}
    stored = safetensors.numpy.load_file(tmp_path / "half" / "unet" / "model.onnx_data")
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype(np.float16)}
    for component in manifest.components.values():
        assert component.fidelity is not None
        rounding = component.fidelity["weights"]
        assert 1e-5 < rounding < 2e-2
        assert component.fidelity["limit"] == rounding + component.fidelity["half_precision"] / 32
        for target in ("onnx", "onnxruntime-cpu"):
            error = component.fidelity["graphs"][target]["relative_error"]
            assert error == pytest.approx(rounding, rel=0.05)


def test_options_are_checked_before_anything_else() -> None:
    with pytest.raises(ValueError, match="unknown dtype"):
        ExportOptions(dtype="fp64")
