import stat
import sys
from pathlib import Path

import pytest

from ldp_runtime.cache import cache_folder, sealed


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


def test_every_folder_below_the_root_is_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDP_CACHE", str(tmp_path / "chosen"))
    folder = cache_folder("openvino", "abc")
    assert folder is not None
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    folder.parent.chmod(0o777)
    assert cache_folder("openvino", "abc") == folder
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o755


def test_a_folder_that_others_could_replace_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDP_CACHE", str(tmp_path))
    tmp_path.chmod(0o777)
    assert cache_folder("a") is None
    tmp_path.chmod(0o1777)
    assert cache_folder("a") == tmp_path / "a"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    assert cache_folder("link") is None
    monkeypatch.setattr("os.getuid", lambda: 12345)
    if (tmp_path / "a").stat().st_uid != 0:  # root's folders are safe to everybody
        assert cache_folder("a") is None


def test_a_damaged_file_is_gone_before_it_is_used(tmp_path: Path) -> None:
    blob = tmp_path / "1.blob"
    with sealed(tmp_path):
        blob.write_bytes(b"compiled")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1.blob", "1.blob.sha256"]
    with sealed(tmp_path):
        assert blob.read_bytes() == b"compiled"
    blob.write_bytes(b"compjled")
    with sealed(tmp_path):
        assert not blob.exists()
        blob.write_bytes(b"again")
    with sealed(tmp_path):
        assert blob.read_bytes() == b"again"
    (tmp_path / "1.blob.sha256").unlink()  # without a hash it may be damaged
    with sealed(tmp_path):
        assert list(tmp_path.iterdir()) == []
    with sealed(None):
        pass
