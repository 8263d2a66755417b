from pathlib import Path

import pytest

from benchmarks.figure1.contenders import CONTENDERS
from benchmarks.figure1.plot import plot
from benchmarks.figure1.store import Record, Store
from benchmarks.figure1.summary import summarise_all
from benchmarks.figure1.tables import markdown
from tests.benchmarks.figure1.blocks import record


@pytest.fixture
def data(tmp_path: Path) -> dict:
    """EBDB the first, NAFNet thrice as slow with twice the memory, one failure, one without quotation, one score."""
    store = Store(tmp_path / "records.json")
    store.add("ebdb", 0, record(1.0))
    store.add("nafnet", 0, record(3.0, 2 * 10**8))
    store.add("fast", 0, record(0.5))
    store.add("restormer", 0, Record(None, "out of memory", [2.5, None]))
    contenders = [CONTENDERS[name] for name in ("ebdb", "nafnet", "restormer", "fast")]
    scores = {"ebdb": {"pairs": 7, "psnr": 25.5, "center_psnr": 24.25, "backend": "onnxruntime fp32"}}
    settings = {"backend": "torch", "precision": "fp32", "size": [16, 24], "threads": None}
    return settings | summarise_all(contenders, store, scores)


def test_ratios_failures_and_loads(data: dict) -> None:
    rows = {row["who"]: row for row in data["rows"]}
    assert rows["nafnet"]["time_ratio"] == pytest.approx(3) and rows["nafnet"]["memory_ratio"] == pytest.approx(2)
    assert rows["nafnet"]["cpu_seconds"] == pytest.approx(1.5) and rows["nafnet"]["rounds"] == 1
    assert rows["restormer"]["seconds"] is None and rows["restormer"]["time_ratio"] is None
    assert rows["restormer"]["error"] == "out of memory"
    assert data["load_average"] == [0.5, 2.5]
    text = markdown(data)
    assert "the load average was 0.5 to 2.5" in text and "16x24 px with torch fp32" in text
    assert "- Restormer, dual-pixel: out of memory." in text
    assert "| LDP fast | none | – | – | 0.500 | 0.250 | 0.500 | 95 |" in text
    assert "| EBDB, approximate | 7 | 24.25 | 25.50 | onnxruntime fp32 |" in text


def test_the_figure_is_written_with_every_timed_method(data: dict, tmp_path: Path) -> None:
    plot(data, tmp_path / "out" / "figure1")
    svg = (tmp_path / "out" / "figure1.svg").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "figure1.png").read_bytes().startswith(b"\x89PNG")
    for shown in ("EBDB", "NAFNet", "LDP fast", "PSNR measured on 7 real pairs"):
        assert f"<!-- {shown} -->" in svg
    assert "<!-- Restormer -->" not in svg
    for row in data["rows"]:
        row["measured"] = None
    plot(data, tmp_path / "plain")
    assert "real pairs" not in (tmp_path / "plain.svg").read_text(encoding="utf-8")
