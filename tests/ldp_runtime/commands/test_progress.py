"""The bar of commands."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from ldp_runtime.cli import main
from ldp_runtime.commands import progress
from ldp_runtime.commands.progress import ProgressBar
from tests.ldp_runtime.images.raw_files import small_dng


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *, quiet: bool = False) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar(quiet=quiet) as bar:
        for done in (0.0, 0.25, 0.1, 1.0):
            bar(done)
    return stream.getvalue()


@pytest.mark.parametrize("command", ["check", "split"])
def test_check_and_split_show_one(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    if command == "check":
        sample = Path(__file__).parents[3] / "samples/motorcycle"
        arguments = [str(sample / "left.png"), str(sample / "right.png")]
    else:
        pytest.importorskip("rawpy")
        (tmp_path / "a.dng").write_bytes(small_dng())
        arguments = [str(tmp_path / "a.dng"), "-o", str(tmp_path / "views")]
    assert main([command, *arguments]) == 0
    assert {"check": "checking", "split": "splitting"}[command] in terminal.getvalue()


def test_a_bar_on_a_terminal_alone_and_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 600.0)
    assert shown(monkeypatch, Terminal()) == ""
    monkeypatch.setattr(progress, "DELAY", 0.0)
    assert "restoring" in shown(monkeypatch, Terminal())
    assert shown(monkeypatch, Terminal(), quiet=True) == shown(monkeypatch, io.StringIO()) == ""
