from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from ldp_runtime.cache import cache_folder


def test_the_chosen_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDP_CACHE", str(tmp_path / "chosen"))
    folder = cache_folder("openvino", "abc")
    assert folder == tmp_path / "chosen" / "openvino" / "abc"
    assert folder.is_dir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert cache_folder("openvino", "abc") == folder


@pytest.mark.skipif(sys.platform != "linux", reason="XDG is Linux's rule")
def test_the_systems_place_is_used_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LDP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("a") == tmp_path / "xdg" / "ldp" / "a"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("a") == tmp_path / "home" / ".cache" / "ldp" / "a"


def test_none_where_no_folder_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LDP_CACHE", str(tmp_path / "file"))
    assert cache_folder("a") is None
