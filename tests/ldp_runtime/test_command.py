from pathlib import Path

import pytest

from ldp_runtime import Deblurrer
from ldp_runtime.images import pair_files
from tests.ldp_runtime.conftest import Run, files


def test_a_bug_asks_for_a_report(
    run: Run, pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pair_files, "match_views", bug)
    code, out, err = run("deblur", *pair, "-o", tmp_path / "out.png")
    assert (code, out) == (1, "")
    assert "ZeroDivisionError: a bug" in err
    assert err.splitlines()[-1].startswith("ldp: this is a bug; please report")
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (MemoryError, 2)])
def test_interrupted_or_out_of_memory(
    run: Run,
    pair: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    code: int,
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Deblurrer, "__call__", stop)
    before = files(tmp_path)
    result = run("deblur", *pair, "-o", tmp_path / "out.png")
    assert result[0] == code
    assert result[2].count("\n") == 1
    assert files(tmp_path) == before
