from pathlib import Path

import pytest

from benchmarks.figure1 import store
from benchmarks.figure1.store import Record, Store
from benchmarks.harness.results import BenchmarkError
from tests.benchmarks.figure1.blocks import block, record

SETTINGS = {"size": [32, 48]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDP_CACHE", str(tmp_path))


def test_records_are_there_again() -> None:
    kept = Store.open(SETTINGS)
    kept.add("a", 0, record(2.0))
    kept.add("a", 1, record(3.0))
    kept.add("b", 0, Record(None, "no memory", [None, None]))
    found = Store.open(SETTINGS)
    assert found.records == kept.records
    assert found.blocks("a") == [block(2.0), block(3.0)]
    assert found.done("a", 1) and not found.done("a", 2)
    assert found.done("b", 7) and found.error("b") == "no memory"  # not tried again
    assert Store.open(SETTINGS, anew=True).records == {}


def test_another_machine_size_or_source_has_records_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Store.open(SETTINGS).add("a", 0, record(2.0))
    assert Store.open({"size": [32, 64]}).records == {}
    monkeypatch.setattr(store, "describe", lambda: {"summary": "another machine"})
    assert Store.open(SETTINGS).records == {}
    monkeypatch.undo()
    monkeypatch.setenv("LDP_CACHE", str(tmp_path))
    assert Store.open(SETTINGS).records != {}
    changed = tmp_path / "worker.py"
    changed.write_text("pass")
    monkeypatch.setattr(store, "_sources", lambda: iter([changed]))
    assert Store.open(SETTINGS).records == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": {"0": {}}}', '{"a": {"x": null}}'])
def test_a_damaged_file_counts_as_none(text: str) -> None:
    kept = Store.open(SETTINGS)
    kept.add("a", 0, record(2.0))
    kept.path.write_text(text)
    assert Store.open(SETTINGS).records == {}


def test_no_cache_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "cache_folder", lambda *parts: None)
    with pytest.raises(BenchmarkError, match="set LDP_CACHE"):
        Store.open(SETTINGS)
