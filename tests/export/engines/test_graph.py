"""The graph that an engine is built from: the model folder's own, or one traced anew in another dtype."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from checkpoints import CACHE, ROOT, key, publish
from engine_graphs import graph_of, silent
from graphs import operators, random_inputs
from safetensors.torch import load_file, save_file

from safelight.export.checkpoint import open_checkpoint
from safelight.export.engines.graph import arithmetic, make_graph, wanted_dtype
from safelight.export.folder import export_model
from safelight.export.options import ExportOptions
from safelight.runtime.backends import open_network
from safelight.runtime.manifest import Manifest, file_record, read_manifest
from safelight.runtime.source import bundled_model

EMOJI = bundled_model()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The bundled model, to be changed; `recorded` makes its manifest right again."""
    return Path(shutil.copytree(EMOJI, tmp_path / "model"))


def manifest_of(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def recorded(folder: Path, name: str) -> None:
    """Records a file as it is now."""
    manifest = json.loads((folder / "safelight.json").read_text())
    record = file_record(folder / name)
    manifest["files"][name] = {"size": record.size, "sha256": record.sha256}
    (folder / "safelight.json").write_text(json.dumps(manifest))


def test_upcast_unet_is_the_one_that_an_export_in_float16_has(tiny: Callable[[str], tuple[Path, Path]]) -> None:
    """Stable Diffusion 2: from the folder that was exported in float32, its attention in float32 all the same."""
    folder, checkpoint = tiny("SD2")
    code = [path for path in (ROOT / "export").rglob("*.py") if path.parent.name != "engines"]
    code += (ROOT / "reference").glob("*.py")

    def write(target: Path) -> None:
        options = ExportOptions(dtype="fp16", targets=("tensorrt",), validate=False)
        export_model(open_checkpoint(checkpoint, components=("unet",)), target, options, processes=False)

    exported = publish(CACHE / "exports" / f"{checkpoint.name}-fp16-unet-{key([], code)}", write)
    expected, graph = exported / "unet" / "model.tensorrt.onnx", graph_of(folder, "unet", "fp16")
    assert graph.parent.parent.parent != folder
    assert graph.read_bytes() == expected.read_bytes()
    assert graph.with_name("model.onnx_data").read_bytes() == expected.with_name("model.onnx_data").read_bytes()
    theirs, ours = open_network(expected), open_network(graph)
    inputs = random_inputs(ours.inputs, {"batch": 2, "height": 10, "width": 8, "sequence_length": 5})
    assert inputs["sample"].dtype == np.float16
    output = ours(inputs)["out_sample"]
    assert np.array_equal(output, theirs(inputs)["out_sample"])
    assert 0.1 < output.astype(np.float32).std() < 100
    model = onnx.shape_inference.infer_shapes(onnx.load(graph, load_external_data=False))
    dtypes = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == 8
    assert {dtypes[node.input[0]] for node in softmaxes} == {onnx.TensorProto.FLOAT}


def test_fine_tunes_of_one_architecture_have_one_graph(
    linear_export: Path, tiny: Callable[[str], tuple[Path, Path]]
) -> None:
    """Which is why a plan without weights is for all of them."""
    for network in ("text_encoder", "vae_decoder"):
        one, other = (manifest_of(folder).files for folder in (linear_export, tiny("INPAINTING")[0]))
        assert one[f"{network}/model.onnx"] == other[f"{network}/model.onnx"]
        assert one[f"{network}/model.onnx_data"] != other[f"{network}/model.onnx_data"]


def test_folder_s_graph_in_the_dtype_that_is_wanted_is_the_one(scratch: Path) -> None:
    graph = make_graph(EMOJI, "text_encoder", "fp32", scratch, progress=silent)
    assert graph == EMOJI / "text_encoder" / "model.tensorrt.onnx"
    assert not list(scratch.iterdir())


def test_canonical_graph_that_needs_no_lowering_is_the_one(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    assert make_graph(EMOJI, "vae_decoder", "fp32", scratch, progress=silent) == EMOJI / "vae_decoder" / "model.onnx"


def test_canonical_graph_is_lowered_where_the_export_was_for_other_engines(linear_export: Path, scratch: Path) -> None:
    canonical = linear_export / "text_encoder" / "model.onnx"
    assert operators(canonical)["Attention"] == 2
    graph = make_graph(linear_export, "text_encoder", "fp32", scratch, progress=silent)
    assert graph.parent == scratch
    assert operators(graph)["Attention"] == 0
    assert (scratch / "model.onnx_data").resolve() == canonical.with_name("model.onnx_data").resolve()
    (scratch / "model.onnx_data").unlink()  # a link, which ONNX Runtime does not follow and TensorRT does
    shutil.copy(canonical.with_name("model.onnx_data"), scratch)
    theirs, ours = open_network(canonical), open_network(graph)
    inputs = random_inputs(ours.inputs)
    expected = theirs(inputs)["last_hidden_state"]
    assert np.abs(ours(inputs)["last_hidden_state"] - expected).max() < 1e-5 * np.abs(expected).max()


def test_weights_are_cast_and_lie_as_the_graph_wants_them() -> None:
    stored = load_file(EMOJI / "text_encoder" / "model.onnx_data")
    ours = load_file(graph_of(EMOJI, "text_encoder", "bf16").with_name("model.onnx_data"))
    assert ours.keys() == stored.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, stored[name].to(torch.bfloat16)), name


def test_bfloat16_has_float32_borders() -> None:
    network = open_network_types(graph_of(EMOJI, "text_encoder", "bf16"))
    assert network == {"input_ids": "INT64", "last_hidden_state": "FLOAT"}


def open_network_types(graph: Path) -> dict[str, str]:
    model = onnx.load(graph, load_external_data=False)
    values = [model.graph.input[0], model.graph.output[0]]
    return {value.name: onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type) for value in values}


def test_a_weight_beyond_float16_is_refused(copy: Path, scratch: Path) -> None:
    path = copy / "text_encoder" / "model.onnx_data"
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    tensors["text_model.embeddings.position_embedding.weight"][0, 0] = 70000.0
    save_file(tensors, path)
    recorded(copy, "text_encoder/model.onnx_data")
    with pytest.raises(ValueError, match=r"text_encoder: float16 ends before its numbers do; .* --dtype bf16"):
        make_graph(copy, "text_encoder", "fp16", scratch, progress=silent)


def test_a_large_network_s_weight_beyond_float16_is_named(
    copy: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safelight.export.engines.retrace.LOOKED_AT_BELOW", 0)
    path = copy / "text_encoder" / "model.onnx_data"
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    tensors["text_model.embeddings.position_embedding.weight"][0, 0] = 70000.0
    save_file(tensors, path)
    recorded(copy, "text_encoder/model.onnx_data")
    with pytest.raises(ValueError, match=r"position_embedding.weight has a weight of 7e\+04, .*, --dtype bf16"):
        make_graph(copy, "text_encoder", "fp16", scratch, progress=silent)


def test_missing_weights_are_named(copy: Path, scratch: Path) -> None:
    path = copy / "text_encoder" / "model.onnx_data"
    tensors = load_file(path)
    del tensors["text_model.final_layer_norm.bias"]
    save_file(tensors, path)
    recorded(copy, "text_encoder/model.onnx_data")
    with pytest.raises(ValueError, match=r"the weights of text_encoder lack text_model.final_layer_norm.bias"):
        make_graph(copy, "text_encoder", "fp16", scratch, progress=silent)


def test_changed_weights_are_refused(copy: Path, scratch: Path) -> None:
    path = copy / "text_encoder" / "model.onnx_data"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    for dtype in ("fp16", "fp32"):
        with pytest.raises(ValueError, match="is not the file that was exported"):
            make_graph(copy, "text_encoder", dtype, scratch, progress=silent)


def test_without_torch_the_error_says_what_to_install(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "safelight.export.engines.retrace", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"no graph of unet in fp16 .* pip install 'safelight\[export\]'"):
        make_graph(EMOJI, "unet", "fp16", scratch, progress=silent)


def test_dtypes_that_networks_are_built_in(tiny: Callable[[str], tuple[Path, Path]]) -> None:
    manifest = manifest_of(EMOJI)
    assert {arithmetic(manifest, name) for name in manifest.components} == {"fp32"}
    wanted = {name: wanted_dtype(manifest, name, dtype="bf16", vae_dtype="fp32") for name in manifest.components}
    assert wanted == {"text_encoder": "bf16", "unet": "bf16", "vae_decoder": "fp32", "vae_encoder": "fp32"}
    assert wanted_dtype(manifest, "vae_decoder", dtype="fp16", vae_dtype="bf16") == "bf16"


def test_what_an_export_in_float16_kept_in_float32_stays_there(copy: Path) -> None:
    path = copy / "safelight.json"
    fields = json.loads(path.read_text())
    fields["dtype"] = "fp16"
    fields["components"]["unet"]["dtype"] = "fp16"
    path.write_text(json.dumps(fields))
    manifest = manifest_of(copy)
    dtypes = {name: wanted_dtype(manifest, name, dtype="fp16", vae_dtype="fp32") for name in manifest.components}
    assert (dtypes["unet"], dtypes["text_encoder"]) == ("fp16", "fp32")
    assert wanted_dtype(manifest, "text_encoder", dtype="bf16", vae_dtype="fp32") == "bf16"
