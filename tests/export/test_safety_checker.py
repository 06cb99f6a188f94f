"""A checkpoint's safety checker: exported with what prepares its input, or left out on purpose."""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from pairs import photograph

from safelight.export.checkpoint import open_checkpoint
from safelight.export.folder import export_model
from safelight.export.options import ExportOptions
from safelight.runtime.backends import Array, open_network
from safelight.runtime.cli import main
from safelight.runtime.fidelity import Proof, check
from safelight.runtime.image_processor import CLIPImageProcessor
from safelight.runtime.model_folder import open_model_folder
from safelight.runtime.networks.safety_checker import DECISIONS, decide

LAYERS = 3


@pytest.fixture
def checkpoint(checked_checkpoint: Path, tmp_path: Path) -> Path:
    """The safety checker alone, with its feature extractor."""
    folder = tmp_path / "checkpoint"
    for name in ("safety_checker", "feature_extractor"):
        shutil.copytree(checked_checkpoint / name, folder / name)
    index = json.loads((checked_checkpoint / "model_index.json").read_text())
    kept = {name: index[name] for name in ("_class_name", "feature_extractor", "safety_checker")}
    (folder / "model_index.json").write_text(json.dumps(kept))
    return folder


def edit_index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_layout(checked_export: Path, checked_checkpoint: Path) -> None:
    names = {path.name for path in (checked_export / "safety_checker").iterdir()}
    assert names == {"config.json", "model.onnx", "model.onnx_data", "model.onnxruntime-cpu.onnx"}
    onnx.checker.check_model(checked_export / "safety_checker" / "model.onnx", full_check=True)
    folder = open_model_folder(checked_export)
    assert folder.manifest is not None
    record = folder.manifest.components["safety_checker"]
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in (*record.inputs, *record.outputs)] == [
        ("clip_input", "float32", ["batch", 3, 32, 32]),
        ("has_nsfw_concepts", "bool", ["batch"]),
        ("special_scores", "float32", ["batch", 3]),
        ("concept_scores", "float32", ["batch", 17]),
    ]
    assert record.fidelity is not None
    assert all(0 < graph["relative_error"] < 1e-5 for graph in record.fidelity["graphs"].values())
    processor = "feature_extractor/preprocessor_config.json"
    assert (checked_export / processor).read_bytes() == (checked_checkpoint / processor).read_bytes()
    assert "safety_checker/model.safetensors" in folder.manifest.source["files"]
    index = json.loads((checked_checkpoint / "model_index.json").read_text())
    assert index["feature_extractor"] == ["transformers", "CLIPImageProcessorPil"]  # which transformers 4 does not have
    assert folder.index == {**index, "feature_extractor": ["transformers", "CLIPImageProcessor"]}


@pytest.fixture(scope="module")
def photographs(checked_checkpoint: Path) -> Array:
    """What the safety checker sees of photographs, and of them upside down."""
    processor = CLIPImageProcessor.from_pretrained(checked_checkpoint / "feature_extractor")
    images = [photograph(name) for name in ("astronaut", "coffee", "chelsea")]
    return processor([*images, *(image.rotate(180) for image in images)])["pixel_values"]


@pytest.mark.parametrize("options", [{}, {"opset": 18}, {"weights_dtype": "fp16"}, {"dtype": "fp16"}], ids=str)
def test_every_graph_is_diffusers_network(
    checkpoint: Path,
    tmp_path: Path,
    photographs: Array,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = StableDiffusionSafetyChecker.from_pretrained(checkpoint / "safety_checker").requires_grad_(False)
    embeds = theirs.visual_projection(theirs.vision_model(torch.from_numpy(photographs)).pooler_output)
    cosines = torch.nn.functional.cosine_similarity(embeds[:, None], theirs.concept_embeds[None], dim=-1)
    theirs.concept_embeds_weights[0] = cosines[:, 0].sort().values[2:4].mean()  # one half is found
    theirs.save_pretrained(checkpoint / "safety_checker")
    expected = (cosines - theirs.concept_embeds_weights).numpy()
    _, found = theirs(torch.from_numpy(photographs), np.ones((6, 4, 4, 3)))
    assert sum(found) == 3

    export_model(open_checkpoint(checkpoint), tmp_path / "out", ExportOptions(**options))
    tolerance = 5e-3 if "fp16" in options.values() else 1e-5
    for graph, attention in (("model.onnx", "Attention"), ("model.onnxruntime-cpu.onnx", "MultiHeadAttention")):
        path = tmp_path / "out" / "safety_checker" / graph
        operators = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
        assert operators[attention] == (0 if graph == "model.onnx" and options.get("opset") == 18 else LAYERS)
        result = open_network(path)({"clip_input": photographs})
        assert np.abs(result["concept_scores"] - expected).max() < tolerance
        assert result["has_nsfw_concepts"].tolist() == found
        assert decide(result["special_scores"], result["concept_scores"]).tolist() == found

    # a graph that concludes the opposite from the same scores does not validate
    right = sys.modules[check.__module__]._call  # type: ignore[attr-defined]

    def inverted(name: str, *arguments: Any) -> dict[str, Array]:
        answers: dict[str, Array] = right(name, *arguments)
        return {output: ~answer if output == DECISIONS else answer for output, answer in answers.items()}

    monkeypatch.setattr(sys.modules[check.__module__], "_call", inverted)
    folder = open_model_folder(tmp_path / "out")
    (failure, *_) = check(folder, Proof.read(folder)).failures
    assert DECISIONS in failure


@pytest.fixture
def with_text_encoder(checkpoint: Path, checked_checkpoint: Path) -> Path:
    """The safety checker, its feature extractor, and a text encoder."""
    shutil.copytree(checked_checkpoint / "text_encoder", checkpoint / "text_encoder")
    edit_index(checkpoint, text_encoder=["transformers", "CLIPTextModel"])
    return checkpoint


def test_it_is_left_out_on_purpose(with_text_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = json.loads((with_text_encoder / "model_index.json").read_text())
    out = tmp_path / "out"
    assert main(["export", str(with_text_encoder), str(out), "--no-safety-checker", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    nothing = [None, None]
    assert open_model_folder(out).index == {**index, "safety_checker": nothing, "feature_extractor": nothing}
    assert {path.name for path in out.iterdir()} == {"model_index.json", "safelight.json", "text_encoder", "fidelity"}


def test_what_is_for_ip_adapters_is_left_out(with_text_encoder: Path) -> None:
    edit_index(with_text_encoder, image_encoder=["transformers", "CLIPVisionModelWithProjection"])
    assert open_checkpoint(with_text_encoder).left_out == ("image_encoder",)
    edit_index(with_text_encoder, safety_checker=[None, None])
    checkpoint = open_checkpoint(with_text_encoder)
    assert set(checkpoint.left_out) == {"image_encoder", "feature_extractor"}
    assert not checkpoint.files


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("nothing", "lacks the component safety_checker, which its model_index.json names"),
        ("pickle", r"pytorch_model\.bin is a pickle"),
        ("class", "component safety_checker is a MyChecker, which cannot be exported yet"),
        ("config", "image_size must be int, got 'large'"),
        ("extractor", r"do_pad = True is not implemented"),
        ("no extractor", "has a safety_checker, and no feature_extractor that prepares its input"),
    ],
)
def test_one_that_cannot_be_exported_has_a_way_out(checkpoint: Path, broken: str, message: str) -> None:
    checker = checkpoint / "safety_checker"
    if broken == "nothing":
        shutil.rmtree(checker)
    elif broken == "pickle":
        (checker / "model.safetensors").rename(checker / "pytorch_model.bin")
    elif broken == "class":
        edit_index(checkpoint, safety_checker=["mine", "MyChecker"])
    elif broken == "extractor":
        path = checkpoint / "feature_extractor" / "preprocessor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "do_pad": True}))
    elif broken == "no extractor":
        edit_index(checkpoint, feature_extractor=[None, None])
    else:
        config = json.loads((checker / "config.json").read_text())
        config["vision_config"]["image_size"] = "large"
        (checker / "config.json").write_text(json.dumps(config))
    with pytest.raises((ValueError, FileNotFoundError), match=f"{message}.*; --no-safety-checker leaves it out$"):
        open_checkpoint(checkpoint)
