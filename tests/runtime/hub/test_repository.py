"""The real client against a hub on this machine: what is fetched, what is not, and what is said when it fails."""

import json
import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections import namedtuple
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from hub_server import HubServer, blob, digest
from huggingface_hub import constants

from safelight.runtime import DiffusionPipeline, EulerDiscreteScheduler, bundled_model
from safelight.runtime.hub import Selection, download, origin
from safelight.runtime.hub.files import needed_files
from safelight.runtime.source import local_model

NAME = "owner/name"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
TOKEN = "hf_TheTokenThatNobodyMaySee"
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def random_bytes(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def checkpoint_files() -> dict[str, bytes]:
    """A checkpoint as the hub has it: variants, pickles, other engines' files, and the whole in one file."""
    files = {"model_index.json": json.dumps(INDEX).encode(), "scheduler/scheduler_config.json": b"{}"}
    for seed, network in enumerate(("unet", "vae")):
        files[f"{network}/config.json"] = json.dumps({"of": network}).encode()
        for size, name in enumerate(("", ".fp16", ".non_ema"), start=3000):
            files[f"{network}/diffusion_pytorch_model{name}.safetensors"] = random_bytes(size, seed)
        files[f"{network}/diffusion_pytorch_model.bin"] = random_bytes(10)
        files[f"{network}/model.onnx"] = files[f"{network}/openvino_model.bin"] = random_bytes(10)
    return {**files, "README.md": b"# x", "all.safetensors": random_bytes(9000), "code.py": b"raise SystemExit"}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# what is fetched


def test_of_a_checkpoint_only_the_needed_files_leave_the_hub(hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    files = checkpoint_files()
    repository = hub.publish(NAME, files)
    caplog.set_level(logging.INFO)
    said: list[str] = []
    path = download(NAME, Selection(variant="fp16"), progress=said.append)
    needed = needed_files(files, INDEX, Selection(variant="fp16"))
    assert files_of(path) == {name: files[name] for name in needed}
    assert set(hub.sent) == set(needed)
    assert all(hub.sent[name] == len(files[name]) for name in needed)
    assert path.name == repository.refs["main"]
    assert origin(path) == (NAME, repository.refs["main"])
    size = sum(len(files[name]) for name in needed if name != "model_index.json")
    assert said == [f"{NAME}: downloading {size / 1e6:.2f} MB in {len(needed) - 1} files"]
    # what the cache has is not fetched again, nor announced
    hub.sent.clear()
    assert download(NAME, Selection(variant="fp16"), progress=said.append) == path
    assert not hub.sent
    assert len(said) == 1
    # another selection adds what it lacks
    download(NAME, Selection())
    assert {name for name in hub.sent if name.endswith(".safetensors")} == {WEIGHTS, WEIGHTS.replace("unet", "vae")}


def test_a_new_commit_fetches_what_changed(hub: HubServer) -> None:
    repository = hub.publish(NAME, checkpoint_files())
    first = download(NAME)
    changed = {**checkpoint_files(), WEIGHTS: random_bytes(4000, 1)}
    repository.commit(changed)
    hub.sent.clear()
    said: list[str] = []
    second = download(NAME, progress=said.append)
    assert said == [f"{NAME}: downloading 0.00 MB in 1 files"]
    assert second != first
    assert (second / WEIGHTS).read_bytes() == changed[WEIGHTS]
    assert (first / WEIGHTS).read_bytes() == checkpoint_files()[WEIGHTS]
    assert set(hub.sent) == {WEIGHTS}


def test_revisions_are_branches_tags_and_commits(hub: HubServer) -> None:
    repository = hub.publish(NAME, checkpoint_files())
    sha = repository.commit({**checkpoint_files(), WEIGHTS: random_bytes(50, 2)}, "refs/pr/1")
    repository.refs["v1.0"] = sha
    for revision in ("refs/pr/1", "v1.0", sha):
        path = download(NAME, revision=revision)
        assert path.name == sha
        assert (path / WEIGHTS).read_bytes() == random_bytes(50, 2)
        assert download(NAME, revision=revision, local_files_only=True) == path
    assert download(NAME).name == repository.refs["main"]


def test_a_network_alone_is_fetched_without_an_index(hub: HubServer, tmp_path: Path) -> None:
    config, weights = json.dumps({"_class_name": "AutoencoderTiny"}).encode(), random_bytes(100)
    files = {"config.json": config, "diffusion_pytorch_model.safetensors": weights, "taesd.safetensors": weights}
    hub.publish(NAME, files)
    path = download(NAME, cache_dir=tmp_path / "elsewhere")
    assert files_of(path) == {name: files[name] for name in files if name != "taesd.safetensors"}
    assert path.is_relative_to(tmp_path / "elsewhere")
    assert download(NAME, cache_dir=tmp_path / "elsewhere", local_files_only=True) == path


def test_of_a_repository_only_the_schedulers_file_is_fetched_for_a_scheduler(hub: HubServer) -> None:
    config = {"_class_name": "EulerDiscreteScheduler", "beta_end": 0.0123}
    hub.publish(NAME, {**checkpoint_files(), "scheduler/scheduler_config.json": json.dumps(config).encode()})
    assert EulerDiscreteScheduler.from_pretrained(NAME, subfolder="scheduler").config["beta_end"] == 0.0123
    assert set(hub.sent) == {"scheduler/scheduler_config.json"}
    with pytest.raises(FileNotFoundError, match=r"^owner/name has no other/scheduler_config\.json$"):
        EulerDiscreteScheduler.from_pretrained(NAME, subfolder="other")
    hub.status = 503
    assert EulerDiscreteScheduler.from_pretrained(NAME).config["beta_end"] == 0.0123


# a transfer that breaks


@pytest.mark.parametrize("reset", [False, True])
def test_a_broken_transfer_goes_on_where_it_broke(hub: HubServer, monkeypatch: pytest.MonkeyPatch, reset: bool) -> None:
    chunk = 4096
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", chunk)
    monkeypatch.setattr("time.sleep", lambda _: None)
    files = {**checkpoint_files(), WEIGHTS: random_bytes(400_000)}
    hub.publish(NAME, files)
    hub.break_once(WEIGHTS, 300_000, reset=reset)
    path = download(NAME)
    assert (path / WEIGHTS).read_bytes() == files[WEIGHTS]
    asked = hub.asked("GET", WEIGHTS)
    offsets = [
        int(headers["range"].removeprefix("bytes=").removesuffix("-")) for headers in asked if "range" in headers
    ]
    assert offsets
    assert all(offset % chunk == 0 for offset in offsets)
    # a reset may take what was on its way
    assert hub.sent[WEIGHTS] == len(files[WEIGHTS]) + 300_000 - offsets[-1]
    if not reset:
        assert offsets[-1] > 300_000 - chunk


KILLED = """
import os, sys, threading, time
from pathlib import Path
from safelight.runtime.hub import download

def kill():
    while not any(f.stat().st_size >= 200_000 for f in Path(os.environ["HF_HOME"]).rglob("*.incomplete")):
        time.sleep(0.01)
    os._exit(9)

if "kill" in sys.argv:
    from huggingface_hub import constants
    constants.DOWNLOAD_CHUNK_SIZE = 4096
    import huggingface_hub.file_download as f
    threading.Thread(target=kill, daemon=True).start()
print(download("owner/name"))
"""


def test_a_transfer_whose_process_was_killed_goes_on_in_the_next(hub: HubServer, tmp_path: Path) -> None:
    files = {**checkpoint_files(), WEIGHTS: random_bytes(900_000)}
    hub.publish(NAME, files)
    hub.hold(WEIGHTS, 300_000)
    environment = {**os.environ, **hub.environment(tmp_path / "home")}
    command = [sys.executable, "-c", KILLED]
    killed = subprocess.run([*command, "kill"], env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == 9, killed.stderr
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (Path(result.stdout.strip()) / WEIGHTS).read_bytes() == files[WEIGHTS]
    offset = int(hub.asked("GET", WEIGHTS)[-1]["range"].removeprefix("bytes=").removesuffix("-"))
    assert 200_000 <= offset <= 300_000
    assert hub.sent[WEIGHTS] == 300_000 + len(files[WEIGHTS]) - offset
    assert not list((tmp_path / "home").rglob("*.incomplete"))


def test_content_that_is_not_of_the_hash_is_refused(hub: HubServer) -> None:
    hub.publish(NAME, checkpoint_files())
    blobs = Path(constants.HF_HUB_CACHE) / "models--owner--name" / "blobs"
    blobs.mkdir(parents=True)
    partial = blobs / f"{digest(checkpoint_files()[WEIGHTS])}.incomplete"
    partial.write_bytes(b"what somebody else left")
    with pytest.raises(
        OSError, match=r"^owner/name: unet/.*\.safetensors arrived with the sha256 \w{64}, the hub names"
    ):
        download(NAME)
    assert not partial.exists()
    partial.write_bytes(random_bytes(9000))  # longer than the file
    assert (download(NAME) / WEIGHTS).read_bytes() == checkpoint_files()[WEIGHTS]


# what is wrong, in the user's words


def test_a_repository_that_is_not_there(hub: HubServer) -> None:
    expected = rf"^{hub.endpoint} has no repository {NAME}, or it is private; `hf auth login`, HF_TOKEN or --token"
    with pytest.raises(FileNotFoundError, match=expected):
        download(NAME)


def test_a_private_repository_opens_with_a_token_alone(hub: HubServer) -> None:
    hub.publish(NAME, checkpoint_files(), private=True)
    hub.tokens = {TOKEN: {NAME}, "hf_other": {"other/name"}}
    with pytest.raises(FileNotFoundError, match="or it is private"):
        download(NAME)
    with pytest.raises(FileNotFoundError, match="or it is private"):
        download(NAME, token="hf_other")
    assert (download(NAME, token=TOKEN) / WEIGHTS).is_file()
    assert {headers.get("authorization") for headers in hub.asked("GET", f"/resolve/main/{WEIGHTS}")} <= {None}


def test_a_gated_repository_says_where_to_accept_the_licence(hub: HubServer) -> None:
    hub.publish(NAME, checkpoint_files(), gated=True)
    hub.tokens = {TOKEN: {NAME}, "hf_other": {"other/name"}}
    for token in (None, "hf_other"):
        expected = (
            rf"^{NAME} is gated: accept its licence at {hub.endpoint}/{NAME}; `hf auth login`, HF_TOKEN or --token"
        )
        with pytest.raises(PermissionError, match=expected):
            download(NAME, token=token)
    assert (download(NAME, token=TOKEN) / WEIGHTS).is_file()


def test_a_token_that_the_hub_does_not_know_is_refused_and_never_shown(hub: HubServer) -> None:
    hub.publish(NAME, checkpoint_files())
    with pytest.raises(PermissionError, match="does not know the token, or needs one; `hf auth login`") as caught:
        download(NAME, token=TOKEN)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    for token in ("", f"{TOKEN}\n", f"{TOKEN} x", f"{TOKEN}é"):
        with pytest.raises(ValueError, match=r"^the token is empty, or has characters that no token has") as refused:
            download(NAME, token=token)
        assert TOKEN not in "".join(traceback.format_exception(refused.value))


def test_a_revision_that_is_not_there_names_those_that_are(hub: HubServer) -> None:
    hub.publish(NAME, checkpoint_files()).commit(checkpoint_files(), "fp16")
    with pytest.raises(FileNotFoundError, match=r"^owner/name has no revision 'bf16'; it has main, fp16, and commits"):
        download(NAME, revision="bf16")


def test_a_variant_that_is_not_there_names_those_that_are_and_fetches_nothing(hub: HubServer) -> None:
    hub.publish(NAME, checkpoint_files())
    expected = r"^owner/name: no weights of the variant 'bf16' in unet, vae; there are the variants fp16, non_ema$"
    with pytest.raises(FileNotFoundError, match=expected):
        download(NAME, Selection(variant="bf16"))
    assert set(hub.sent) == {"model_index.json"}


def test_what_is_refused_by_its_index_is_not_fetched(hub: HubServer) -> None:
    hub.publish(NAME, checkpoint_files())
    asked = []

    def check(index: Any, folder: Path) -> None:
        asked.append((index, origin(folder)))
        raise ValueError("not this one")

    with pytest.raises(ValueError, match=r"^owner/name: not this one$"):
        download(NAME, check=check)
    assert asked == [(INDEX, (NAME, hub.repositories[NAME].refs["main"]))]
    assert set(hub.sent) == {"model_index.json"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": b""}, r"^owner/name is no model: it has no model_index\.json$"),
        (
            {"b.safetensors": b"", "a.ckpt": b"", "x/c.ckpt": b""},
            r"no model: it has no model_index\.json; to use a file of it, download that file and name it: a\.ckpt, b",
        ),
        (
            {"config.json": b'{"_class_name": "GPT2"}', "model.safetensors": b""},
            r"^owner/name: there is no model_index\.json, and config\.json is of no network that is known alone$",
        ),
        ({"model_index.json": b"[]"}, r"^owner/name: .*model_index\.json holds no JSON object$"),
    ],
)
def test_what_is_no_model_is_refused(hub: HubServer, files: dict[str, bytes], message: str) -> None:
    hub.publish(NAME, files)
    with pytest.raises(ValueError, match=message):
        download(NAME)
    assert "model.safetensors" not in hub.sent


def test_a_full_disk_is_said_before_anything_is_fetched(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish(NAME, {**checkpoint_files(), WEIGHTS: random_bytes(2_000_000)})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(9, 9, 1_000_000))
    with pytest.raises(OSError, match=r"^owner/name: 2\.00 MB are to be downloaded, and .* has room for 1\.00 MB$"):
        download(NAME)
    assert set(hub.sent) == {"model_index.json"}


# without the hub


def test_offline_the_cache_is_enough(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    files = checkpoint_files()
    hub.publish(NAME, files)
    path = download(NAME, Selection(variant="fp16"))
    hub.requests.clear()
    assert download(NAME, Selection(variant="fp16"), local_files_only=True) == path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download(NAME, Selection(variant="fp16")) == path
    assert not hub.requests
    with pytest.raises(
        FileNotFoundError,
        match=r"^owner/name: unet has weights of the variants fp16 only: ask for one: the hub's cache has only a part, "
        r"and the hub is not asked \(HF_HUB_OFFLINE=1\)$",
    ):
        download(NAME)


def test_offline_what_the_cache_lacks_is_said(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish(NAME, checkpoint_files())
    expected = r"^owner/name is not in the hub's cache, and the hub is not asked \(local_files_only=True\)$"
    with pytest.raises(FileNotFoundError, match=expected):
        download(NAME, local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    expected = (
        r"^owner/name at the revision v2 is not in the hub's cache, and the hub is not asked \(HF_HUB_OFFLINE=1\)$"
    )
    with pytest.raises(FileNotFoundError, match=expected):
        download(NAME, revision="v2")
    with pytest.raises(
        FileNotFoundError, match=r"^owner/name has no scheduler_config\.json or .* in the hub's cache, and "
    ):
        EulerDiscreteScheduler.from_pretrained(NAME)
    assert not hub.requests


def test_a_hub_that_cannot_be_reached_leaves_the_cache(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.publish(NAME, checkpoint_files())
    path = download(NAME)
    hub.status = 503
    assert download(NAME) == path
    assert caplog.messages == [
        f"{hub.endpoint} is out of order (status 503); {NAME} is taken from the cache, at commit {path.name}"
    ]
    with pytest.raises(
        ConnectionError, match=r"^other/name is not in the hub's cache, and .* is out of order \(status 503\)$"
    ):
        download("other/name")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # nobody listens
    with pytest.raises(
        ConnectionError, match=r"^other/name is not in .*, and http://127\.0\.0\.1:1 cannot be reached \(.*refused\)$"
    ):
        download("other/name")
    assert download(NAME) == path


# exported models


def test_an_exported_model_is_fetched_whole_as_files_and_makes_the_same_picture(hub: HubServer, tmp_path: Path) -> None:
    files = files_of(bundled_model())
    repository = hub.publish(NAME, {**files, "README.md": b"# x", "other.safetensors": random_bytes(10)})
    path = local_model(NAME)
    own = {name: data for name, data in files_of(path).items() if not name.startswith(".cache")}
    assert own == files
    assert all(hub.sent[name] <= 2 * len(files[name]) for name in files)
    assert all(hub.sent[name] == len(files[name]) for name in files if name.endswith("onnx_data"))
    assert not any(p.is_symlink() or (p.is_file() and p.stat().st_nlink != 1) for p in path.rglob("*"))
    assert origin(path) == (NAME, repository.refs["main"])
    assert picture(path) == picture(bundled_model())
    hub.requests.clear()
    hub.sent.clear()
    assert local_model(NAME, local_files_only=True) == path
    assert not hub.requests
    assert local_model(NAME) == path
    assert not hub.sent


def test_an_exported_model_that_another_tool_downloaded_runs_from_the_snapshot_offline(hub: HubServer) -> None:
    hub.publish(NAME, bundled_model())
    snapshot = Path(huggingface_hub.snapshot_download(NAME))
    assert (snapshot / "unet" / "model.onnx_data").is_symlink()
    assert local_model(NAME, local_files_only=True) == snapshot
    assert picture(snapshot) == picture(bundled_model())
    hub.sent.clear()
    path = local_model(NAME)  # as files of their own, copied
    assert not hub.sent
    assert (path / "unet" / "model.onnx_data").read_bytes() == (snapshot / "unet" / "model.onnx_data").read_bytes()
    assert not (path / "unet" / "model.onnx_data").is_symlink()


def test_an_exported_model_that_lacks_a_file_is_refused(hub: HubServer) -> None:
    files = files_of(bundled_model())
    del files["unet/model.onnx_data"]
    hub.publish(NAME, files)
    with pytest.raises(
        FileNotFoundError, match=r"^owner/name: the repository is not whole: it lacks unet/model\.onnx_data$"
    ):
        local_model(NAME)
    with pytest.raises(ValueError, match=r"^owner/name: it was exported already: open it by this name$"):
        download(NAME, exported=False)


def picture(model: Path) -> str:
    with DiffusionPipeline.from_pretrained(model) as pipeline:
        pipeline.set_progress_bar_config(disable=True)
        return digest(pipeline("cat face", num_inference_steps=2, seed=0, output_type="np").images.tobytes())


# checkpoints, for the runtime


def test_a_checkpoint_is_not_fetched_where_it_cannot_be_exported(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish(
        NAME, {**checkpoint_files(), "model_index.json": json.dumps({**INDEX, "t5": ["x", "T5EncoderModel"]}).encode()}
    )
    with pytest.raises(
        ValueError, match=r"^owner/name: component t5 is a T5EncoderModel, which is not known here; known: Auto"
    ):
        local_model(NAME)
    hub.publish(NAME, checkpoint_files())
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"^owner/name is a checkpoint .*: safelight export owner/name FOLDER;"
    ):
        local_model(NAME)
    assert set(hub.sent) == {"model_index.json"}


def test_folders_that_are_not_of_the_hubs_cache_have_no_origin(tmp_path: Path) -> None:
    for name in (
        "folder",
        "models--a--b/blobs/c",
        "datasets--a--b/snapshots/c",
        "models--a/snapshots/c",
        "snapshots/c",
    ):
        assert origin(tmp_path / name) is None
    assert origin(tmp_path / "models--a--b.c-d" / "snapshots" / "0123") == ("a/b.c-d", "0123")
    assert origin(tmp_path / "models--a--b" / "safelight" / "0123") == ("a/b", "0123")


def test_the_hub_of_the_tests_names_blobs_as_git_does() -> None:
    assert blob("x.json", b"hello\n")["blobId"] == "ce013625030ba8dba906f756967f9e9ca394464a"
