from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ldp_runtime import files
from ldp_runtime.files import (
    abandoned,
    cannot_write,
    check_can_write,
    claimed_folder,
    is_disk_error,
    replacing,
    write_whole,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def leave_behind(folder: Path, name: str) -> Path:
    """A temporary file as a killed process leaves it: there, and locked by nobody."""
    path = folder / name
    path.write_bytes(b"half")
    return path


def test_files_appear_whole_and_take_the_place_of_old_ones(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    write_whole({tmp_path / "a": b"new", tmp_path / "b": b""})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b""}


def test_what_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    leave_behind(tmp_path, ".a.0.tmp").write_bytes(b"much longer than what comes now")
    write_whole({tmp_path / "a": b"new"})
    assert names(tmp_path) == {"a"}
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_temporary_file_in_use_is_left_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as file:
        file.write(b"first")
        assert names(tmp_path) == {".a.0.tmp"}
        write_whole({tmp_path / "a": b"second"})
        assert names(tmp_path) == {".a.0.tmp", "a"}
        assert (tmp_path / "a").read_bytes() == b"second"
    assert names(tmp_path) == {"a"}
    assert (tmp_path / "a").read_bytes() == b"first"


def test_a_temporary_name_that_is_something_else_is_passed_by(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / ".a.0.tmp").symlink_to("target")
    (tmp_path / ".a.1.tmp").mkdir()
    write_whole({tmp_path / "a": b"new"})
    assert names(tmp_path) == {"target", ".a.0.tmp", ".a.1.tmp", "a"}
    assert (tmp_path / "target").read_bytes() == b"precious"


def test_a_file_that_was_renamed_before_it_was_locked_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer may put its file in place between our open and our lock: it is whole, and stays so."""
    temporary = leave_behind(tmp_path, ".a.0.tmp")
    lock = files._lock
    moved = []

    def late(handle: int) -> bool | None:
        if not moved:
            moved.append(os.rename(temporary, tmp_path / "b"))
        return lock(handle)

    monkeypatch.setattr(files, "_lock", late)
    write_whole({tmp_path / "a": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"half"}


def test_without_locks_what_is_left_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_lock", lambda handle: None)
    leave_behind(tmp_path, ".a.0.tmp")
    write_whole({tmp_path / "a": b"new"})
    with claimed_folder(tmp_path / "b") as folder:
        folder.rename(tmp_path / "b")
    assert names(tmp_path) == {".a.0.tmp", "a", "b"}


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    name = "ä" * 125 + ".png"  # 254 bytes
    write_whole({tmp_path / name: b"new"})
    assert names(tmp_path) == {name}
    with pytest.raises(OSError, match="File name too long"):
        write_whole({tmp_path / ("a" * 256): b"new"})


def test_an_error_keeps_the_old_file_and_names_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OSError, match="No space") as caught, replacing(tmp_path / "a") as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a")
    with pytest.raises(ValueError, match="a bug"), replacing(tmp_path / "a"):
        raise ValueError("a bug")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_a_check_leaves_nothing(tmp_path: Path) -> None:
    check_can_write(tmp_path / "a")
    assert names(tmp_path) == set()
    with pytest.raises(FileNotFoundError):
        check_can_write(tmp_path / "missing" / "a")


def test_a_folder_is_claimed_emptied_and_gone(tmp_path: Path) -> None:
    left = tmp_path / ".a.0.tmp"
    (left / "deep").mkdir(parents=True)
    (left / "file").touch()
    with claimed_folder(tmp_path / "a") as folder:
        assert folder == left
        assert names(folder) == set()
        with claimed_folder(tmp_path / "a") as other:
            assert other == tmp_path / ".a.1.tmp"
    assert names(tmp_path) == set()


def test_a_folder_is_abandoned_when_its_owner_is_gone(tmp_path: Path) -> None:
    with claimed_folder(tmp_path / "a") as folder:
        ready = folder.rename(tmp_path / "ready")
        with abandoned(ready) as left:
            assert not left
    with abandoned(ready) as left:
        assert left
    with abandoned(tmp_path / "missing") as left:
        assert not left


@pytest.mark.parametrize(
    ("error", "disk", "says"),
    [
        (OSError(errno.ENOSPC, "x"), True, "No space left on device; free some space or choose another folder"),
        (OSError(errno.EROFS, "x"), True, "Read-only file system; choose another folder"),
        (OSError("80000 requested and 1234 written"), True, "80000 requested and 1234 written; free some space"),
        (PermissionError(errno.EACCES, "x"), False, "Permission denied; choose another folder"),
        (ValueError("odd"), False, "odd; choose another folder"),
    ],
)
def test_messages(error: Exception, disk: bool, says: str) -> None:
    assert is_disk_error(error) is disk
    assert cannot_write("a.png", error).startswith(f"a.png cannot be written: {says}")


def test_ctrl_c_in_the_middle_of_cleaning_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pressed = []
    unlink = os.unlink

    def interrupted(path: Path, **given: object) -> None:
        if not pressed:
            pressed.append(path)
            raise KeyboardInterrupt
        unlink(path)

    monkeypatch.setattr(os, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_can_write(tmp_path / "a")
    assert pressed == [tmp_path / ".a.0.tmp"]
    assert names(tmp_path) == set()
