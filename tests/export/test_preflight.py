"""What a machine must have, seen before any work; and what a part of a checkpoint is."""

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from safelight.export import available_memory as memory
from safelight.export import preflight
from safelight.export.available_memory import available_memory
from safelight.export.checkpoint import open_checkpoint
from safelight.export.preflight import TRACING_BYTES, check_disk, check_memory
from safelight.runtime import DiffusionPipeline, cli
from safelight.runtime.manifest import read_manifest

Fails = Callable[..., str]
Usage = namedtuple("Usage", "total used free")
SHAPES = {"a": (1000, 1000), "b": (500,)}


def test_room_on_the_disk_is_asked_for_the_bytes_of_the_storage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needed = int(1.02 * 1_000_500 * 2)
    asked: list[Path] = []

    def usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(10**9, 0, free)

    monkeypatch.setattr(preflight.shutil, "disk_usage", usage)
    free = needed
    check_disk([SHAPES], torch.float16, tmp_path / "new" / "out")
    assert asked == [tmp_path]
    free = needed - 1
    with pytest.raises(OSError, match=r"takes 0\.0 GB and .* has 0\.0 GB free"):
        check_disk([SHAPES], torch.float16, tmp_path / "out")
    free = 2 * needed
    with pytest.raises(OSError, match="free"):
        check_disk([SHAPES, SHAPES, SHAPES], torch.float16, tmp_path / "out")


def test_an_export_without_room_is_refused_before_it_starts(
    fails: Fails, linear_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 0))
    sentence = fails(linear_checkpoint, tmp_path / "out")
    assert sentence.startswith("the export takes 0.0 GB and ")
    assert sentence.endswith(" has 0.0 GB free")


@pytest.mark.parametrize(
    ("available", "validate", "sentence"),
    [
        (3 * 10**9, False, None),
        (10**9, False, "an export takes 1.5 GB of memory and 1.0 GB are free"),
        (9 * 10**9, True, None),
        (
            7 * 10**9,
            True,
            "comparing the unet with its reference takes 9.0 GB of memory and 7.0 GB are free; "
            "--no-validate takes 1.5 GB",
        ),
        (10**9, True, "comparing the unet with its reference takes 9.0 GB of memory and 1.0 GB are free"),
        (None, True, None),
    ],
)
def test_memory_is_asked_for_the_largest_component(
    monkeypatch: pytest.MonkeyPatch, available: int | None, validate: bool, sentence: str | None
) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: available)
    components = {"vae": {"a": (10**8,)}, "unet": {"a": (10**9,), "b": (10**9,)}}
    if sentence is None:
        check_memory(components, validate=validate)
        return
    with pytest.raises(MemoryError) as error:
        check_memory(components, validate=validate)
    assert str(error.value) == sentence


def test_too_little_memory_is_one_sentence(
    fails: Fails, linear_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: TRACING_BYTES - 1)
    assert "of memory and 1.5 GB are free" in fails(linear_checkpoint, tmp_path / "out", "--no-validate")


def test_memory_is_the_systems_or_the_control_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    meminfo, limit, used = tmp_path / "meminfo", tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", limit)
    monkeypatch.setattr(memory, "_CGROUP_USED", used)
    assert available_memory() is None
    meminfo.write_text("MemTotal:       24000000 kB\nMemAvailable:   20000000 kB\n")
    assert available_memory() == 20_480_000_000
    limit.write_text("max\n")
    assert available_memory() == 20_480_000_000
    limit.write_text("8000000000\n")
    used.write_text("3000000000\n")
    assert available_memory() == 5_000_000_000


def test_a_part_of_a_checkpoint_is_chosen_by_component_or_network(odd_checkpoint: Path) -> None:
    def chosen(*names: str) -> tuple[dict[str, tuple[str, ...]], list[str]]:
        checkpoint = open_checkpoint(odd_checkpoint, components=names)
        assert [component.name for component in checkpoint.components] == list(checkpoint.networks)
        return dict(checkpoint.networks), sorted(checkpoint.networks_left_out)

    assert chosen("vae_decoder") == ({"vae": ("vae_decoder",)}, ["text_encoder", "unet", "vae_encoder"])
    assert chosen("vae") == ({"vae": ("vae_encoder", "vae_decoder")}, ["text_encoder", "unet"])
    assert chosen("unet", "text_encoder")[0] == {"text_encoder": ("text_encoder",), "unet": ("unet",)}
    assert open_checkpoint(odd_checkpoint).networks_left_out == ()


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            "unet,vea",
            "there is no component vea; there are text_encoder, unet, vae, vae_decoder, vae_encoder",
        ),
        (" , ", "no component was named; there are text_encoder, unet, vae, vae_decoder, vae_encoder"),
    ],
)
def test_an_unknown_part_is_named(
    fails: Fails, odd_checkpoint: Path, tmp_path: Path, names: str, sentence: str
) -> None:
    assert fails(odd_checkpoint, tmp_path / "out", "--components", names) == sentence


def test_a_folder_of_some_components_says_so(
    odd_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest of the checkpoint need not even be there."""
    part = Path(shutil.copytree(odd_checkpoint, tmp_path / "part"))
    shutil.rmtree(part / "unet")
    out = tmp_path / "out"
    options = ["--components", "vae_decoder", "--no-validate", "--targets", "onnxruntime-cpu"]
    assert cli.main(["export", str(part), str(out), *options]) == 0
    assert "left out: text_encoder, unet, vae_encoder" in capsys.readouterr().out
    manifest = read_manifest(out)
    assert manifest is not None
    assert list(manifest.components) == ["vae_decoder"]
    assert sorted(manifest.left_out) == ["text_encoder", "unet", "vae_encoder"]
    assert not (out / "unet").exists()
    assert json.loads((out / "model_index.json").read_text())["unet"][1] == "UNet2DConditionModel"
    with pytest.raises(FileNotFoundError, match=r"holds vae_decoder alone: .* was exported without text_encoder"):
        DiffusionPipeline.from_pretrained(out)
