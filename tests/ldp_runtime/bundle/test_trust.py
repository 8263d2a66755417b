import json
import os
from pathlib import Path

import pytest

from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.trust import is_trusted, trust, trust_folder
from ldp_runtime.cli import main
from ldp_runtime.errors import BackendError
from tests.ldp_runtime.tiny_bundle import make_engine, make_tiny_bundle, rewrite

A, B = "a" * 64, "b" * 64


@pytest.fixture(autouse=True)
def own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LDP_CONFIG", str(tmp_path / "config"))
    return tmp_path / "config"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with two engines, one of them not here."""
    path = make_tiny_bundle(tmp_path)
    entries = [make_engine(path, content, name) for name, content in (("0", b"first"), ("1", b"second"))]
    (path / "engines/1.engine").unlink()
    rewrite(path, engines=tuple(entries))
    return path


def test_nothing_is_trusted_at_first() -> None:
    assert not is_trusted(A)
    trust([A], "a test")
    assert is_trusted(A)
    assert not is_trusted(B)
    trust([A, B], "again")
    assert is_trusted(B)


def test_the_record_is_the_users_alone(own_config: Path) -> None:
    trust([A], "a test")
    folder = trust_folder()
    assert folder.is_relative_to(own_config)
    assert folder.stat().st_mode & 0o077 == 0
    assert [file.name for file in folder.iterdir()] == [A]  # no temporary files
    assert json.loads((folder / A).read_text(encoding="utf-8"))["reason"] == "a test"
    folder.chmod(0o777)
    with pytest.raises(BackendError, match=r"a folder that only you can write to.*chmod 700"):
        is_trusted(A)


def test_a_hash_is_a_hash() -> None:
    for wrong in ("", "A" * 64, "../" + "a" * 61, "a" * 63):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            is_trusted(wrong)
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            trust([wrong], "a test")


def test_a_record_that_cannot_be_written(own_config: Path) -> None:
    own_config.write_text("a file where the folder should be")
    with pytest.raises(BackendError, match=r"cannot be written.*set LDP_CONFIG"):
        trust([A], "a test")


def test_the_usual_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LDP_CONFIG")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert trust_folder() == tmp_path / "ldp" / "trusted-engines"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert trust_folder() == tmp_path / ".config" / "ldp" / "trusted-engines"


def test_command_shows_asks_and_trusts(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = Bundle.load(bundle).manifest.engines
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert main(["trust", str(bundle)]) == 2
    shown = capsys.readouterr()
    assert entries[0].sha256 in shown.out
    assert f"missing  {entries[1]}\n         {entries[1].file}\n" in shown.out
    assert entries[1].sha256 not in shown.out  # its file is not here
    assert "no engine was trusted" in shown.err
    assert not is_trusted(entries[0].sha256)
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "y")
    assert main(["trust", str(bundle)]) == 0
    assert "Run 1 new engine as" in asked[0]
    assert is_trusted(entries[0].sha256)
    assert not is_trusted(entries[1].sha256)
    capsys.readouterr()
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail("asked for nothing new"))
    assert main(["trust", str(bundle)]) == 0
    assert "all of them were trusted" in capsys.readouterr().out


def test_command_does_not_wait_where_nobody_answers(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert main(["trust", str(bundle)]) == 2
    assert "give --yes" in capsys.readouterr().err
    assert main(["trust", str(bundle), "--yes", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert list(fields["trusted"].values()) == ["engines/0.engine"]
    assert is_trusted(*fields["trusted"])


def test_command_refuses_a_damaged_engine(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "engines/0.engine").write_bytes(b"fjrst")
    assert main(["trust", str(bundle), "--yes"]) == 2
    assert "expected an engine of 5 bytes" in capsys.readouterr().err
    os.unlink(bundle / "engines/0.engine")
    assert main(["trust", str(bundle), "--yes"]) == 2
    assert "expected the engine files" in capsys.readouterr().err


def test_command_wants_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trust", str(make_tiny_bundle(tmp_path)), "-y"]) == 2
    assert "ldp-export engine" in capsys.readouterr().err
