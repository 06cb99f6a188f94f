"""Checkpoints by their id on the hub, looked over for an export."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import EMOJI_CHECKPOINT
from hub_server import HubServer

from safelight.export.checkpoint import open_checkpoint
from safelight.runtime.cli import main

NAME = "artist/emoji"


def emoji(**changes: bytes) -> dict[str, bytes]:
    files = [path for path in EMOJI_CHECKPOINT.rglob("*") if path.is_file()]
    return {str(path.relative_to(EMOJI_CHECKPOINT)): path.read_bytes() for path in files} | changes


def index(**changes: Any) -> bytes:
    return json.dumps({**json.loads((EMOJI_CHECKPOINT / "model_index.json").read_text()), **changes}).encode()


def test_the_manifest_is_going_to_name_the_commit(hub: HubServer, tmp_path: Path) -> None:
    repository = hub.publish(NAME, emoji())
    tag = repository.commit(emoji(**{"README.md": b"# x"}), "v1")
    hub.tokens = {"hf_secret": set()}
    for revision, commit in ((None, repository.refs["main"]), ("v1", tag), (tag, tag)):
        checkpoint = open_checkpoint(NAME, revision=revision, token="hf_secret")
        source = checkpoint.source
        assert (source["id"], source["revision"], source["commit"]) == (NAME, revision, commit)
        assert "hf_secret" not in json.dumps(source)
    # the same folder, when it is named by its path, as the runtime does
    named = open_checkpoint(checkpoint.path).source
    assert (named["id"], named["revision"], named["commit"]) == (NAME, None, tag)
    assert named["files"] == source["files"] == open_checkpoint(EMOJI_CHECKPOINT).source["files"]
    here = open_checkpoint(EMOJI_CHECKPOINT).source
    assert (here["id"], here["commit"]) == ("checkpoint", None)


def test_what_cannot_be_exported_is_not_fetched(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.publish(NAME, emoji(**{"model_index.json": index(_class_name="FluxPipeline")}))
    with pytest.raises(ValueError, match=r"^artist/emoji holds FLUX \(FluxPipeline\), which cannot be"):
        open_checkpoint(NAME)
    hub.publish(NAME, emoji(**{"model_index.json": index(transformer=["diffusers", "FluxTransformer2DModel"])}))
    assert main(["export", NAME, str(tmp_path / "model")]) == 1
    assert "component transformer is a FluxTransformer2DModel, which cannot be exported yet" in capsys.readouterr().err
    assert set(hub.sent) == {"model_index.json"}


def test_a_checkpoint_with_other_engines_files_beside_its_weights_is_one(hub: HubServer) -> None:
    others = {
        f"{name}/{file}": b"x" for name in ("unet", "vae_decoder") for file in ("model.onnx", "openvino_model.bin")
    }
    hub.publish(NAME, emoji(**others))
    assert {component.name for component in open_checkpoint(NAME).components} == {"text_encoder", "unet", "vae"}
    assert not set(hub.sent) & set(others)
    for name in others:  # as another tool may have left them in the cache
        path = open_checkpoint(NAME).path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert open_checkpoint(open_checkpoint(NAME).path).source["id"] == NAME


def test_pickles_are_fetched_where_they_are_allowed(hub: HubServer, tmp_path: Path) -> None:
    files = emoji()
    files["vae/diffusion_pytorch_model.bin"] = files.pop("vae/diffusion_pytorch_model.safetensors")
    hub.publish(NAME, files)
    with pytest.raises(ValueError, match=r"^artist/emoji: vae has pickles only \(vae/diffusion_pytorch_model\.bin\)"):
        open_checkpoint(NAME)
    assert "vae/diffusion_pytorch_model.bin" not in hub.sent
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin is refused, and nothing of it was run"):
        open_checkpoint(NAME, unpickled=tmp_path)
    assert "vae/diffusion_pytorch_model.bin" in hub.sent
