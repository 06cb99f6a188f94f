"""One process at a time in a folder."""

import threading
from pathlib import Path

import pytest

from safelight.runtime.folder_lock import is_locked, locked_folder


def refuse() -> None:
    raise BlockingIOError


def enter(folder: Path) -> None:
    with locked_folder(folder, waits=refuse):
        pass


def test_a_folder_is_locked_while_a_process_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    assert not is_locked(folder)
    with locked_folder(folder, waits=refuse, mode=0o700):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert is_locked(folder)
        with pytest.raises(BlockingIOError):
            enter(folder)
        assert is_locked(folder), "who was refused has not opened it"
    assert folder.is_dir()
    assert not is_locked(folder)
    enter(folder)


@pytest.mark.parametrize("change", ["removed", "renamed", "replaced"])
def test_who_waited_for_a_folder_that_is_gone_makes_another(tmp_path: Path, change: str) -> None:
    folder, waits, entered = tmp_path / "folder", threading.Event(), []

    def second() -> None:
        with locked_folder(folder, waits=waits.set):
            entered.append(sorted(path.name for path in folder.iterdir()))
            assert is_locked(folder)

    thread = threading.Thread(target=second)
    with locked_folder(folder, waits=refuse):
        (folder / "first").touch()
        thread.start()
        assert waits.wait(timeout=60)
        folder.rename(tmp_path / "elsewhere")
        if change == "removed":
            (tmp_path / "elsewhere" / "first").unlink()
            (tmp_path / "elsewhere").rmdir()
        elif change == "replaced":
            folder.mkdir()
    thread.join(timeout=60)
    assert entered == [[]]


def test_many_who_wait_are_each_told_once_and_are_in_it_alone(tmp_path: Path) -> None:
    """Each removes the folder when it is done, as builders do."""
    folder, told, inside, most = tmp_path / "folder", [], [], []

    def visit(index: int) -> None:
        with locked_folder(folder, waits=lambda: told.append(index)):
            inside.append(index)
            most.append(len(inside))
            threading.Event().wait(0.002)
            inside.remove(index)
            folder.rmdir()

    threads = [threading.Thread(target=visit, args=(index,)) for index in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert most == [1] * 30
    assert len(told) == len(set(told)) > 0
    assert not folder.exists()


def test_links_and_files_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(NotADirectoryError):
            enter(tmp_path / name)
        with pytest.raises(NotADirectoryError):
            is_locked(tmp_path / name)
