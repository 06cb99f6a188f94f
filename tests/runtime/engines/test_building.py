"""An engine while it is built: two builders at once, and one that is killed, stopped, or has no room left."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engine_records
import pytest
from engine_records import BUILT, build, identity

from safelight.runtime.engines.building import Building
from safelight.runtime.engines.store import EngineStore


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "store")


def files(store: EngineStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def silent(_: str) -> None:
    pass


def attempt(store: EngineStore, build: Callable[[Building], object]) -> None:
    """A build that is expected to fail."""
    with store.building(identity(), progress=silent) as building:
        build(building)


def test_an_engine_is_there_when_its_record_is(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is on the disk before it has its name, and has it, on the disk, before the record has its own."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        steps.append(f"fsync {kind(Path(f'/proc/self/fd/{handle}').readlink())}")
        fsync(handle)

    def kind(path: Path) -> str:
        return "store" if path == store.folder else path.name.split("-")[0] if path.suffix == "" else path.suffix

    def renamed(path: Path, target: Path) -> Path:
        steps.append(f"{kind(path)} becomes {kind(target)}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    build(store)
    assert steps == [
        "fsync plan",
        "fsync record",
        "plan becomes .plan",
        "fsync store",
        "record becomes .json",
        "fsync store",
    ]


@pytest.mark.parametrize(
    "error", [ValueError("wrong"), KeyboardInterrupt(), SystemExit(1), MemoryError(), OSError(28, "x")]
)
def test_a_block_that_ends_otherwise_leaves_nothing(store: EngineStore, error: BaseException) -> None:
    def fails(building: Building) -> None:
        building.plan.write_bytes(b"half")
        (building.plan.parent / "graph").mkdir()
        (building.plan.parent / "graph" / "weights").write_bytes(b"many")
        raise error

    with pytest.raises(type(error)):
        attempt(store, fails)
    assert files(store) == []
    with store.building(identity(), progress=silent) as building:  # nor one that commits nothing
        building.plan.write_bytes(b"half")
    assert files(store) == []


def test_a_builder_that_wrote_nothing_has_built_nothing(store: EngineStore) -> None:
    with pytest.raises(FileNotFoundError):
        attempt(store, lambda building: building.commit(**BUILT))
    with pytest.raises(ValueError, match="plan must have a size"):
        attempt(store, lambda building: (building.plan.touch(), building.commit(**BUILT)))
    assert files(store) == []


@pytest.mark.parametrize("at", range(6))
def test_a_full_disk_is_told_and_nothing_is_left(store: EngineStore, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """At any of the steps that wait for the disk or rename a file."""
    steps = 0

    def failing(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == at + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync))
        patch.setattr(Path, "replace", failing(Path.replace))
        with pytest.raises(OSError, match=f"No space left on device: '{store.folder}'"):
            build(store)
    assert steps == at + 1
    assert files(store) == []
    build(store)
    assert steps == at + 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full is a device of Linux")
def test_a_plan_that_there_is_no_room_for_is_told(store: EngineStore) -> None:
    def fills(building: Building) -> None:
        building.plan.symlink_to("/dev/full")
        building.plan.write_bytes(b"1" * 10**6)

    with pytest.raises(OSError, match="No space left"):
        attempt(store, fills)
    assert files(store) == []


@pytest.mark.parametrize("damage", ["flipped", "short", "missing", "broken record", "another's record", "a link"])
def test_a_damaged_engine_is_built_again(store: EngineStore, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    record = build(store)
    store.keep_cache(record, b"kernels of the old plan")
    plan, written = (store.folder / f"{record.identity.name}{suffix}" for suffix in (".plan", ".json"))
    match damage:
        case "flipped":
            plan.write_bytes(b"a plam")
        case "short":
            plan.write_bytes(b"a")
        case "missing":
            plan.unlink()
        case "broken record":
            written.write_text("{")
        case "another's record":
            build(store, gpus=("sm90",))
            (store.folder / f"{identity(gpus=('sm90',)).name}.json").rename(written)
        case "a link":
            plan.symlink_to(plan.rename(store.folder / "elsewhere"))
    with store.building(identity(), progress=silent) as building:
        assert building.finished is None
        assert not [name for name in files(store) if name.startswith(record.identity.name)]
        building.plan.write_bytes(b"again")
        again = building.commit(**BUILT)
        assert building.finished == again
    assert store.read_plan(again) == b"again"
    assert store.read_cache(again) is None
    assert f"{record.identity.name} is built again" in caplog.text


def test_an_engine_that_others_can_write_is_not_taken_for_finished(store: EngineStore) -> None:
    record = build(store)
    (store.folder / f"{record.identity.name}.plan").chmod(0o666)
    with pytest.raises(PermissionError, match="chmod go-w"), store.building(identity(), progress=silent):
        pytest.fail("it is not to be built")
    assert len(files(store)) == 2


def test_the_second_builder_waits_and_is_given_the_engine(store: EngineStore) -> None:
    waits, said, found = threading.Event(), [], []

    def hear(line: str) -> None:
        said.append(line)
        waits.set()

    def second() -> None:
        with store.building(identity(), progress=hear) as building:
            found.append(building.finished)

    with store.building(identity(), progress=silent) as building:
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(timeout=60)
        building.plan.write_bytes(b"the first one's")
        record = building.commit(**BUILT)
    thread.join(timeout=60)
    assert found == [record]
    assert said == [f"waiting for another build of {record.identity.name} in {store.folder}"]
    assert len(files(store)) == 2


def test_the_second_builder_builds_where_the_first_one_failed(store: EngineStore) -> None:
    waits = threading.Event()

    def second() -> None:
        with store.building(identity(), progress=lambda _: waits.set()) as building:
            assert building.finished is None
            building.plan.write_bytes(b"the second one's")
            building.commit(**BUILT)

    def first(building: Building) -> None:
        thread.start()
        assert waits.wait(timeout=60)
        building.plan.write_bytes(b"half")
        raise RuntimeError("failed")

    thread = threading.Thread(target=second)
    with pytest.raises(RuntimeError, match="failed"):
        attempt(store, first)
    thread.join(timeout=60)
    assert [store.read_plan(record) for record in store.records()] == [b"the second one's"]


def test_builders_of_two_engines_do_not_wait(store: EngineStore) -> None:
    with (
        store.building(identity(), progress=pytest.fail),
        store.building(identity(dtype="bf16"), progress=pytest.fail) as other,
    ):
        other.plan.write_bytes(b"another")
        record = other.commit(**BUILT)
        assert store.records() == [record]


PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from engine_records import BUILT, identity
from safelight.runtime.engines.store import EngineStore
with EngineStore(Path(sys.argv[2])).building(identity(), progress=lambda line: print(line, flush=True)) as building:
    if building.finished:
        print("finished", building.finished.plan.sha256, flush=True)
    else:
        building.plan.write_bytes(b"half")
        print("builds", flush=True)
        sys.stdin.readline()
        building.plan.write_bytes(sys.argv[3].encode())
        print("built", building.commit(**BUILT).plan.sha256, flush=True)
"""


@pytest.fixture
def builders(store: EngineStore) -> Iterator[Any]:
    """Starts processes that build an engine, each of which waits for a line before it is done."""
    started = []

    def start(content: str = "a plan") -> subprocess.Popen[str]:
        folder = str(Path(engine_records.__file__).parent)
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, folder, str(store.folder), content],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_two_processes_build_one_engine_once(store: EngineStore, builders: Any) -> None:
    first = builders("of the first")
    assert first.stdout.readline() == "builds\n"
    others = [builders("of another") for _ in range(2)]
    for process in others:
        assert process.stdout.readline().startswith("waiting for another build of unet-")
    first.stdin.write("\n")
    first.stdin.flush()
    built = first.stdout.readline().split()
    assert built[0] == "built"
    assert first.wait() == 0
    for process in others:
        assert process.stdout.readline().split() == ["finished", built[1]]
        assert process.wait() == 0
    (record,) = store.records()
    assert store.read_plan(record) == b"of the first"
    assert len(files(store)) == 2


def test_what_a_killed_builder_left_is_cleared_by_the_next(store: EngineStore, builders: Any) -> None:
    first, partial = builders(), store.partial(identity().name)
    assert first.stdout.readline() == "builds\n"
    second = builders()
    assert second.stdout.readline().startswith("waiting for")
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert second.stdout.readline() == "builds\n"
    assert store.records() == []
    assert len(list(partial.iterdir())) == 1, "the killed builder's plan is there"
    os.kill(second.pid, signal.SIGKILL)
    assert second.wait() == -signal.SIGKILL
    assert files(store) == [partial.name]
    assert store.records() == []
    build(store)
    assert len(files(store)) == 2


def test_a_builder_that_is_killed_between_plan_and_record_has_built_nothing(store: EngineStore) -> None:
    name = identity().name
    with pytest.MonkeyPatch.context() as patch:  # as a kill there leaves it: no cleaning up
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        patch.setattr(Building, "_publish", lambda self, _: self.plan.replace(store.path(name, ".plan")))
        build(store)
    assert files(store) == [f".{name}.partial", f"{name}.plan"]
    assert store.records() == []
    with store.building(identity(), progress=silent) as building:
        assert building.finished is None
        assert files(store) == [f".{name}.partial"]
        assert list(building.plan.parent.iterdir()) == []


def test_the_child_of_a_killed_builder_writes_elsewhere(store: EngineStore) -> None:
    """A compiler that outlives its builder may still write, to a path of the same folder."""
    with store.building(identity(), progress=silent) as first:
        pass
    with store.building(identity(), progress=silent) as second:
        assert first.plan.parent == second.plan.parent
        second.plan.write_bytes(b"the second one's")
        first.plan.write_bytes(b"the first one's, late")
        record = second.commit(**BUILT)
    assert store.read_plan(record) == b"the second one's"
    assert len(files(store)) == 2


def test_a_store_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    store = EngineStore(tmp_path / "store")
    with pytest.raises(FileExistsError):
        build(store)
    with pytest.raises(NotADirectoryError, match="is no folder"):
        store.records()
