"""The record beside an engine: what is written is read again, and nothing else is taken for one."""

import json
import os
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_records import build, identity

from safelight.runtime.engines import EngineRecord
from safelight.runtime.engines.record import read_record
from safelight.runtime.engines.store import EngineStore


@pytest.fixture
def record(tmp_path: Path) -> EngineRecord:
    return build(EngineStore(tmp_path / "store"))


@pytest.fixture
def path(record: EngineRecord, tmp_path: Path) -> Path:
    return tmp_path / "store" / f"{record.identity.name}.json"


def test_what_is_written_is_read_again(path: Path, record: EngineRecord) -> None:
    assert read_record(path) == record
    assert read_record(path).identity.key == record.identity.key


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        ("identity", [], "no identity.format_version"),
        ("identity.format_version", 2, "is of format 2, this safelight reads format 1: build again"),
        ("identity.format_version", True, "is of format True"),
        ("identity.format_version", 1.0, "is of format 1.0"),
        ("identity.format_version", None, "is of format None"),
        ("identity.network", "../unet", "network '../unet' is no name of one"),
        ("identity.network", "/unet", "network '/unet' is no name of one"),
        ("identity.network", "unet\n", r"network 'unet\\n' is no name of one"),
        ("identity.network", "", "network '' is no name of one"),
        ("identity.network", ["unet"], r"record.identity.network must be str, got \['unet'\]"),
        ("identity.flavour", "tensorrt-2", "flavour must be tensorrt or tensorrt-rtx, got 'tensorrt-2'"),
        ("identity.version", "", "must be one line each"),
        ("identity.version", "1\x1b[2J", "must be one line each"),
        ("identity.gpus", [], "gpus must be compute capabilities such as sm89"),
        ("identity.gpus", ["sm89", "89"], "gpus must be compute capabilities such as sm89"),
        ("identity.gpus", "sm89", "record.identity.gpus must be a list, got 'sm89'"),
        ("identity.gpu_name", 3, r"record.identity.gpu_name must be str \| None, got 3"),
        ("identity.gpu_name", "a\nb", "must be one line each"),
        ("identity.graph", "A" * 64, "graph and weights must be sha256"),
        ("identity.weights", "b" * 63, "graph and weights must be sha256"),
        ("identity.weights", "", "graph and weights must be sha256"),
        ("identity.dtype", "int8", "dtype must be one of fp32, fp16, bf16, got 'int8'"),
        ("identity.lowering", True, "record.identity.lowering must be int, got True"),
        ("identity.profiles", [], "an engine has at least one profile"),
        ("identity.profiles", {}, "record.identity.profiles must be a list"),
        ("identity.profiles.0.label", "512\r", "must be one line each"),
        ("identity.profiles.0.shapes", [], r"record.identity.profiles\[0\].shapes must be an object"),
        ("identity.profiles.0.shapes.sample.smallest", [1, 4, 64], "has no range of shapes for 'sample'"),
        ("identity.profiles.0.shapes.sample.smallest", [0, 4, 64, 64], "has no range of shapes for 'sample'"),
        ("identity.profiles.0.shapes.sample.usual", [9, 4, 64, 64], "has no range of shapes for 'sample'"),
        ("identity.profiles.0.shapes.sample.usual", [1, 4, 64, "x"], r"smallest|usual\[3\] must be int, got 'x'"),
        ("identity.options", {"a": None}, r"record.identity.options\['a'\] must be int \| str \| bool, got None"),
        ("identity.options", {"a": 0.5}, r"record.identity.options\['a'\] must be int \| str \| bool, got 0.5"),
        ("plan.size", -1, "plan must have a size and a sha256"),
        ("plan.size", 1.5, "record.plan.size must be int, got 1.5"),
        ("plan.sha256", "0" * 65, "plan must have a size and a sha256"),
        ("plan.path", "../x", "record.plan has the unknown path"),
        ("inputs.0.shape", [0], "tensor 'sample' cannot be of shape"),
        ("inputs.0.shape", [1.5], r"record.inputs\[0\].shape\[0\] must be int \| str, got 1.5"),
        ("outputs.0", None, r"record.outputs\[0\] must be an object, got None"),
        ("refittable", "conv", "record.refittable must be a list"),
        ("refittable", [1], r"record.refittable\[0\] must be str, got 1"),
        ("built_at", "yesterday", "Invalid isoformat string"),
        ("built_at", "2026-11-26T10:00:00", "built_at must be UTC"),
        ("built_at", "2026-11-26T10:00:00+02:00", "built_at must be UTC"),
        ("seconds", -1, "seconds and peak_memory cannot be"),
        ("seconds", float("inf"), "record.seconds must be float, got inf"),
        ("peak_memory", False, "record.peak_memory must be int, got False"),
        ("format_version", 1, "record has the unknown format_version"),
    ],
)
def test_a_value_that_cannot_be_is_refused(path: Path, at: str, value: Any, message: str) -> None:
    rewrite(path, at, lambda _: value)
    with pytest.raises(ValueError, match=message) as error:
        read_record(path)
    assert str(path) in str(error.value)


def test_every_field_is_needed(path: Path) -> None:
    whole = json.loads(path.read_text())
    fields = [
        at
        for at, value in places(whole)
        if not at.startswith("identity.options.") and not at.split(".")[-1].isdecimal()
    ]
    fields.remove("identity.profiles.0.shapes.sample")
    assert len(fields) > 30
    for at in fields:
        path.write_text(json.dumps(whole))
        *outer, last = at.split(".")
        rewrite(path, ".".join(outer), lambda value, last=last: {k: v for k, v in value.items() if k != last})
        with pytest.raises(ValueError, match=f"lacks {last}|no identity.format_version"):
            read_record(path)


def test_any_other_type_is_refused(path: Path) -> None:
    whole = json.loads(path.read_text())
    taken = {}
    for at, value in places(whole):
        for other in (True, 1.5, "y", [], {}, None):
            if (type(other), other) == (type(value), value):
                continue
            path.write_text(json.dumps(whole))
            rewrite(path, at, lambda _, other=other: other)
            try:
                read_record(path)
            except ValueError:
                continue
            taken.setdefault(at, []).append(other)
            assert type(other) is type(value) or at.split(".")[-2:-1] == ["shape"], (at, other)
    assert set(taken) == {
        *(f"{of}.0.{field}" for of in ("inputs", "outputs") for field in ("name", "dtype", "shape")),
        *(f"{of}.0.shape.{axis}" for of in ("inputs", "outputs") for axis in range(4)),
        *("inputs", "outputs", "refittable", "refittable.0", "seconds"),
    }


def test_noise_is_refused(path: Path) -> None:
    """Bytes that are changed, cut or doubled: never another error, and never another engine."""
    content, chance = path.read_bytes(), random.Random(0)
    taken = 0
    for _ in range(500):
        noisy = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(len(noisy))
            kind = chance.randrange(4)
            if kind == 0:
                noisy[at] = chance.randrange(256)
            elif kind == 1:
                del noisy[at : at + chance.randrange(1, 40)]
            elif kind == 2:
                noisy[at:at] = noisy[at : at + chance.randrange(1, 40)]
            else:
                noisy[at:at] = bytes(chance.choice(b'{}[]",:0') for _ in range(3))
        path.write_bytes(noisy)
        try:
            found = read_record(path)
        except ValueError:
            continue
        taken += 1
        assert found.identity == identity()
    assert taken < 250


def test_the_record_of_another_engine_is_not_trusted(path: Path) -> None:
    rewrite(path, "identity.gpus", lambda _: ["sm90"])
    other = identity(gpus=("sm90",)).name
    with pytest.raises(ValueError, match=f"is not what its name says: it is the record of {other}"):
        read_record(path)
    path.rename(path.with_name(f"{other}.json"))
    assert read_record(path.with_name(f"{other}.json")).identity == identity(gpus=("sm90",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{}", "no identity.format_version"),
        (b"[]", "no identity.format_version"),
        (b'{"identity": {"format_version": 1}}', "record lacks plan"),
        (b'{"identity": {"format_version": 1, "format_version": 1}}', "occurs twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "not valid JSON"),
        (b" " * (8 * 2**20) + b"{}", "is larger than"),
    ],
    ids=["empty", "nothing", "list", "short", "twice", "deep", "binary", "large"],
)
def test_files_that_are_no_records_are_refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_record(path)


def test_links_and_pipes_are_refused(path: Path, tmp_path: Path) -> None:
    elsewhere = path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(elsewhere)
    with pytest.raises(ValueError, match="is a link"):
        read_record(path)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(ValueError, match="is no regular file"):
        read_record(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_record(path)


@pytest.mark.parametrize("change", ["pipe", "link"])
def test_a_file_that_is_swapped_while_it_is_opened_is_refused(
    path: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the file and its opening; a pipe would have to be waited for."""
    elsewhere, opened = tmp_path / "elsewhere.json", os.open

    def swapped(name: Path, flags: int) -> int:
        path.rename(elsewhere)
        os.mkfifo(path, 0o600) if change == "pipe" else path.symlink_to(elsewhere)
        return opened(name, flags)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises((ValueError, OSError), match=r"is no regular file|symbolic links"):
        read_record(path)


def test_a_record_that_others_can_write_is_refused(path: Path) -> None:
    path.chmod(0o620)
    with pytest.raises(PermissionError, match=f"can be written by others .its mode is 0620.*chmod go-w {path}"):
        read_record(path)


def test_a_record_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    store = EngineStore(tmp_path / "store")
    for changes in ({"gpus": ["sm89"]}, {"options": {"a": 0.5}}, {"dtype": "fp8"}, {"profiles": ()}):
        with pytest.raises((TypeError, ValueError), match=r"survive|options|dtype|profile"):
            build(store, **changes)
    assert list(store.folder.iterdir()) == []


def test_the_key_tells_any_two_engines_apart() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"flavour": "tensorrt"},
        {"version": "1.7.1.117"},
        {"gpus": ("sm89", "sm90")},
        {"gpu_name": "NVIDIA L4"},
        {"graph": "c" * 64},
        {"weights": None},
        {"dtype": "bf16"},
        {"lowering": 2},
        {"profiles": (replace(identity().profiles[0], label="x"),)},
        {"options": {}},
        {"format_version": 2},
        {"network": "unet_2"},
    ]
    assert len({identity(**change).key for change in changes}) == len(changes)


def rewrite(path: Path, at: str, change: Callable[[Any], Any]) -> None:
    """Changes one value of a JSON file; a key that is not there is added."""
    whole = json.loads(path.read_text())
    if not at:
        path.write_text(json.dumps(change(whole)))
        return
    *outer, last = (int(part) if part.isdecimal() else part for part in at.split("."))
    inner = whole
    for part in outer:
        inner = inner[part]
    inner[last] = change(inner[last] if isinstance(last, int) or last in inner else None)
    path.write_text(json.dumps(whole))


def places(value: Any, at: str = "") -> list[tuple[str, Any]]:
    """Every value within a value, with its place."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [(f"{at}.{name}".lstrip("."), deepcopy(part)) for name, part in inner]
    return found + [deeper for place, part in found for deeper in places(part, place)]
