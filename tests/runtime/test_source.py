"""From what a user names to a model folder: paths, hub ids, and the cache of exports."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safelight.runtime import DiffusionPipeline, bundled_model, source
from safelight.runtime.hub import Selection
from safelight.runtime.model_folder import open_model_folder
from safelight.runtime.source import cache_folder, exported, is_hub_id, local_file, local_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that is empty."""
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checkpoint(linear_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return Path(shutil.copytree(linear_checkpoint, tmp_path / "checkpoint"))


class Hub:
    """Stands in for `hub.download`: records what it is asked, gives a folder or fails."""

    def __init__(self, result: Path | Exception) -> None:
        self.result = result
        self.calls: list[tuple[str, Selection, dict[str, Any]]] = []

    def __call__(self, repo_id: str, selection: Selection, **options: Any) -> Path:
        self.calls.append((repo_id, selection, options))
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def stand_in_for_the_hub(monkeypatch: pytest.MonkeyPatch, result: Path | Exception) -> Hub:
    stand_in = Hub(result)
    monkeypatch.setattr(source, "download", stand_in)
    return stand_in


# names


def test_the_bundled_model_is_a_model_folder() -> None:
    assert open_model_folder(bundled_model()).class_name == "StableDiffusionPipeline"
    assert local_model(bundled_model()) == bundled_model()
    assert local_model(str(bundled_model())) == bundled_model()


@pytest.mark.parametrize("name", ["runwayml/stable-diffusion-v1-5", "a/b", "A.b-c_d/e.f-g_h"])
def test_hub_ids_are_owner_and_name(name: str) -> None:
    assert is_hub_id(name)


@pytest.mark.parametrize("name", ["", "name", "/a/b", "a/b/c", "./a b", "a/", "/b", "a\\b", "https://a/b", "a/b\n"])
def test_other_names_are_no_hub_ids(name: str) -> None:
    assert not is_hub_id(name)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SAFELIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "safelight"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "safelight"


def test_a_name_that_is_neither_is_refused_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stand_in_for_the_hub(monkeypatch, bundled_model())
    with pytest.raises(
        FileNotFoundError, match=r"^no/such/folder does not exist, and is no hub id either \(owner/name\)$"
    ):
        local_model("no/such/folder")
    assert not asked.calls


def test_a_folder_that_is_named_like_a_hub_id_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stand_in_for_the_hub(monkeypatch, ValueError("nobody asked"))
    shutil.copytree(bundled_model(), tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    assert local_model("owner/name") == Path("owner/name")
    assert not asked.calls


# the hub


def test_hub_options_are_handed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = stand_in_for_the_hub(monkeypatch, bundled_model())
    options = {"revision": "v2", "token": "t", "cache_dir": tmp_path, "local_files_only": True}
    assert local_model("owner/name", variant="fp16", **options) == bundled_model()
    ((repo_id, selection, handed_on),) = asked.calls
    assert repo_id == "owner/name"
    assert selection == Selection(variant="fp16")
    assert handed_on.keys() == {*options, "check"}
    assert options.items() <= handed_on.items()


def test_the_first_file_that_is_there_is_given(tmp_path: Path) -> None:
    index = bundled_model() / "model_index.json"
    assert local_file(bundled_model(), ["none.json", "model_index.json", "unet/config.json"]) == index
    with pytest.raises(FileNotFoundError, match=r"emoji has no none\.json or nothing\.json$"):
        local_file(bundled_model(), ["none.json", "nothing.json"])
    with pytest.raises(FileNotFoundError, match=r"none has no model_index\.json$"):
        local_file(tmp_path / "none", ["model_index.json"])


# checkpoints


class Exports:
    """Stands in for the process that exports: records its command, and does what it is told."""

    def __init__(self, *, writes: bool = True, status: int = 0, stderr: str = "") -> None:
        self.writes, self.status, self.stderr = writes, status, stderr
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.writes:
            shutil.copytree(bundled_model(), command[command.index("export") + 2])
        return subprocess.CompletedProcess(command, self.status, "", self.stderr)


def stand_in_for_export(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Exports:
    exports = Exports(**options)
    monkeypatch.setattr(subprocess, "run", exports)
    return exports


def test_the_second_time_the_export_is_taken_from_the_cache(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, cache: Path
) -> None:
    exports = stand_in_for_export(monkeypatch)
    first = local_model(checkpoint)
    assert first.parent == cache / "exports"
    assert exports.commands == [
        [sys.executable, "-m", "safelight.runtime", "export", str(checkpoint), str(first), "--quiet"]
    ]
    assert local_model(checkpoint) == first
    assert local_model(Path(shutil.copytree(checkpoint, checkpoint.with_name("moved")))) == first
    assert len(exports.commands) == 1


def test_a_checkpoint_from_the_hub_is_exported_too(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    stand_in_for_the_hub(monkeypatch, checkpoint)
    exports = stand_in_for_export(monkeypatch)
    assert local_model("owner/name") == local_model(checkpoint)
    assert len(exports.commands) == 1


def test_other_content_or_another_variant_is_another_export(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    exports = stand_in_for_export(monkeypatch)
    folders = [exported(checkpoint), exported(checkpoint, variant="fp16")]
    assert exports.commands[1][-2:] == ["--variant", "fp16"]
    weights = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # the same size
    weights.write_bytes(content)
    folders.append(exported(checkpoint))
    config = checkpoint / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "beta_end": 0.013}))
    folders.append(exported(checkpoint))
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    folders.append(exported(checkpoint))
    (checkpoint / "README.md").write_text("what a key does not depend on")
    assert exported(checkpoint) == folders[-1]
    monkeypatch.setattr(source, "FORMAT_VERSION", source.FORMAT_VERSION + 1)
    folders.append(exported(checkpoint))
    assert len(set(folders)) == len(folders) == len(exports.commands)


def test_a_commit_on_the_hub_is_exported_once_whatever_else_of_it_is_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path
) -> None:
    exports = stand_in_for_export(monkeypatch)
    snapshots = tmp_path / "models--owner--name" / "snapshots"
    snapshots.mkdir(parents=True)
    first = Path(shutil.copytree(checkpoint, snapshots / "0123"))
    folder = exported(first)
    (first / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another selection")
    assert exported(first) == folder
    assert exported(first, variant="fp16") != folder
    assert exported(Path(shutil.copytree(checkpoint, snapshots / "4567"))) != folder
    assert len(exports.commands) == 3


def test_an_export_that_fails_gives_its_last_sentence(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    stand_in_for_export(monkeypatch, writes=False, status=1, stderr="a warning\nsafelight: the disk is full\n\n")
    with pytest.raises(RuntimeError, match=r"^the export of .*checkpoint failed: the disk is full$"):
        local_model(checkpoint)
    stand_in_for_export(monkeypatch, writes=False, status=-9)
    with pytest.raises(RuntimeError, match=r"^the export of .*checkpoint failed: no message$"):
        local_model(checkpoint)


def test_an_export_that_another_process_finished_first_is_taken(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    stand_in_for_export(monkeypatch, status=1, stderr="safelight: the destination has other content")
    assert (local_model(checkpoint) / "model_index.json").is_file()


@pytest.mark.parametrize("absent", ["torch", "onnxscript"])
def test_without_the_export_extra_the_exact_command_is_named(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, absent: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == absent else find(name, *rest))
    exports = stand_in_for_export(monkeypatch)
    with pytest.raises(ModuleNotFoundError) as caught:
        local_model(checkpoint)
    assert "(pip install 'safelight[export]')" in str(caught.value)
    assert f": safelight export {checkpoint} FOLDER; then open FOLDER" in str(caught.value)
    assert not exports.commands


def test_a_checkpoint_that_cannot_be_exported_fails_in_one_sentence(checkpoint: Path, cache: Path) -> None:
    """In the real process, which fails before it traces anything."""
    shutil.rmtree(checkpoint / "vae")
    with pytest.raises(
        RuntimeError, match=r"^the export of .* failed: .*checkpoint lacks the component vae, which"
    ) as caught:
        local_model(checkpoint)
    assert "safelight:" not in str(caught.value)
    assert not list(cache.rglob("*.json"))


def test_a_single_file_is_exported_once_by_its_content(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    exports = stand_in_for_export(monkeypatch)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    with DiffusionPipeline.from_single_file(file) as pipeline:
        assert pipeline.folder.path == local_model(file)
    assert local_model(file).parent == cache / "exports"
    assert local_model(Path(shutil.copy(file, tmp_path / "moved.safetensors"))) == local_model(file)
    assert exports.commands[0][3:5] == ["export", str(file)]
    assert len(exports.commands) == 1
    file.write_bytes(b"two")
    local_model(file)
    assert len(exports.commands) == 2
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors is no file on this machine"):
        DiffusionPipeline.from_single_file(tmp_path / "none.safetensors")


def test_a_checkpoint_makes_the_exports_picture_in_a_process_without_torch(
    linear_checkpoint: Path, linear_export: Path, cache: Path
) -> None:
    program = f"""
import json, sys
import numpy as np
from safelight.runtime import DiffusionPipeline
pictures = []
for path in ({str(linear_checkpoint)!r}, {str(linear_checkpoint)!r}, {str(linear_export)!r}):
    with DiffusionPipeline.from_pretrained(path) as pipeline:
        pipeline.set_progress_bar_config(disable=True)
        pictures.append(pipeline("cat face", num_inference_steps=2, seed=0, output_type="np").images)
        print(pipeline.folder.path)
assert np.array_equal(pictures[0], pictures[1])
print(float(np.abs(pictures[0] - pictures[2]).max()), float(pictures[0].std()))
print(json.dumps(sorted(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, second, direct, numbers, modules = result.stdout.splitlines()
    assert first == second == str(next((cache / "exports").iterdir()))
    assert direct == str(linear_export)
    difference, spread = map(float, numbers.split())
    assert difference < 1e-5 < spread
    assert "onnxruntime" in json.loads(modules)
    assert not {"torch", "onnx", "onnxscript", "safelight.export", "safelight.reference"} & set(json.loads(modules))
