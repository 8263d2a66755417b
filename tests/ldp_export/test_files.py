from __future__ import annotations

from pathlib import Path

import pytest

from ldp_export.files import WriteError, staged_folder, write_text


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
