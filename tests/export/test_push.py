"""Exported models on the hub: what is sent, the card, and that what lies there runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import EMOJI_CHECKPOINT, make_tiny_autoencoder
from hub_server import HubServer, digest

from safelight.export.model_card import model_card
from safelight.export.push import create_repository, push
from safelight.runtime import DiffusionPipeline, bundled_model
from safelight.runtime.cli import main
from safelight.runtime.fidelity import Report
from safelight.runtime.manifest import read_manifest
from safelight.runtime.source import local_model

#: of the client, about its own upload by Git LFS
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "owner/name"
TOKEN = "hf_TheTokenThatNobodyMaySee"
MANIFEST = read_manifest(bundled_model())
assert MANIFEST is not None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported model to change."""
    return Path(shutil.copytree(bundled_model(), tmp_path / "model"))


@pytest.fixture
def writable(hub: HubServer) -> HubServer:
    """A hub on which a token may write to one repository."""
    hub.tokens = {TOKEN: {NAME}}
    return hub


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def on_the_hub(hub: HubServer) -> dict[str, bytes]:
    repository = hub.repositories[NAME]
    return {name: data for name, data in repository.commits[repository.refs["main"]].items() if name[0] != "."}


def picture(model: str | Path) -> str:
    with DiffusionPipeline.from_pretrained(model) as pipeline:
        pipeline.set_progress_bar_config(disable=True)
        return digest(pipeline("cat face", num_inference_steps=2, seed=0, output_type="np").images.tobytes())


def front_matter(card: str) -> dict[str, Any]:
    front = card.split("---\n")[1]
    return {key: json.loads(value) for key, _, value in (line.partition(": ") for line in front.splitlines())}


def program(card: str) -> str:
    (found,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return str(found)


# pushing


def test_what_was_pushed_downloads_again_and_makes_the_same_picture(
    writable: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "notes.txt").write_text("what the manifest does not name stays here")
    assert main(["push", str(folder), NAME, "--token", TOKEN]) == 0
    assert capsys.readouterr().out == f"{writable.endpoint}/{NAME}\n"
    sent = on_the_hub(writable)
    card = sent.pop("README.md").decode()
    assert sent == files_of(bundled_model())
    large = {name for name, data in sent.items() if digest(data) in writable.objects}
    assert {name for name in sent if name.endswith((".onnx", ".onnx_data"))} <= large
    assert TOKEN not in card
    assert picture(local_model(NAME)) == picture(bundled_model())
    # its card's program, as it stands
    environment = {**os.environ, **writable.environment(folder.parent / "home")}
    subprocess.run([sys.executable, "-c", program(card)], cwd=folder.parent, env=environment, check=True)
    assert (folder.parent / "image.png").read_bytes().startswith(b"\x89PNG")


def test_an_export_is_pushed_in_the_end(
    writable: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = writable.publish("artist/vae", make_tiny_autoencoder(), card={"license": "apache-2.0", "tags": ["x"]})
    command = ["export", "artist/vae", str(tmp_path / "model"), "--no-validate"]
    assert main([*command, "--push-to-hub", NAME, "--private", "--token", TOKEN]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\[ *[\d.]+ s\] artist/vae: downloading 0\.\d\d MB in 1 files", lines[0])
    assert lines[-1].endswith(f"] {writable.endpoint}/{NAME}")
    assert writable.repositories[NAME].private
    sent = on_the_hub(writable)
    assert {name: data for name, data in sent.items() if name != "README.md"} == files_of(tmp_path / "model")
    source = json.loads(sent["safelight.json"])["source"]
    commit = base.refs["main"]
    assert (source["id"], source["revision"], source["commit"]) == ("artist/vae", None, commit)
    card = sent["README.md"].decode()
    assert front_matter(card)["base_model"] == "artist/vae"
    assert front_matter(card)["license"] == "apache-2.0"
    assert f"[artist/vae](https://huggingface.co/artist/vae) (commit {commit}) as ONNX graphs" in card
    assert "Not validated" in card
    assert not any(TOKEN.encode() in data for data in sent.values())


def test_a_second_push_sends_only_what_changed(writable: HubServer, folder: Path) -> None:
    create_repository(NAME, token=TOKEN)
    push(folder, NAME, token=TOKEN)
    writable.requests.clear()
    said: list[str] = []
    push(folder, NAME, token=TOKEN, progress=said.append)
    assert not [path for method, path, _ in writable.requests if method == "PUT"]
    assert re.fullmatch(r"owner/name: uploading \d+\.\d MB in \d+ files", said[0])


# what is refused


def refused(writable: HubServer, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 1
    error = capsys.readouterr().err
    assert TOKEN not in error
    assert not [path for method, path, _ in writable.requests if method == "PUT"]
    return error


def test_whoever_may_not_write_learns_it_before_the_export(
    writable: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(EMOJI_CHECKPOINT), str(tmp_path / "model"), "--push-to-hub"]
    error = refused(writable, capsys, *command, NAME)
    assert error.startswith(f"safelight: {writable.endpoint} does not know the token, or needs one; `hf auth login`")
    error = refused(writable, capsys, *command, "other/name", "--token", TOKEN)
    assert error.startswith(f"safelight: {writable.endpoint} does not allow this for other/name; `hf auth login`")
    error = refused(writable, capsys, *command, "name", "--token", TOKEN)
    assert error == "safelight: a repository on the hub is called owner/name, got 'name'\n"
    error = refused(writable, capsys, *command[:-1], "--private")
    assert error == "safelight: --private is of a repository on the hub: name one, --push-to-hub OWNER/NAME\n"
    assert not (tmp_path / "model").exists()


def test_a_private_model_is_not_sent_to_a_public_repository(
    writable: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writable.publish(NAME, {"README.md": b"mine"})
    error = refused(writable, capsys, "push", str(folder), NAME, "--private", "--token", TOKEN)
    assert error == f"safelight: {NAME} is there already and not private; nothing was sent\n"
    assert on_the_hub(writable) == {"README.md": b"mine"}


def test_a_folder_that_is_not_as_it_was_exported_is_not_sent(
    writable: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["push", str(folder), NAME, "--token", TOKEN]
    weights = folder / "unet" / "model.onnx_data"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    expected = "model.onnx_data is not the file that was exported; export it again\n"
    assert refused(writable, capsys, *command).endswith(expected)
    weights.unlink()
    expected = "is not whole: unet/model.onnx_data is missing; export it again\n"
    assert refused(writable, capsys, *command).endswith(expected)
    (folder.parent / "secret").write_bytes(content)
    weights.symlink_to(folder.parent / "secret")
    assert "leads out of the model folder" in refused(writable, capsys, *command)
    (folder / "safelight.json").unlink()
    assert refused(writable, capsys, *command).endswith("was not exported by safelight: it has no safelight.json\n")
    error = refused(writable, capsys, "push", str(EMOJI_CHECKPOINT), NAME, "--token", TOKEN)
    assert "is a checkpoint that was not exported yet" in error


# the card


def test_the_card_shows_components_and_fidelity() -> None:
    card = model_card(
        MANIFEST, repo_id=NAME, class_name="StableDiffusionPipeline", licence={"license": "mit", "x": "y"}
    )
    assert front_matter(card) == {
        "library_name": "safelight",
        "tags": ["safelight", "onnx", "diffusion"],
        "pipeline_tag": "text-to-image",
        "license": "mit",
    }
    assert "| unet | UNet2DConditionModel | fp32 | fp16 | 14.2 MB |" in card
    found = Report.of(MANIFEST)
    unet = found.components["unet"]
    error = unet.graphs["onnx"].relative_error
    assert f"| unet | model.onnx | {error:.1e} | {unet.limit:.1e} | {unet.half_precision:.1e} |" in card
    assert f"| unet | model.tensorrt.onnx | not run | {unet.limit:.1e} | {unet.half_precision:.1e} |" in card
    assert card.count("| model.onnxruntime-cpu.onnx |") == 4
    assert f"picture PSNR {found.run.psnr:.1f} dB, SSIM {found.run.ssim:.6f}; the reference in float16: " in card


def test_the_card_says_what_was_not_validated_and_what_overflows() -> None:
    card = model_card(replace(MANIFEST, fidelity=None), repo_id=NAME, class_name="DDPMPipeline")
    assert "Not validated: the export was not compared" in card
    assert "relative error" not in card
    assert front_matter(card)["pipeline_tag"] == "unconditional-image-generation"
    assert "pipeline(seed=0)" in program(card)
    report = Report.of(MANIFEST)
    decoder = replace(report.components["vae_decoder"], overflows=True, absolute_limit=1e-3)
    changed = replace(report, components={**report.components, "vae_decoder": decoder}, run=None, run_missing="a part")
    wide = replace(MANIFEST.components["vae_decoder"], dtype="bf16")
    components = {**MANIFEST.components, "vae_decoder": wide}
    card = model_card(
        changed.recorded_in(replace(MANIFEST, components=components)), repo_id=NAME, class_name="DDPMPipeline"
    )
    assert "| 1.0e-03 absolute | overflows |" in card
    assert "| vae_decoder | AutoencoderKL | bf16 | fp16 |" in card
    assert "PSNR" not in card


def test_the_card_names_where_the_checkpoint_is_from() -> None:
    source = {"id": "a/b", "commit": "0123", "variant": "fp16", "loras": [{"file": "x.safetensors", "scale": 0.5}]}
    card = model_card(replace(MANIFEST, source=source), repo_id=NAME, class_name="StableDiffusionInpaintPipeline")
    origin = "[a/b](https://huggingface.co/a/b) (commit 0123, variant fp16, with the LoRA x.safetensors at 0.5) as ONNX"
    assert origin in card
    assert front_matter(card)["base_model"] == "a/b"
    assert front_matter(card)["pipeline_tag"] == "image-to-image"
    assert 'image=Image.open("input.png"), mask_image=Image.open("mask.png"), seed=0)' in program(card)
    alone = model_card(MANIFEST, repo_id=NAME, class_name="AutoencoderTiny")
    assert 'network = AutoencoderTiny.from_pretrained("owner/name")' in program(alone)
    assert "pipeline_tag" not in front_matter(alone)
    assert "The checkpoint `checkpoint` as ONNX graphs" in alone
