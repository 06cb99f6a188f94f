"""`safelight engines list|prune`: what there is, what fits here, and what goes."""

import json
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from engine_records import build, identity

from safelight.runtime.backends.tensorrt import cuda
from safelight.runtime.cli import main
from safelight.runtime.engines import EngineRecord
from safelight.runtime.engines import building as building_module
from safelight.runtime.engines.machine import Machine, this_machine
from safelight.runtime.engines.prune import Pruned, prune
from safelight.runtime.engines.store import EngineStore

MACHINE = Machine(versions={"tensorrt-rtx": "1.7.1.116"}, gpus=())


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "store")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command finds this machine, whatever it runs on."""
    monkeypatch.setattr("safelight.runtime.engines.cli.this_machine", lambda: MACHINE)


def files(store: EngineStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def reasons(pruned: list[Pruned]) -> dict[str, str]:
    return {each.name: each.reason for each in pruned}


def aged(
    monkeypatch: pytest.MonkeyPatch, store: EngineStore, age: timedelta, content: bytes = b"a plan", **changes: Any
) -> EngineRecord:
    """An engine that was built a while ago."""

    class Clock(building_module.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return super().now(tz) - age

    with monkeypatch.context() as patch:
        patch.setattr(building_module, "datetime", Clock)
        return build(store, content, **changes)


# prune


def test_what_can_be_loaded_stays(store: EngineStore) -> None:
    build(store)
    build(store, gpus=("sm90",))
    build(store, flavour="tensorrt", version="10.3")  # of which there is none to compare with
    store.keep_cache(build(store, weights=None), b"kernels")
    before = files(store)
    assert prune(store, MACHINE) == []
    assert files(store) == before
    assert prune(EngineStore(store.folder / "nowhere"), MACHINE) == []


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_cannot_be_loaded_goes(store: EngineStore, dry_run: bool) -> None:
    whole = build(store)
    stale, flipped, missing, broken, orphan, killed = (
        build(store, version="1.6"),
        *(build(store, gpus=(gpu,)) for gpu in ("sm75", "sm80", "sm86", "sm120", "sm121")),
    )
    store.keep_cache(stale, b"kernels")
    (store.folder / f"{flipped.identity.name}.plan").write_bytes(b"a plam")
    (store.folder / f"{missing.identity.name}.plan").unlink()
    (store.folder / f"{broken.identity.name}.json").write_text("{")
    (store.folder / f"{orphan.identity.name}.json").unlink()
    store.remove(killed)
    store.partial(killed.identity.name).mkdir()
    (store.partial(killed.identity.name) / "plan-1234").write_bytes(b"half" * 100)
    before = {path: path.stat().st_size for path in store.folder.rglob("*") if path.is_file()}
    pruned = prune(store, MACHINE, dry_run=dry_run)
    told = reasons(pruned)
    assert told.keys() == {each.identity.name for each in (stale, flipped, missing, broken, orphan, killed)}
    assert told[stale.identity.name] == "built for TensorRT-RTX 1.6, here is TensorRT-RTX 1.7.1.116"
    assert "is not what was built" in told[flipped.identity.name]
    assert told[missing.identity.name] == f"damaged: {missing.identity.name}.plan is missing"
    assert "not valid JSON" in told[broken.identity.name]
    assert told[orphan.identity.name] == told[killed.identity.name] == "left by a build that was killed"
    after = {path for path in store.folder.rglob("*") if path.is_file()}
    if dry_run:
        assert after == set(before)
    else:
        assert files(store) == {f"{whole.identity.name}{suffix}" for suffix in (".plan", ".json")}
    kept = sum(size for path, size in before.items() if whole.identity.name in path.name)
    assert sum(each.size for each in pruned) == sum(before.values()) - kept


def test_the_leftovers_beside_a_whole_engine_go_alone(store: EngineStore) -> None:
    record = build(store)
    store.partial(record.identity.name).mkdir()
    (store.partial(record.identity.name) / "cache").write_bytes(b"123")
    assert prune(store, MACHINE) == [Pruned(record.identity.name, 3, "left by a build that was killed")]
    assert store.records() == [record]
    assert len(files(store)) == 2


@pytest.mark.parametrize("options", [{}, {"everything": True}, {"older_than": timedelta(0)}, {"dry_run": True}])
def test_an_engine_that_is_being_built_is_left_alone(store: EngineStore, options: dict[str, Any]) -> None:
    with store.building(identity(), progress=print) as building:
        building.plan.write_bytes(b"half")
        assert prune(store, MACHINE, **options) == []
        assert building.plan.read_bytes() == b"half"
        building.plan.replace(store.folder / f"{identity().name}.plan")  # half of the commit
        assert prune(store, MACHINE, **options) == []
        assert files(store) == {f"{identity().name}.plan", f".{identity().name}.partial"}


def test_an_engine_that_was_built_while_another_was_looked_at_stays(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = build(store)
    plan = store.folder / f"{record.identity.name}.plan"
    plan.write_bytes(b"a plam")
    check, again = EngineStore.check_plan, []

    def mended(self: EngineStore, of: EngineRecord) -> None:
        try:
            check(self, of)
        except ValueError:
            if not again:
                again.append(of)
                build(store, b"mended")
            raise

    monkeypatch.setattr(EngineStore, "check_plan", mended)
    prune(store, MACHINE)
    (mended_record,) = store.records()
    assert store.read_plan(mended_record) == b"mended"


def test_older_engines_and_all_of_them(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    old = aged(monkeypatch, store, timedelta(days=40))
    young = aged(monkeypatch, store, timedelta(days=20), gpus=("sm90",))
    (pruned,) = prune(store, MACHINE, older_than=timedelta(days=30))
    assert pruned.name == old.identity.name
    assert re.fullmatch(r"built on \d{4}-\d\d-\d\d", pruned.reason)
    assert store.records() == [young]
    (store.folder / "notes.txt").write_text("mine")
    (store.folder / f"{young.identity.name}.plan").chmod(0o666)
    (pruned,) = prune(store, MACHINE, everything=True)
    assert pruned.name == young.identity.name
    assert files(store) == {"notes.txt"}


def test_what_others_can_write_is_left_alone_with_a_warning(
    store: EngineStore, caplog: pytest.LogCaptureFixture
) -> None:
    record = build(store)
    (store.folder / f"{record.identity.name}.plan").chmod(0o620)
    other = build(store, version="1.6")
    assert set(reasons(prune(store, MACHINE))) == {other.identity.name}
    assert store.records() == [record]
    assert "is left alone" in caplog.text
    assert "chmod go-w" in caplog.text
    store.folder.chmod(0o777)
    with pytest.raises(PermissionError, match="chmod go-w"):
        prune(store, MACHINE, everything=True)


def test_what_a_name_cannot_be_is_left_alone(store: EngineStore, caplog: pytest.LogCaptureFixture) -> None:
    """A link or a file in the place of a build's folder: nothing of ours."""
    record = build(store)
    outside = store.folder.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_text("1")
    store.partial(record.identity.name).symlink_to(outside)
    store.partial("unet-0123456789abcdef").write_text("x")
    prune(store, MACHINE, everything=True)
    assert (outside / "precious").read_text() == "1"
    assert caplog.text.count("is left alone") == 2


# list


def run(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    assert main(["engines", *map(str, arguments)]) == status
    captured = capsys.readouterr()
    assert not (captured.out if status else captured.err)
    return captured.err if status else captured.out


def test_the_list_has_a_line_for_each_engine(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = aged(monkeypatch, store, timedelta(days=3, hours=1), b"1" * 2_345_678, gpus=("sm89", "sm120"))
    other = aged(monkeypatch, store, timedelta(hours=1), flavour="tensorrt", version="10.3", gpu_name="NVIDIA L4")
    stripped = build(store, version="1.6", weights=None, dtype="bf16")
    stale_because = "no: built for TensorRT-RTX 1.6, here is TensorRT-RTX 1.7.1.116"
    heading, *lines = run(capsys, "list", "--store", store.folder).splitlines()
    columns = [re.split(" {2,}", line) for line in (heading, *lines)]
    fits = ["yes, but there is no GPU", "no: TensorRT is not installed", stale_because]
    assert dict(zip(columns[0], zip(*columns[1:], strict=True), strict=True)) == {
        "engine": (stripped.identity.name, other.identity.name, old.identity.name),
        "dtype": ("bf16", "fp16", "fp16"),
        "built for": ("tensorrt-rtx 1.6", "tensorrt 10.3", "tensorrt-rtx 1.7.1.116"),
        "on": ("sm89", "NVIDIA L4", "sm89, sm120"),
        "shapes": ("512x512, 1 to 4 images",) * 3,
        "size": ("0.0 MB", "0.0 MB", "2.3 MB"),
        "age": ("new", "1 hour", "3 days"),
        "weights": ("stripped", "in the plan", "in the plan"),
        "fits here": tuple(reversed(fits)),
    }
    assert len({line.index("512x512") for line in lines}) == 1


def test_the_list_as_json(store: EngineStore, capsys: pytest.CaptureFixture[str]) -> None:
    record, stale = build(store), build(store, version="1.6")
    found = {each["name"]: each for each in json.loads(run(capsys, "list", "--store", store.folder, "--json"))}
    assert found.keys() == {record.identity.name, stale.identity.name}
    whole = found[record.identity.name]
    assert whole["fits"] is True
    assert whole["why_not"] is None
    assert found[stale.identity.name]["fits"] is False
    assert "here is TensorRT-RTX 1.7.1.116" in found[stale.identity.name]["why_not"]
    assert whole["path"] == str(store.folder / f"{record.identity.name}.plan")
    assert whole["bytes"] == store.size(record.identity.name)
    written = json.loads((store.folder / f"{record.identity.name}.json").read_text())
    assert {name: whole[name] for name in written} == written


def test_the_commands_words(store: EngineStore, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    record, stale = build(store), build(store, b"1" * 10**6, version="1.6")
    told = run(capsys, "prune", "--store", store.folder, "--dry-run")
    assert told.splitlines() == [
        f"{stale.identity.name} would be removed, 1.0 MB: built for TensorRT-RTX 1.6, here is TensorRT-RTX 1.7.1.116",
        "1 engine would be removed, 1.0 MB",
    ]
    assert len(store.records()) == 2
    assert run(capsys, "prune", "--store", store.folder) == told.replace("would be removed", "removed")
    assert store.records() == [record]
    assert run(capsys, "prune", "--store", store.folder, "--older-than", 1) == "0 engines removed, 0.0 MB\n"
    assert run(capsys, "prune", "--store", store.folder, "--older-than", 0).count("built on") == 1
    assert store.records() == []
    assert "has no engines; safelight build makes them" in run(capsys, "list", "--store", store.folder)
    build(store)
    assert "all engines were to go" in run(capsys, "prune", "--store", store.folder, "--all")
    assert "is no folder of engines" in run(capsys, "list", "--store", tmp_path / "nowhere", status=1)
    store.folder.chmod(0o777)
    assert "chmod go-w" in run(capsys, "list", "--store", store.folder, status=1)


def test_the_default_store_need_not_be_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "cache"))
    assert run(capsys, "list") == f"{tmp_path / 'cache' / 'engines'} has no engines; safelight build makes them\n"
    assert run(capsys, "list", "--json") == "[]\n"
    assert run(capsys, "prune") == "0 engines removed, 0.0 MB\n"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("days", ["-1", "nan", "x", "", "1e300"])
def test_days_that_are_none_are_refused(days: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["engines", "prune", f"--older-than={days}"])
    assert "must be a number of days, such as 30" in capsys.readouterr().err


# the machine


def test_an_engine_fits_one_of_several_gpus() -> None:
    machine = Machine(versions={"tensorrt": "10.3"}, gpus=(("sm90", "NVIDIA H100"), ("sm89", "NVIDIA L4")))
    assert machine.refusal(identity(flavour="tensorrt", version="10.3", gpu_name="NVIDIA L4")) is None
    assert machine.refusal(identity(flavour="tensorrt", version="10.3", gpus=("sm75",))) == (
        "built for sm75, here is sm89 (NVIDIA L4)"
    )
    assert (
        machine.refusal(identity(flavour="tensorrt", version="10.4"))
        == "built for TensorRT 10.4, here is TensorRT 10.3"
    )
    assert machine.refusal(identity()) == "TensorRT-RTX is not installed"
    assert machine.outdated(identity(flavour="tensorrt", version="10.3", gpus=("sm75",))) is None
    assert machine.outdated(identity()) is None


def test_this_machines_gpus_are_those_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu:
        compute_capability, name = "sm90", "NVIDIA H100"

    class CudaError(RuntimeError):
        pass

    def no_driver() -> int:
        raise CudaError

    monkeypatch.setattr(cuda, "CudaError", CudaError)
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    monkeypatch.setattr(cuda, "device_properties", lambda _: Gpu)
    assert this_machine().gpus == (("sm90", "NVIDIA H100"),) * 2
    monkeypatch.setattr(cuda, "device_count", no_driver)
    assert this_machine().gpus == ()
    monkeypatch.delattr("safelight.runtime.backends.tensorrt.cuda")
    monkeypatch.setitem(sys.modules, cuda.__name__, None)
    assert this_machine().gpus == ()
    assert this_machine().versions["tensorrt-rtx"].startswith("1.")
