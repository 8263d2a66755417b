from __future__ import annotations

from pathlib import Path

import pytest

from ldp_export.files import WriteError, finish_staged, staged_folder, write_text


def test_a_failure_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
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
    assert (target / "file").read_text() == "1"
    with staged_folder(target, last="last") as staged:
        (staged / "file").write_text("3")
        (staged / "last").write_text("3")
    assert {p.name: p.read_text() for p in target.iterdir()} == {"README.md": "card", "file": "3", "last": "3"}
    assert list(tmp_path.iterdir()) == [target]


def test_a_staged_folder_under_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot be written"), staged_folder(tmp_path / "file" / "x", last="last"):
        pass


def test_a_text_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    with pytest.raises(WriteError, match=r"name cannot be written: .*; choose another"):
        write_text(tmp_path / "name", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["name"]
    write_text(tmp_path / "other", "text")
    assert (tmp_path / "other").read_text() == "text"


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
        (tmp_path / "missing").read_text()  # a bug of ours, not of the disk
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "last"]
    assert (tmp_path / "run" / "last").read_text() == "old"


def test_a_publication_that_was_cut_short_is_ended(tmp_path: Path) -> None:
    folder, ready = tmp_path / "run", tmp_path / ".run.new"
    folder.mkdir()
    ready.mkdir()
    (folder / "first").write_text("new")
    (folder / "notes").write_text("mine")
    (ready / "second").write_text("new")
    (ready / "last").write_text("new")
    finish_staged(folder, "last")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "first": "new",
        "second": "new",
        "last": "new",
        "notes": "mine",
    }
    ready.mkdir()  # killed after the last file, before the folder went
    finish_staged(folder, "last")
    assert (folder / "last").read_text() == "new"
    assert not ready.exists()
