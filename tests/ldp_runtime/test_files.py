import errno
import os
from pathlib import Path

import pytest

from ldp_runtime import files
from ldp_runtime.errors import WriteError
from ldp_runtime.files import (
    abandoned,
    cannot_write,
    check_writable,
    claimed_folder,
    finish_staged,
    is_disk_error,
    locked_folder,
    replacing,
    staged_folder,
    write_files,
    write_whole,
)
from tests.ldp_runtime.helpers import is_locked


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def leave_behind(folder: Path, name: str) -> Path:
    """A temporary file as a killed process leaves it: there, and not locked."""
    path = folder / name
    path.write_bytes(b"half")
    return path


def test_files_appear_whole_and_take_the_place_of_old_ones(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    write_whole({tmp_path / "a": b"new", tmp_path / "b": b""})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b""}


def test_a_killed_process_s_file_is_reused(tmp_path: Path) -> None:
    leave_behind(tmp_path, ".a.0.tmp").write_bytes(b"much longer than the new content")
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
    lock = files.lock_file
    moved = []

    def late(handle: int) -> bool | None:
        if not moved:
            moved.append(os.rename(temporary, tmp_path / "b"))
        return lock(handle)

    monkeypatch.setattr(files, "lock_file", late)
    write_whole({tmp_path / "a": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"half"}


def test_without_locks_what_is_left_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "lock_file", lambda handle: None)
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


def test_a_check_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "a.png")
    assert names(tmp_path) == set()
    with pytest.raises(WriteError, match="is a folder; give a file name"):
        check_writable(tmp_path)
    with pytest.raises(WriteError, match="missing does not exist; make it first"):
        check_writable(tmp_path / "missing" / "a.png")

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(WriteError, match="Permission denied; choose another folder"):
        check_writable(tmp_path / "a.png")


def test_a_write_that_fails_leaves_every_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first").write_bytes(b"old")

    def disk_full(handle: int) -> None:
        if os.fstat(handle).st_size > 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(WriteError, match="second cannot be written: No space left on device"):
        write_files({tmp_path / "first": b"new", tmp_path / "second": b"longer"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"first": b"old"}


def test_a_link_is_followed_and_its_target_replaced_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    replaced = []
    replace = os.replace

    def spy(source: Path, target: Path) -> None:
        replaced.append((source.parent, target))
        assert (tmp_path / "real").read_bytes() == b"old"
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    write_files({tmp_path / "link": b"new"})
    assert replaced == [(tmp_path, tmp_path / "real")]
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_written_files_have_ordinary_rights(tmp_path: Path) -> None:
    write_files({tmp_path / "a": b""})
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


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


def test_a_locked_folder_is_for_one_at_a_time(tmp_path: Path) -> None:
    with locked_folder(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


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
        check_writable(tmp_path / "a")
    assert pressed == [tmp_path / ".a.0.tmp"]
    assert names(tmp_path) == set()


def test_a_staged_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with pytest.raises(RuntimeError), staged_folder(target, last="last") as staged:
        (staged / "file").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with staged_folder(target, last="last") as staged:
        (staged / "file").write_text("1")
        (staged / "last").write_text("1")
    (target / "README.md").write_text("card")
    with pytest.raises(RuntimeError), staged_folder(target, last="last") as staged:
        (staged / "file").write_text("2")
        raise RuntimeError
    assert (target / "file").read_text(encoding="utf-8") == "1"
    with staged_folder(target, last="last") as staged:
        (staged / "file").write_text("3")
        (staged / "last").write_text("3")
    assert {p.name: p.read_text(encoding="utf-8") for p in target.iterdir()} == {
        "README.md": "card",
        "file": "3",
        "last": "3",
    }
    assert list(tmp_path.iterdir()) == [target]


def test_a_staged_folder_under_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot be written"), staged_folder(tmp_path / "file" / "x", last="last"):
        pass


def test_a_full_disk_while_files_are_staged_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last").write_text("old")
    for error in (OSError(28, "No space left on device"), OSError("800 requested and 12 written")):
        with (
            pytest.raises(WriteError, match=r"run cannot be written: .*; free some space or choose"),
            staged_folder(tmp_path / "run", last="last"),
        ):
            raise error
    with pytest.raises(FileNotFoundError), staged_folder(tmp_path / "run", last="last"):
        (tmp_path / "missing").read_text(encoding="utf-8")  # a bug of ours, not of the disk
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "last"]
    assert (tmp_path / "run" / "last").read_text(encoding="utf-8") == "old"


def test_a_staged_folder_is_finished_after_a_kill(tmp_path: Path) -> None:
    folder, ready = tmp_path / "run", tmp_path / ".run.new"
    folder.mkdir()
    ready.mkdir()
    (folder / "first").write_text("new")
    (folder / "notes").write_text("kept")
    (ready / "second").write_text("new")
    (ready / "last").write_text("new")
    finish_staged(folder, "last")
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == {
        "first": "new",
        "second": "new",
        "last": "new",
        "notes": "kept",
    }
    ready.mkdir()  # killed after the last file, before the folder went
    finish_staged(folder, "last")
    assert (folder / "last").read_text(encoding="utf-8") == "new"
    assert not ready.exists()
