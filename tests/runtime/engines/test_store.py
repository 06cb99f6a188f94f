"""A store of engines: which one is found, and that nothing is read that was not built here."""

import builtins
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
from engine_records import BUILT, build, identity, model

from safelight.runtime.engines import EngineRecord
from safelight.runtime.engines import building as building_module
from safelight.runtime.engines.store import EngineStore, default_store
from safelight.runtime.manifest import FileRecord
from safelight.runtime.model_folder import ModelFolder

HERE: dict[str, Any] = {
    "flavour": "tensorrt-rtx",
    "version": "1.7.1.116",
    "gpu": "sm89",
    "gpu_name": "NVIDIA L4",
}


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "store")


def find(store: EngineStore, folder: ModelFolder, network: str = "unet", **changes: Any) -> EngineRecord:
    return store.find(folder, network, **{**HERE, **changes})


def refusal(store: EngineStore, folder: ModelFolder, **changes: Any) -> str:
    with pytest.raises(ValueError, match=r"no engine of unet in .* fits") as error:
        find(store, folder, **changes)
    return str(error.value)


# what is there


def test_an_engine_is_a_plan_and_its_record(store: EngineStore) -> None:
    assert store.records() == []
    record = build(store, b"0123")
    name = record.identity.name
    assert {path.name for path in store.folder.iterdir()} == {f"{name}.plan", f"{name}.json"}
    assert record.plan == FileRecord(size=4, sha256=hashlib.sha256(b"0123").hexdigest())
    assert record.inputs == tuple(BUILT["inputs"])
    assert (record.seconds, record.peak_memory, record.refittable) == (12.5, 10**9, ("conv_in.weight",))
    assert EngineStore(store.folder).records() == [record]
    assert store.read_plan(record) == b"0123"
    assert store.size(name) == sum(path.stat().st_size for path in store.folder.iterdir())


def test_only_this_user_can_enter_a_new_store(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0)
    try:
        record = build(store)
        store.keep_cache(record, b"kernels")
    finally:
        os.umask(before)
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in store.folder.iterdir()} == {0o600}


def test_the_default_store_is_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path))
    assert default_store().folder == tmp_path / "engines"


def test_records_are_listed_without_their_plans(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    build(store)
    build(store, gpus=("sm90",))
    for plan in store.folder.glob("*.plan"):
        plan.chmod(0)
    read: list[str] = []
    opened = os.open

    def watched(name: Any, *rest: Any) -> int:
        read.append(Path(name).suffix)
        return opened(name, *rest)

    monkeypatch.setattr(os, "open", watched)
    monkeypatch.setattr(builtins, "open", watched)
    assert len(store.records()) == 2
    assert read == [".json", ".json"]


def test_the_newest_comes_first(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    built = [built_on(store, day, monkeypatch, gpus=("sm89", f"sm{day}")) for day in (12, 30, 21)]
    assert store.records() == [built[1], built[2], built[0]]


def test_broken_engines_are_left_out_with_a_warning(store: EngineStore, caplog: pytest.LogCaptureFixture) -> None:
    whole = build(store)
    short, missing, foreign, unsafe = (build(store, gpus=(gpu,)) for gpu in ("sm75", "sm80", "sm86", "sm90"))
    (store.folder / f"{short.identity.name}.plan").write_bytes(b"a pla")
    (store.folder / f"{missing.identity.name}.plan").unlink()
    (store.folder / f"{foreign.identity.name}.json").write_text("{}")
    (store.folder / f"{unsafe.identity.name}.json").chmod(0o666)
    assert store.records() == [whole]
    said = {record.getMessage().split()[0]: record.getMessage() for record in caplog.records}
    assert len(said) == 4
    assert "has 5 bytes, 6 were written" in said[short.identity.name]
    assert "No such file" in said[missing.identity.name]
    assert "is no record of an engine" in said[foreign.identity.name]
    assert "chmod go-w" in said[unsafe.identity.name]


def test_other_files_in_the_folder_are_not_looked_at(store: EngineStore, caplog: pytest.LogCaptureFixture) -> None:
    record = build(store)
    for name in (
        "model.json",
        "unet-0123.json",
        "UNET-0123456789abcdef.json",
        "unet-0123456789abcdef.txt",
        ".x.partial",
    ):
        (store.folder / name).write_text("{")
    assert store.records() == [record]
    assert store.names() == [record.identity.name]
    assert not caplog.records


def test_no_name_leads_out_of_the_store(store: EngineStore) -> None:
    for network in ("../unet", "/tmp/unet", "unet/x", "", ".", "UNet", "unet\0"):
        strange = identity(network=network)
        for attempt in (
            lambda strange=strange: build(store, network=strange.network),
            lambda strange=strange: store.remove(EngineRecord(**{**vars(build(store)), "identity": strange})),
            lambda strange=strange: store.read_plan(EngineRecord(**{**vars(build(store)), "identity": strange})),
        ):
            with pytest.raises(ValueError, match="is no name of an engine"):
                attempt()
            for record in store.records():
                store.remove(record)
    assert [path.name for path in store.folder.parent.iterdir()] == ["store"]
    assert list(store.folder.iterdir()) == []


# which one is found


def test_the_newest_that_fits_is_found(store: EngineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = built_on(store, 12, monkeypatch)
    newer = built_on(store, 14, monkeypatch, dtype="bf16")
    built_on(store, 15, monkeypatch, network="vae_decoder")
    built_on(store, 16, monkeypatch, version="1.8")
    built_on(store, 17, monkeypatch, gpus=("sm90",))
    assert find(store, model(tmp_path)) == newer
    store.remove(newer)
    assert find(store, model(tmp_path)) == older


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "1.6"}, "built for TensorRT-RTX 1.6, here is TensorRT-RTX 1.7.1.116"),
        ({"flavour": "tensorrt"}, "built for TensorRT 1.7.1.116, here is TensorRT-RTX 1.7.1.116"),
        ({"gpus": ("sm86", "sm90")}, "built for sm86, sm90, here is sm89 (NVIDIA L4)"),
        ({"gpu_name": "NVIDIA L40S"}, "built for sm89 (NVIDIA L40S), here is sm89 (NVIDIA L4)"),
        (
            {"gpus": ("sm90",), "version": "1.6"},
            "built for sm90 with TensorRT-RTX 1.6, here is sm89 (NVIDIA L4) with TensorRT-RTX 1.7.1.116",
        ),
        ({"graph": "c" * 64}, "built from another graph"),
        ({"graph": "c" * 64, "weights": None}, "built from another graph"),
        ({"weights": "c" * 64}, "built from other weights"),
        (
            {"weights": "c" * 64, "version": "1.6"},
            "built from other weights, and built for TensorRT-RTX 1.6, here is TensorRT-RTX 1.7.1.116",
        ),
    ],
)
def test_an_engine_that_does_not_fit_is_never_given(
    store: EngineStore, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    record = build(store, **changes)
    told = refusal(store, model(tmp_path))
    assert f"{record.identity.name} was {message}; build one: safelight build {tmp_path} " in told
    fitting = build(store)
    assert find(store, model(tmp_path)) == fitting


@pytest.mark.parametrize(
    "changes",
    [{"weights": None}, {"gpus": ("sm75", "sm89")}, {"gpu_name": "NVIDIA L4"}, {"dtype": "bf16"}, {"lowering": 7}],
)
def test_an_engine_that_fits_is_given(store: EngineStore, tmp_path: Path, changes: dict[str, Any]) -> None:
    record = build(store, **changes)
    assert find(store, model(tmp_path)) == record


def test_a_stripped_engine_is_for_any_weights_of_its_graph(store: EngineStore, tmp_path: Path) -> None:
    record = build(store, weights=None)
    assert find(store, model(tmp_path, weights="d" * 64)) == record
    assert "another graph" in refusal(store, model(tmp_path, graph="d" * 64))


def test_the_command_that_builds_one_is_told(
    store: EngineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFELIGHT_CACHE", str(tmp_path / "cache"))
    folder = model(Path("my model"))
    with pytest.raises(FileNotFoundError) as error:
        find(store, folder)
    assert str(error.value) == (
        f"{store.folder} has no engine of unet; build one: "
        f"safelight build 'my model' --target tensorrt-rtx --gpu sm89 --output {store.folder}"
    )
    with pytest.raises(FileNotFoundError, match=r"build one: safelight build 'my model' --target tensorrt$"):
        find(default_store(), folder, flavour="tensorrt")


def test_of_many_engines_the_nearest_are_told(
    store: EngineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(11, 31):
        built_on(store, day, monkeypatch, version=f"1.{day}", graph="c" * 64)
    near = built_on(store, 10, monkeypatch, version="1.5")
    told = refusal(store, model(tmp_path))
    assert told.index(near.identity.name) < told.index("1.30") < told.index("1.29") < told.index("1.28")
    assert "1.27" not in told
    assert "17 more; build one" in told
    assert len(told) < 1500


def test_what_is_broken_is_told_where_nothing_fits(store: EngineStore, tmp_path: Path) -> None:
    record = build(store)
    plan = store.folder / f"{record.identity.name}.plan"
    plan.write_bytes(b"a pla")
    told = refusal(store, model(tmp_path))
    assert re.search(rf"{record.identity.name} .*has 5 bytes, 6 were written.*; build one", told)
    plan.unlink()
    assert "No such file" in refusal(store, model(tmp_path))
    record_file = plan.with_suffix(".json")
    record_file.chmod(0o602)
    with pytest.raises(PermissionError, match=f"chmod go-w {record_file}"):
        find(store, model(tmp_path))


def test_a_folder_without_manifest_or_network_has_no_engine(store: EngineStore, tmp_path: Path) -> None:
    build(store)
    with pytest.raises(ValueError, match="was not exported by safelight"):
        find(store, ModelFolder(tmp_path, "X", {}, None))
    with pytest.raises(FileNotFoundError, match="lacks the component unet"):
        find(store, model(tmp_path, network="vae_decoder"))
    folder = model(tmp_path)
    assert folder.manifest is not None
    del folder.manifest.files["unet/model.onnx"]
    with pytest.raises(ValueError, match=r"does not record 'unet/model.onnx'; export it again"):
        find(store, folder)


# what is read


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_flipped_bit_is_refused(store: EngineStore, at: int) -> None:
    record = build(store)
    plan = store.folder / f"{record.identity.name}.plan"
    content = bytearray(plan.read_bytes())
    content[at] ^= 1
    plan.write_bytes(content)
    for read in (store.read_plan, store.check_plan):
        with pytest.raises(ValueError, match=f"{plan.name} is not what was built"):
            read(record)


@pytest.mark.parametrize("size", [0, 5, 7, 2**40])
def test_another_size_is_refused_unread(store: EngineStore, size: int) -> None:
    record = build(store)
    os.truncate(store.folder / f"{record.identity.name}.plan", size)
    for read in (store.read_plan, store.check_plan):
        with pytest.raises(ValueError, match="is not what was built"):
            read(record)


def test_what_is_returned_is_what_was_checked(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file changes as soon as it was read: nobody looks at it again."""
    record = build(store)
    plan = store.folder / f"{record.identity.name}.plan"
    digest = hashlib.sha256

    def swapped(content: bytes) -> Any:
        if content == b"a plan":
            plan.write_bytes(b"a trap")
        return digest(content)

    monkeypatch.setattr(hashlib, "sha256", swapped)
    assert store.read_plan(record) == b"a plan"
    assert plan.read_bytes() == b"a trap"
    with pytest.raises(ValueError, match="is not what was built"):
        store.read_plan(record)


def test_a_file_that_grows_while_it_is_read_is_refused(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    record = build(store)
    plan = store.folder / f"{record.identity.name}.plan"
    status = os.fstat

    def grows(handle: int) -> os.stat_result:
        found = status(handle)
        with plan.open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(os, "fstat", grows)
    with pytest.raises(ValueError, match="is not what was built"):
        store.read_plan(record)


def test_links_pipes_and_folders_are_no_plans(store: EngineStore, tmp_path: Path) -> None:
    record = build(store)
    plan = store.folder / f"{record.identity.name}.plan"
    elsewhere = plan.rename(tmp_path / "elsewhere")
    plan.symlink_to(elsewhere)
    with pytest.raises(ValueError, match=f"{plan} is a link"):
        store.read_plan(record)
    plan.unlink()
    os.mkfifo(plan, 0o600)
    with pytest.raises(ValueError, match=f"{plan} is no regular file"):
        store.read_plan(record)
    plan.unlink()
    plan.mkdir(mode=0o700)
    with pytest.raises(ValueError, match=f"{plan} is no regular file"):
        store.read_plan(record)
    plan.rmdir()
    with pytest.raises(FileNotFoundError, match=re.escape(str(plan))):
        store.read_plan(record)


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_refused(store: EngineStore, tmp_path: Path, mode: int) -> None:
    record = build(store)
    store.folder.chmod(mode)
    attempts = [
        store.records,
        store.names,
        lambda: build(store, dtype="bf16"),
        lambda: store.read_plan(record),
        lambda: store.check_plan(record),
        lambda: store.read_cache(record),
        lambda: store.keep_cache(record, b""),
        lambda: find(store, model(tmp_path)),
    ]
    for attempt in attempts:
        with pytest.raises(PermissionError, match=rf"mode is {mode:04o}.*: chmod go-w {store.folder}$"):
            attempt()
    store.folder.chmod(mode & ~0o022)  # as `chmod go-w` does
    assert store.read_plan(record) == b"a plan"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_plan_that_others_can_write_is_refused(store: EngineStore, mode: int) -> None:
    record = build(store)
    plan = store.folder / f"{record.identity.name}.plan"
    plan.chmod(mode)
    for read in (store.read_plan, store.check_plan):
        with pytest.raises(PermissionError, match=f"chmod go-w {plan}"):
            read(record)
    plan.chmod(0o644)
    assert store.read_plan(record) == b"a plan"


@pytest.mark.parametrize("whose", ["root", "mine", "somebody's"])
def test_files_are_this_users_or_roots(
    store: EngineStore, tmp_path: Path, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = build(store)
    status = {"root": 0, "mine": 4242, "somebody's": 4243}[whose]
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    for stat in ("stat", "fstat"):
        monkeypatch.setattr(os, stat, owned_by(status, getattr(os, stat)))
    if whose != "somebody's":
        assert find(store, model(tmp_path)) == record
        assert store.read_plan(record) == b"a plan"
        return
    with pytest.raises(PermissionError, match=f"{store.folder} belongs to the user 4243.*sudo chown -R 4242"):
        store.read_plan(record)
    for module in ("store", "files"):
        monkeypatch.setattr(f"safelight.runtime.engines.{module}.check_private_folder", lambda _: None)
    for attempt in (lambda: store.read_plan(record), lambda: find(store, model(tmp_path))):
        with pytest.raises(PermissionError, match=r"unet-[0-9a-f]{16}.(plan|json) belongs to the user 4243"):
            attempt()


def owned_by(user: int, status: Any) -> Any:
    """`os.stat` or `os.fstat` that says that everything belongs to a user."""

    def changed(*arguments: Any, **options: Any) -> os.stat_result:
        fields = list(status(*arguments, **options))
        fields[4] = user
        return os.stat_result(fields)

    return changed


# what is removed, and what is kept beside an engine


def test_removing_an_engine_removes_all_of_it(store: EngineStore) -> None:
    record, other = build(store), build(store, gpus=("sm90",))
    store.keep_cache(record, b"kernels")
    store.keep_cache(other, b"others")
    size = store.size(record.identity.name)
    assert size == sum(path.stat().st_size for path in store.folder.glob(f"{record.identity.name}*"))
    assert store.remove(record) == size
    assert store.records() == [other]
    assert {path.stem for path in store.folder.iterdir()} == {other.identity.name}
    assert store.read_cache(other) == b"others"
    assert store.remove(record) == 0


def test_an_engine_that_is_being_built_is_not_removed(store: EngineStore) -> None:
    record = build(store)
    with store.building(record.identity, progress=print) as building:
        assert building.finished == record
        assert store.remove(record) == 0
        assert store.records() == [record]
    assert store.remove(record) > 0


def test_a_cache_is_kept_with_its_engine(store: EngineStore, caplog: pytest.LogCaptureFixture) -> None:
    record = build(store)
    assert store.read_cache(record) is None
    store.keep_cache(record, b"kernels")
    store.keep_cache(record, b"more kernels")
    assert store.read_cache(record) == b"more kernels"
    assert len(list(store.folder.iterdir())) == 3
    with store.building(record.identity, progress=print):
        store.keep_cache(record, b"lost")
    assert store.read_cache(record) == b"more kernels"
    (rebuilt,) = damaged_and_built_again(store, record)
    store.keep_cache(record, b"of the engine that was here")
    assert store.read_cache(rebuilt) is None
    record = rebuilt
    store.keep_cache(record, b"")
    (store.folder / f"{record.identity.name}.cache").chmod(0o622)
    with pytest.raises(PermissionError, match="chmod go-w"):
        store.read_cache(record)
    store.remove(record)
    store.keep_cache(record, b"of an engine that is gone")
    assert list(store.folder.iterdir()) == []


def damaged_and_built_again(store: EngineStore, record: EngineRecord) -> list[EngineRecord]:
    (store.folder / f"{record.identity.name}.plan").write_bytes(b"")
    build(store, b"another plan")
    return store.records()


def built_on(store: EngineStore, day: int, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> EngineRecord:
    """An engine that was built on a day of November."""

    class Clock(building_module.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Clock":
            return cls(2026, 11, day, 10, tzinfo=tz)

    with monkeypatch.context() as patch:
        patch.setattr(building_module, "datetime", Clock)
        return build(store, **changes)
