"""What an interrupted export leaves, what the next one keeps of it, and two exports into one place."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest
from torch import nn

from safelight.export.checkpoint import open_checkpoint
from safelight.export.component import ComponentTask, export_component
from safelight.export.folder import export_model
from safelight.export.networks import NetworkDescription
from safelight.export.options import ExportOptions
from safelight.export.staging import Staging, staging
from safelight.export.trace import trace
from safelight.export.worker import WorkerError
from safelight.runtime.manifest import FileRecord, file_record, read_manifest
from safelight.runtime.model_folder import open_model_folder

OPTIONS = ExportOptions(validate=False, targets=())


def silent(_: str) -> None:
    pass


GRAPHS: dict[str, ir.Model] = {}


@pytest.fixture(autouse=True)
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing is what takes time, and is not what is tested."""

    def traced(description: NetworkDescription, model: nn.Module) -> ir.Model:
        if description.name not in GRAPHS:
            GRAPHS[description.name] = trace(description, model)
        return GRAPHS[description.name].clone()

    monkeypatch.setattr("safelight.export.component.trace", traced)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The components that were written, in this process."""
    written: list[str] = []

    def export(task: ComponentTask, folder: Path, *, progress: Callable[[str], None]) -> object:
        written.append(task.component.name)
        return export_component(task, folder, progress=progress)

    monkeypatch.setattr("safelight.export.folder.export_component", export)
    return written


@pytest.fixture
def text_and_vae(linear_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of two components."""
    folder = Path(shutil.copytree(linear_checkpoint, tmp_path / "source"))
    index = json.loads((folder / "model_index.json").read_text())
    del index["unet"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def export(source: Path, destination: Path, *, options: ExportOptions = OPTIONS) -> list[str]:
    """Exports in this process; gives the lines of progress."""
    lines: list[str] = []
    export_model(open_checkpoint(source), destination, options, processes=False, progress=lines.append)
    return lines


def test_a_finished_component_is_kept_and_the_others_are_written(
    text_and_vae: Path, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    components = list(open_checkpoint(text_and_vae).networks)
    with monkeypatch.context() as patch:
        copy = shutil.copyfile
        full = OSError(28, "No space left on device", "config.json")

        def fails_on_the_last(source: Path, target: Path) -> object:
            if Path(target).parent.name == "vae_decoder":
                raise full
            return copy(source, target)

        patch.setattr("safelight.export.component.shutil.copyfile", fails_on_the_last)
        with pytest.raises(OSError, match="No space left") as error:
            export(text_and_vae, out)
        assert error.value is full
    assert not out.exists()
    kept, lost = (components[0], components[1]) if components[1] == "vae" else (components[1], components[0])
    assert [path.name for path in partial.iterdir() if path.name[0] != "."] == [kept], "half a component was left"

    del counted[:]
    lines = export(text_and_vae, out)
    assert counted == [lost]
    assert f"{kept}: was finished before" in lines
    assert not partial.exists()
    whole = tmp_path / "whole"
    export(text_and_vae, whole)
    first, second = read_manifest(out), read_manifest(whole)
    assert first == second
    assert first is not None
    assert all(file_record(out / name) == record for name, record in first.files.items())
    assert not (out / ".finished").exists()


@pytest.mark.parametrize("change", ["other options", "a changed byte", "a missing file", "a broken receipt"])
def test_what_is_not_of_the_same_export_is_written_again(
    text_and_vae: Path, tmp_path: Path, counted: list[str], change: str
) -> None:
    out = tmp_path / "out"
    task = next(name for name in open_checkpoint(text_and_vae).networks if name == "text_encoder")
    with pytest.raises(KeyboardInterrupt):
        interrupted(text_and_vae, out, after=task)
    partial = tmp_path / ".out.partial"
    options = OPTIONS
    if change == "other options":
        options = ExportOptions(validate=False, targets=(), weights_dtype="fp16")
    elif change == "a changed byte":
        with (partial / "text_encoder" / "model.onnx_data").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x7f")
    elif change == "a missing file":
        (partial / "text_encoder" / "model.onnx").unlink()
    else:
        (partial / ".finished" / "text_encoder.json").write_text('{"key":')
    del counted[:]
    export(text_and_vae, out, options=options)
    assert sorted(counted) == ["text_encoder", "vae"]


def interrupted(source: Path, destination: Path, *, after: str) -> None:
    """An export that a user stops when a component is finished."""

    def stop(line: str) -> None:
        if stopped and line.endswith(": tracing"):
            raise KeyboardInterrupt
        if line.startswith(f"{after}: writing"):
            stopped.append(line)

    stopped: list[str] = []
    export_model(_only_after(source, after), destination, OPTIONS, processes=False, progress=stop)


def _only_after(source: Path, first: str) -> object:
    """The checkpoint with a component in front."""
    checkpoint = open_checkpoint(source)
    return replace(checkpoint, components=tuple(sorted(checkpoint.components, key=lambda c: c.name != first)))


def ends_with(error: BaseException, destination: Path, key: object, within: Callable[[Staging], object]) -> None:
    """A staging whose block ends with an error."""
    with pytest.raises(type(error)), staging(destination, key, silent) as stage:
        _then_raise(within(stage), error)


def _then_raise(_: object, error: BaseException) -> None:
    raise error


def finished_unet(stage: Staging) -> dict[str, FileRecord]:
    (stage.folder / "unet").mkdir()
    (stage.folder / "unet" / "x").write_text("1")
    files = {"unet/x": file_record(stage.folder / "unet" / "x")}
    assert stage.finished("unet") is None
    stage.finish("unet", {"note": 3}, files)
    assert stage.finished("unet") == ({"note": 3}, files)
    return files


def test_an_error_of_the_export_leaves_nothing(tmp_path: Path) -> None:
    ends_with(ValueError("wrong"), tmp_path / "out", 1, finished_unet)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "full"), MemoryError(), RuntimeError("killed")])
def test_an_interruption_leaves_what_is_finished(tmp_path: Path, error: BaseException) -> None:
    ends_with(error, tmp_path / "out", 1, lambda stage: (stage.folder / "unet").mkdir())
    assert not list(tmp_path.iterdir()), "nothing was finished"
    ends_with(error, tmp_path / "out", 1, finished_unet)
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]


def test_a_receipt_is_for_one_key_and_these_files(tmp_path: Path) -> None:
    ends_with(KeyboardInterrupt(), tmp_path / "out", {"a": 1}, finished_unet)
    record = FileRecord(size=1, sha256=hashlib.sha256(b"1").hexdigest())
    with staging(tmp_path / "other", {"a": 1}, silent) as stage:
        assert stage.finished("unet") is None
    found: list[object] = []
    ends_with(KeyboardInterrupt(), tmp_path / "out", {"a": 1}, lambda stage: found.append(stage.finished("unet")))
    assert found == [({"note": 3}, {"unet/x": record})]
    with staging(tmp_path / "out", {"a": 2}, silent) as stage:
        assert stage.finished("unet") is None


def test_the_second_of_two_exports_waits_and_then_finds_the_place_taken(tmp_path: Path) -> None:
    waits, said = threading.Event(), []

    def hear(line: str) -> None:
        said.append(line)
        waits.set()

    failed: list[Exception] = []

    def second() -> None:
        try:
            with staging(tmp_path / "out", 1, hear) as stage:
                (stage.folder / "second").touch()
        except FileExistsError as error:
            failed.append(error)

    with staging(tmp_path / "out", 1, silent) as stage:
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(timeout=60)
        (stage.folder / "first").touch()
    thread.join(timeout=60)
    assert said == [f"waiting for another export into {tmp_path}"]
    assert "has other content" in str(failed[0])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["first"]


def test_the_second_goes_on_where_the_first_one_failed(tmp_path: Path) -> None:
    waits = threading.Event()

    def second() -> None:
        with staging(tmp_path / "out", 1, lambda _: waits.set()) as stage:
            (stage.folder / "second").touch()

    thread = threading.Thread(target=second)
    ends_with(ValueError("broken"), tmp_path / "out", 1, lambda _: (thread.start(), waits.wait(timeout=60)))
    thread.join(timeout=60)
    assert waits.is_set()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["second"]


PROGRAM = """
import sys
from pathlib import Path
from safelight.export.checkpoint import open_checkpoint
from safelight.export.folder import export_model
from safelight.export.networks import NetworkDescription
from safelight.export.options import ExportOptions
checkpoint = open_checkpoint(sys.argv[1])
options = ExportOptions(validate=False, targets=())
export_model(checkpoint, Path(sys.argv[2]), options, processes=False, progress=lambda line: print(line, flush=True))
"""


def test_a_killed_export_goes_on(linear_checkpoint: Path, tmp_path: Path, counted: list[str]) -> None:
    """Killed without warning in its second component; nothing of that passes for finished."""
    out = tmp_path / "out"
    first, second = (component.name for component in open_checkpoint(linear_checkpoint).components[:2])
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(linear_checkpoint), str(out)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if line.startswith(second) and line.endswith(": tracing\n"):
                os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    export(linear_checkpoint, out)
    assert counted == [c.name for c in open_checkpoint(linear_checkpoint).components if c.name != first]
    manifest = read_manifest(out)
    assert manifest is not None
    assert set(manifest.files) == {
        str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.name != "safelight.json"
    }


def test_what_a_run_left_that_was_killed_when_it_compared_is_no_part_of_the_next(
    text_and_vae: Path, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, partial = tmp_path / "out", tmp_path / ".out.partial"

    def killed(_: object, folder: Path, *rest: object, **options: object) -> None:
        (folder / "fidelity").mkdir()
        raise WorkerError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("safelight.export.folder.validate", killed)
        with pytest.raises(WorkerError):
            export(text_and_vae, out, options=replace(OPTIONS, validate=True))
    assert {"safelight.json", "fidelity", "tokenizer"} <= {path.name for path in partial.iterdir()}
    del counted[:]
    export(text_and_vae, out)
    assert counted == []
    manifest = read_manifest(out)
    assert manifest is not None
    assert "safelight.json" not in manifest.files
    open_model_folder(out).verify()
    assert not (out / "fidelity").exists()


def test_a_component_that_the_next_export_leaves_out_is_not_in_it(text_and_vae: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        interrupted(text_and_vae, out, after="text_encoder")
    assert (tmp_path / ".out.partial" / "text_encoder").is_dir()
    export_model(open_checkpoint(text_and_vae, components=["vae"]), out, OPTIONS, processes=False)
    assert not (out / "text_encoder").exists()
    manifest = read_manifest(out)
    assert manifest is not None
    assert not any(name.startswith("text_encoder/") for name in manifest.files)
