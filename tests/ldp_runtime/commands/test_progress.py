"""The bar of commands."""

from __future__ import annotations

import io
import sys

import pytest

from ldp_runtime.commands import progress
from ldp_runtime.commands.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *, quiet: bool = False) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar(quiet=quiet) as bar:
        for done in (0.0, 0.25, 0.1, 1.0):
            bar(done)
    return stream.getvalue()


def test_a_bar_on_a_terminal_alone_and_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, Terminal()) == ""  # the work was quick
    monkeypatch.setattr(progress, "DELAY", 0.0)
    assert "restoring" in shown(monkeypatch, Terminal())
    assert shown(monkeypatch, Terminal(), quiet=True) == shown(monkeypatch, io.StringIO()) == ""
