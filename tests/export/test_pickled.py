"""Pickled weights: refused, or with `--allow-pickle` read without running anything."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import single_files
import torch

from safelight.export.checkpoint import Checkpoint
from safelight.export.pickled import read_pickle
from safelight.export.single_file import open_file
from safelight.export.source import open_source
from safelight.runtime import cli


class Malicious:
    """Would make a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.victim}",)


@pytest.fixture(scope="module")
def original() -> dict[str, torch.Tensor]:
    family = single_files.FAMILIES["sd1"]
    return single_files.tensors(family, single_files.networks(family))


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Exports a source; gives the sentence that the command ends with. Nothing is left behind."""

    def export(source: Path, *options: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert cli.main(["export", str(source), str(tmp_path / "out"), *options]) == 1
        assert sorted(tmp_path.rglob("*")) == before
        (sentence,) = capsys.readouterr().err.splitlines()
        return sentence.removeprefix("safelight: ")

    return export


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_a_file_is_refused_unless_it_is_allowed(
    original: dict[str, torch.Tensor], tmp_path: Path, fails: Callable[..., str], suffix: str
) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save({"state_dict": original}, path)
    assert fails(path) == (
        f"{path} is a pickle, which can run code when it is opened, and is refused; "
        "--allow-pickle reads its tensors and nothing else"
    )


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: {"state_dict": x}, lambda x: {"state_dict": {"state_dict": x}}]
)
def test_an_allowed_file_has_the_tensors_of_the_safetensors_file(
    original: dict[str, torch.Tensor], tmp_path: Path, wrap: Any, legacy: bool
) -> None:
    contents = wrap(original)
    if "state_dict" in contents:
        contents |= {"global_step": 875000, "epoch": 3}
    path = tmp_path / "model.ckpt"
    torch.save(contents, path, _use_new_zipfile_serialization=not legacy)
    assert zipfile.is_zipfile(path) != legacy
    file = open_file(path, allow_pickle=True)
    assert file.global_step == (875000 if "state_dict" in contents else None)
    assert file.shapes == {name: tuple(tensor.shape) for name, tensor in original.items()}
    assert all(torch.equal(file.read(name), tensor) for name, tensor in original.items())


def test_an_allowed_file_becomes_the_checkpoint_of_the_safetensors_file(
    original: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save({"state_dict": original}, tmp_path / "model.ckpt")
    single_files.write(tmp_path / "model.safetensors", original)
    states = []
    for name in ("model.ckpt", "model.safetensors"):
        with open_source(tmp_path / name, workspace=tmp_path, allow_pickle=True) as checkpoint:
            assert list(checkpoint.source["files"]) == [checkpoint.source["id"]] == [name]
            states.append(weights(checkpoint))
        assert not checkpoint.path.exists()
    assert_equal_weights(*states)


def weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    found = {}
    for component in checkpoint.components:
        for file in component.path.glob("*.safetensors"):
            found |= {f"{component.name}.{key}": value for key, value in safetensors.torch.load_file(file).items()}
    return {key: value.clone() for key, value in found.items()}


def assert_equal_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert len(expected) > 100
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize("form", ["zip", "legacy", "protocol 2", "protocol 4"])
def test_a_malicious_pickle_runs_nothing(
    linear_checkpoint: Path, tmp_path: Path, fails: Callable[..., str], place: str, form: str
) -> None:
    victim = tmp_path / "victim"
    payload = {"state_dict": {"x": torch.zeros(3)}, "callbacks": Malicious(victim)}
    if place == "file":
        source = path = tmp_path / "model.ckpt"
    else:
        source = Path(shutil.copytree(linear_checkpoint, tmp_path / "checkpoint"))
        (source / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        path = source / "unet" / "diffusion_pytorch_model.bin"
    if form.startswith("protocol"):
        path.write_bytes(pickle.dumps(Malicious(victim), protocol=int(form[-1])))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=form == "zip")
    reason = "it is no file of tensors" if form == "protocol 4" else f"it asks for {os.system.__module__}.system"
    assert fails(source, "--allow-pickle") == f"{path} is refused, and nothing of it was run: {reason}"
    assert not victim.exists()
    pickle.loads(pickle.dumps(Malicious(victim)))  # that it would have run is not in doubt
    assert victim.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated or corrupt"),
        (b"PK\x03\x04 half a file", "is truncated or corrupt"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"\x89PNG whatever", "it is no file of tensors"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, fails: Callable[..., str], content: bytes, message: str) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    sentence = fails(path, "--allow-pickle")
    assert sentence.startswith(str(path))
    assert message in sentence


def test_what_is_no_dictionary_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds a list; expected tensors by their names"):
        read_pickle(tmp_path / "list.pt")


def pickled(checkpoint: Path, target: Path, *, variant: str | None = None, shards: bool = False) -> Path:
    """A copy of a checkpoint whose weights are pickled, as diffusers and transformers name them."""
    shutil.copytree(checkpoint, target)
    infix = f".{variant}" if variant else ""
    for file in list(target.glob("*/*.safetensors")):
        stem = "pytorch_model" if file.stem == "model" else "diffusion_pytorch_model"
        state = safetensors.torch.load_file(file)
        if shards and stem.startswith("diffusion"):
            names = {name: f"{stem}{infix}-0000{number % 2 + 1}-of-00002.bin" for number, name in enumerate(state)}
            for shard in set(names.values()):
                torch.save(
                    {name: value for name, value in state.items() if names[name] == shard}, file.with_name(shard)
                )
            index = file.with_name(f"{stem}.bin.index{infix}.json")
            index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
        else:
            torch.save(state, file.with_name(f"{stem}{infix}.bin"))
        file.unlink()
    return target


@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}, {"shards": True}, {"variant": "fp16", "shards": True}])
def test_an_allowed_folder_has_the_weights_of_the_safetensors_folder(
    linear_checkpoint: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = pickled(linear_checkpoint, tmp_path / "checkpoint", **options)
    with (
        open_source(linear_checkpoint, workspace=tmp_path) as safe,
        open_source(folder, workspace=tmp_path, allow_pickle=True, variant=options.get("variant")) as checkpoint,
    ):
        assert_equal_weights(weights(checkpoint), weights(safe))
        files = checkpoint.source["files"]
        assert all(name.endswith((".bin", "config.json")) for name in files)
        assert len(files) == (8 if options.get("shards") else 6)
        place = checkpoint.components[0].path.parent
    assert not place.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_safetensors_beside_pickles_are_taken(linear_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(linear_checkpoint, tmp_path / "checkpoint"))
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not even a pickle")
    with open_source(folder, workspace=tmp_path, allow_pickle=True) as checkpoint:
        assert all(component.path.parent == folder for component in checkpoint.components)


def test_a_folder_of_pickles_is_refused_unless_it_is_allowed(
    linear_checkpoint: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    folder = pickled(linear_checkpoint, tmp_path / "checkpoint")
    sentence = fails(folder)
    assert (
        "pytorch_model.bin is a pickle, which can run code when it is opened, and is refused; convert it: " in sentence
    )
    assert sentence.endswith("or export it with --allow-pickle, which reads tensors and nothing else")


def test_a_missing_shard_is_named(linear_checkpoint: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    folder = pickled(linear_checkpoint, tmp_path / "checkpoint", shards=True)
    (folder / "unet" / "diffusion_pytorch_model-00002-of-00002.bin").unlink()
    sentence = fails(folder, "--allow-pickle")
    assert "bin.index.json names diffusion_pytorch_model-00002-of-00002.bin, which is not there" in sentence


def test_the_runtime_never_takes_pickles(
    linear_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safelight.runtime import DiffusionPipeline

    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "cache"))
    folder = pickled(linear_checkpoint, tmp_path / "checkpoint")
    with pytest.raises(RuntimeError, match=r"is a pickle, which can run code when it is opened, and is refused"):
        DiffusionPipeline.from_pretrained(folder)
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": {}}, file)
    for load in (DiffusionPipeline.from_pretrained, DiffusionPipeline.from_single_file):
        with pytest.raises(
            ValueError, match=r"is never opened here; safelight export .*model\.ckpt FOLDER --allow-pickle"
        ):
            load(file)
