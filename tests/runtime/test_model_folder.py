"""The model folder as it is read: what it gives, and what is refused, each with its sentence."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy

from safelight.runtime import DiffusionPipeline, StableDiffusionPipeline
from safelight.runtime.manifest import FORMAT_VERSION, file_record, read_manifest
from safelight.runtime.model_folder import ModelFolder, open_model_folder
from safelight.runtime.text_files import read_json_object

LOWERED = "unet/model.onnxruntime-cpu.onnx"


@pytest.fixture
def folder(linear_export: Path, tmp_path: Path) -> Path:
    """An exported folder to break."""
    return Path(shutil.copytree(linear_export, tmp_path / "model"))


@pytest.fixture
def foreign(folder: Path) -> Path:
    """The same as another exporter leaves it: without a manifest, and without our lowered graphs."""
    (folder / "safelight.json").unlink()
    for lowered in folder.glob("*/model.onnxruntime-cpu.onnx"):
        lowered.unlink()
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def link_out(path: Path, outside: Path) -> None:
    """Moves a file out of the folder and leaves a link to it."""
    outside.mkdir(exist_ok=True)
    shutil.move(path, outside / path.name)
    path.symlink_to(outside / path.name)


def test_an_export_opens_with_what_it_says_of_itself(folder: Path) -> None:
    model = open_model_folder(str(folder))
    assert model.path == folder
    assert model.class_name == "StableDiffusionPipeline"
    assert sorted(model.components) == ["scheduler", "text_encoder", "tokenizer", "unet", "vae"]
    assert model.manifest == read_manifest(folder)
    assert model.config("unet")["cross_attention_dim"] == 24
    assert model.folder("tokenizer") == folder / "tokenizer"
    assert model.has_graph("vae_encoder")
    assert not model.has_graph("safety_checker")


def test_the_graph_of_a_target_is_given_or_the_canonical_one(folder: Path) -> None:
    model = open_model_folder(folder)
    assert model.graph("unet", "onnxruntime-cpu") == folder / LOWERED
    assert model.graph("unet", "an engine without a lowering") == folder / "unet" / "model.onnx"
    assert model.graph("unet") == folder / "unet" / "model.onnx"


def test_a_manifest_is_read_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    assert [tensor.name for tensor in manifest.components["unet"].inputs] == [
        "sample",
        "timestep",
        "encoder_hidden_states",
    ]
    (tmp_path / "again").mkdir()
    manifest.write(tmp_path / "again")
    assert (tmp_path / "again" / "safelight.json").read_bytes() == (folder / "safelight.json").read_bytes()
    assert read_manifest(tmp_path / "again") == manifest


# what is no model folder


def test_a_missing_folder_and_a_file_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none does not exist$"):
        open_model_folder(tmp_path / "none")
    with pytest.raises(ValueError, match=r"model\.onnx is a file; a model is a folder with a model_index\.json$"):
        open_model_folder(folder / "unet" / "model.onnx")


def test_a_folder_without_an_index_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"unet is no model folder: it has no model_index\.json$"):
        open_model_folder(folder / "unet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"model_index\.json is not valid JSON: "),
        ("", r"model_index\.json is not valid JSON: "),
        ("[" * 100_000, r"model_index\.json is not valid JSON: "),
        ("[]", r"model_index\.json holds no JSON object$"),
        ('"StableDiffusionPipeline"', r"model_index\.json holds no JSON object$"),
        ("{}", r"model_index\.json names no pipeline class \(_class_name\)$"),
        ('{"_class_name": ["os", "system"]}', r"model_index\.json names no pipeline class \(_class_name\)$"),
    ],
    ids=["broken", "empty", "deep", "list", "string", "no class", "class that is no name"],
)
def test_an_index_that_says_nothing_is_refused(folder: Path, content: str, message: str) -> None:
    (folder / "model_index.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        open_model_folder(folder)


def test_an_index_in_another_encoding_is_refused(folder: Path) -> None:
    (folder / "model_index.json").write_bytes("{}".encode("utf-16"))
    with pytest.raises(ValueError, match=r"model_index\.json is not valid JSON: "):
        open_model_folder(folder)


@pytest.mark.parametrize("name", ["../unet", "/etc", "unet/..", "..", ".", "", "UNet", "unet\n", "unet\\x", "ünet"])
def test_hostile_component_names_are_refused(folder: Path, name: str) -> None:
    edit(folder / "model_index.json", lambda index: index.update({name: ["diffusers", "UNet2DConditionModel"]}))
    with pytest.raises(ValueError, match=re.escape(f"has a component of an unusable name: {name!r}")):
        open_model_folder(folder)


def test_a_checkpoint_is_told_apart_with_the_command_that_exports_it(linear_checkpoint: Path, tmp_path: Path) -> None:
    command = re.escape(f"{linear_checkpoint} is a checkpoint that was not exported yet: safelight export")
    with pytest.raises(ValueError, match=f"^{command} .* FOLDER$"):
        open_model_folder(linear_checkpoint)
    pickled = tmp_path / "pickled"
    (pickled / "unet").mkdir(parents=True)
    shutil.copy(linear_checkpoint / "model_index.json", pickled)
    (pickled / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="is a checkpoint that was not exported yet"):
        open_model_folder(pickled)


# links


@pytest.mark.parametrize("name", ["model_index.json", "safelight.json"])
def test_an_index_or_manifest_elsewhere_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    link_out(folder / name, tmp_path / "outside")
    with pytest.raises(ValueError, match=f"{name} leads out of the model folder "):
        open_model_folder(folder)


@pytest.mark.parametrize("name", [LOWERED, "unet/model.onnx_data", "unet/config.json"])
def test_a_file_of_a_network_elsewhere_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    link_out(folder / name, tmp_path / "outside")
    with pytest.raises(ValueError, match=f"{name} leads out of the model folder "):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json"])
def test_a_file_of_another_component_elsewhere_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    link_out(folder / name, tmp_path / "outside")
    with pytest.raises(ValueError, match=f"{name} leads out of the model folder "):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["unet", "tokenizer"])
def test_a_component_elsewhere_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    link_out(folder / name, tmp_path / "outside")
    with pytest.raises(ValueError, match=f"{name}.* leads out of the model folder "):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["unet/model.onnx", "unet/model.onnx_data"])
def test_a_foreign_folders_graph_or_weights_elsewhere_are_refused(foreign: Path, tmp_path: Path, name: str) -> None:
    link_out(foreign / name, tmp_path / "outside")
    with pytest.raises(ValueError, match=f"{name} leads out of the model folder "):
        open_model_folder(foreign).graph("unet")


def test_links_within_the_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    link_out(folder / LOWERED, folder / "kept")
    linked = tmp_path / "linked"
    linked.symlink_to(folder)  # the folder itself may be a link
    assert open_model_folder(linked).graph("unet", "onnxruntime-cpu") == linked / LOWERED


def as_hub_snapshot(folder: Path, repository: Path) -> Path:
    """The folder as the hub's cache holds it: links to files that are named by their hashes."""
    snapshot, blobs = repository / "snapshots" / "0123abcd", repository / "blobs"
    blobs.mkdir(parents=True)
    for path in folder.rglob("*"):
        if path.is_file():
            blob = blobs / file_record(path).sha256
            shutil.copyfile(path, blob)
            link = snapshot / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_snapshot_in_the_hubs_cache_opens(linear_export: Path, tmp_path: Path) -> None:
    snapshot = as_hub_snapshot(linear_export, tmp_path / "models--owner--name")
    with DiffusionPipeline.from_pretrained(snapshot) as pipeline:
        assert pipeline.folder.path == snapshot
    link = snapshot / "unet" / "config.json"
    link.unlink()
    link.symlink_to(linear_export / "unet" / "config.json")
    with pytest.raises(ValueError, match=r"config\.json leads out of the model folder "):
        DiffusionPipeline.from_pretrained(snapshot)


# files that are not those that were exported


def test_a_changed_graph_is_refused(folder: Path) -> None:
    graph = folder / LOWERED
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"unet/model\.onnxruntime-cpu\.onnx is not the file that was exported .*: it is truncated or "
    ):
        open_model_folder(folder).graph("unet", "onnxruntime-cpu")


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "unet/config.json",
        "unet/model.onnx_data",
        "vae_decoder/model.onnx_data",
    ],
)
def test_a_folder_of_which_one_file_changed_is_not_loaded(folder: Path, name: str) -> None:
    """A byte that no reader would trip over: white space, or the last bit of a weight."""
    content = bytearray((folder / name).read_bytes())
    if name.endswith(".json"):
        content = content.rstrip() + b" "
    else:
        content[-1 if name.endswith("data") else -2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is not the file that was exported .*; export it again$"):
        DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", [LOWERED, "unet/model.onnx_data"])
def test_truncated_graphs_and_weights_are_refused_with_both_sizes(folder: Path, name: str) -> None:
    path = folder / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    sizes = re.escape(f"({size - 1} bytes, {size} recorded)")
    with pytest.raises(ValueError, match=f"{name} is not the file that was exported {sizes}: .*; export it again$"):
        open_model_folder(folder).graph("unet", "onnxruntime-cpu")


@pytest.mark.parametrize("name", [LOWERED, "unet/model.onnx_data"])
def test_missing_graphs_and_weights_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"model is not whole: {name} is missing; export it again$"):
        open_model_folder(folder).graph("unet", "onnxruntime-cpu")


def test_missing_networks_configs_and_components_are_named(foreign: Path) -> None:
    (foreign / "unet" / "model.onnx").unlink()
    (foreign / "unet" / "config.json").unlink()
    shutil.rmtree(foreign / "tokenizer")
    model = open_model_folder(foreign)
    with pytest.raises(FileNotFoundError, match=r"lacks the component unet: there is no unet/model\.onnx$"):
        model.graph("unet")
    with pytest.raises(FileNotFoundError, match=r"unet/config\.json does not exist$"):
        model.config("unet")
    with pytest.raises(FileNotFoundError, match=r"model lacks the component tokenizer$"):
        model.folder("tokenizer")


def test_a_component_config_that_is_no_object_is_refused(foreign: Path) -> None:
    (foreign / "unet" / "config.json").write_text("7")
    with pytest.raises(ValueError, match=r"unet/config\.json holds no JSON object$"):
        open_model_folder(foreign).config("unet")
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist$"):
        read_json_object(foreign / "none.json")


# the manifest


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, "1", None])
def test_another_format_is_refused(folder: Path, version: object) -> None:
    edit(folder / "safelight.json", lambda manifest: manifest.update(format_version=version))
    expected = f"is of format {version}, this safelight reads formats 1 and {FORMAT_VERSION}: export again"
    with pytest.raises(ValueError, match=rf"safelight\.json {expected}$"):
        open_model_folder(folder)


def test_a_folder_is_written_in_the_oldest_format_that_can_say_it(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    unet = manifest.components["unet"]
    assert unet.variants == {}
    varied = replace(unet, variants={"deep": unet.graphs, "shallow": unet.graphs}, cache_branch_id=2)
    for record, version, keys in ((unet, 1, set()), (varied, 2, {"variants", "cache_branch_id"})):
        replace(manifest, components={**manifest.components, "unet": record}).write(folder)
        written = json.loads((folder / "safelight.json").read_text())
        assert written["format_version"] == version
        assert written["components"]["unet"].keys() & {"variants", "cache_branch_id"} == keys
        assert written["components"]["text_encoder"].keys() & {"variants", "cache_branch_id"} == set()
        read = read_manifest(folder)
        assert read is not None
        assert read.components["unet"] == record


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda manifest: manifest.pop("format_version"), id="no version"),
        pytest.param(lambda manifest: manifest.pop("files"), id="no files"),
        pytest.param(lambda manifest: manifest.pop("dtype"), id="no dtype"),
        pytest.param(lambda manifest: manifest.update(surprise=1), id="unknown field"),
        pytest.param(lambda manifest: manifest.update(components=[]), id="components that are a list"),
        pytest.param(lambda manifest: manifest["components"].update(unet=3), id="component that is a number"),
        pytest.param(lambda manifest: manifest["components"]["unet"].pop("inputs"), id="component without inputs"),
        pytest.param(lambda manifest: manifest["components"]["unet"].pop("weights"), id="component without weights"),
        pytest.param(lambda manifest: manifest["files"].update(x={"size": 1}), id="file without a hash"),
        pytest.param(lambda manifest: manifest["files"].update(x=None), id="file that is null"),
    ],
)
def test_a_manifest_with_wrong_fields_is_refused(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit(folder / "safelight.json", change)
    with pytest.raises(ValueError, match=r"safelight\.json is not a manifest: "):
        open_model_folder(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_garbage_is_refused(folder: Path, content: bytes) -> None:
    (folder / "safelight.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"safelight\.json is not a manifest: "):
        open_model_folder(folder)


@pytest.mark.parametrize("name", [LOWERED, "unet/model.onnx_data"])
def test_a_file_that_the_manifest_does_not_record_is_refused(folder: Path, name: str) -> None:
    edit(folder / "safelight.json", lambda manifest: manifest["files"].pop(name))
    with pytest.raises(ValueError, match=f"the manifest does not record {name}; export it again$"):
        open_model_folder(folder).graph("unet", "onnxruntime-cpu")


@pytest.mark.parametrize("inside", [False, True], ids=["absolute", "relative"])
def test_a_manifest_that_points_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, inside: bool) -> None:
    outside = tmp_path / "outside.onnx"
    shutil.copyfile(folder / LOWERED, outside)
    name = "../outside.onnx" if inside else str(outside)

    def point(manifest: dict[str, Any]) -> None:
        manifest["components"]["unet"]["graphs"]["onnxruntime-cpu"] = name
        manifest["files"][name] = vars(file_record(outside))

    edit(folder / "safelight.json", point)
    with pytest.raises(
        ValueError, match=rf"safelight\.json is not a manifest: '{name}' leads out of the model folder$"
    ):
        open_model_folder(folder)


def test_a_graph_whose_weights_lie_elsewhere_is_refused(foreign: Path, tmp_path: Path) -> None:
    shutil.move(foreign / "unet" / "model.onnx_data", tmp_path / "elsewhere")
    graph = onnx.load(foreign / "unet" / "model.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../elsewhere"
    onnx.save(graph, foreign / "unet" / "model.onnx")
    with pytest.raises(ValueError, match=r"unet/model\.onnx is refused: .* external data at '../../elsewhere'"):
        DiffusionPipeline.from_pretrained(foreign)


# weights by name


def test_every_weight_is_the_checkpoints(folder: Path, linear_checkpoint: Path) -> None:
    model = open_model_folder(folder)
    assert model.manifest is not None
    for network, source in (
        ("unet", "unet/diffusion_pytorch_model.safetensors"),
        ("text_encoder", "text_encoder/model.safetensors"),
    ):
        assert model.manifest.components[network].transposed, "a network without transposed weights tests half"
        # transformers 5 leaves the prefix out
        prefix = "text_model." if network == "text_encoder" else ""
        for name, tensor in safetensors.numpy.load_file(linear_checkpoint / source).items():
            known = name if name.startswith(prefix) else prefix + name
            np.testing.assert_array_equal(model.tensor(network, known), tensor, err_msg=known)


def test_unknown_weights_and_networks_are_refused_by_name(folder: Path) -> None:
    model = open_model_folder(folder)
    with pytest.raises(ValueError, match=r"unet has no weight nothing\.weight: "):
        model.tensor("unet", "nothing.weight")
    with pytest.raises(ValueError, match="safety_checker was not exported by safelight, its weights cannot be read"):
        model.tensor("safety_checker", "x")


def test_weights_that_are_no_safetensors_are_refused(folder: Path) -> None:
    weights = folder / "unet" / "model.onnx_data"
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    digest = file_record(weights).sha256
    edit(folder / "safelight.json", lambda manifest: manifest["files"]["unet/model.onnx_data"].update(sha256=digest))
    with pytest.raises(ValueError, match=r"unet/model\.onnx_data is no safetensors file"):
        open_model_folder(folder).tensor("unet", "conv_in.weight")


# another exporter's folder


def test_a_folder_without_a_manifest_opens_by_its_layout(foreign: Path, linear_export: Path) -> None:
    """As optimum writes it, the name of the pipeline included."""
    edit(foreign / "model_index.json", lambda index: index.update(_class_name="ORTStableDiffusionPipeline"))
    model = open_model_folder(foreign)
    assert isinstance(model, ModelFolder)
    assert model.manifest is None
    assert model.graph("unet", "onnxruntime-cpu") == foreign / "unet" / "model.onnx"
    with pytest.raises(ValueError, match="unet was not exported by safelight, its weights cannot be read by name"):
        model.tensor("unet", "conv_in.weight")
    images = []
    for path in (foreign, linear_export):
        with DiffusionPipeline.from_pretrained(path) as pipeline:
            assert type(pipeline) is StableDiffusionPipeline
            pipeline.set_progress_bar_config(disable=True)
            images.append(pipeline("cat face", num_inference_steps=2, seed=0, output_type="np").images)
    np.testing.assert_allclose(*images, atol=1e-4)
