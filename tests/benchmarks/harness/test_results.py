from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.harness import machine
from benchmarks.harness.machine import Commit
from benchmarks.harness.results import BenchmarkError, BundleId, Report, markdown_table, save, significant, write_text
from ldp_runtime.bundle.bundle import Bundle
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle

REPORT = Report(
    "latency",
    {"summary": "a machine"},
    "2026-01-02T03:04:05Z",
    Commit("0123456789abcdef" * 2 + "01234567", True),
    BundleId("tiny", "ab" * 32, False),
    {"series": [{"shape": [1, 2], "seconds": 0.25, "nothing": None}]},
)


def test_a_report_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    REPORT.write(path)
    assert Report.read(path) == REPORT
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]
    without = Report("roofline", {}, REPORT.created, Commit(None, False), None, {})
    assert Report.from_json(json.loads(json.dumps(without.to_json()))) == without


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}])
def test_a_figure_that_json_does_not_have_leaves_no_file(tmp_path: Path, value: object) -> None:
    report = Report("latency", {}, REPORT.created, REPORT.commit, None, {"value": value})
    with pytest.raises(BenchmarkError, match="expected finite numbers"):
        report.write(tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 99}, "version 1, got 'ldp-benchmark' of 99"),
        ({"schema": "other"}, "got 'other'"),
        ({"kind": 3}, "kind as str, got 3"),
        ({"machine": []}, "machine as dict"),
        ({"bundle": {"name": "x"}}, "bundle: expected the fields content, name, trained"),
        ({"commit": {"hash": 5, "dirty": False}}, "hash as str, got 5"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(BenchmarkError, match=words):
        Report.from_json({**REPORT.to_json(), **change}, "a.json")


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="expected the JSON of a benchmark"):
        Report.read(tmp_path / "missing.json")
    (tmp_path / "damaged.json").write_text('{"schema":')
    with pytest.raises(BenchmarkError, match=r"damaged\.json: expected the JSON"):
        Report.read(tmp_path / "damaged.json")
    with pytest.raises(BenchmarkError, match="got list"):
        Report.from_json([])


def test_a_new_report_names_machine_commit_and_bundle(tmp_path: Path) -> None:
    bundle = Bundle.load(make_tiny_bundle(tmp_path))
    report = Report.new("parity", {"a": 1}, bundle)
    assert report.bundle == BundleId("tiny", bundle.content, True)
    assert report.machine["packages"]["numpy"]
    assert report.machine["cpu"]["usable"] >= 1
    line = report.provenance()
    assert bundle.content[:12] in line
    assert report.machine["summary"] in line
    assert str(report.commit) in line
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_save_writes_tables_with_their_provenance(tmp_path: Path) -> None:
    paths = save(REPORT, tmp_path, "latency-tiny", "# Title\n\ntext\n")
    assert [path.name for path in paths] == ["latency-tiny.json", "latency-tiny.md"]
    assert Report.read(paths[0]) == REPORT
    assert paths[1].read_text() == (
        "# Title\n\ntext\n\ntiny (random weights, content abababababab); a machine; 0123456789ab with changes; "
        "2026-01-02T03:04:05Z.\n"
    )


def test_what_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BenchmarkError, match="cannot be written") as error:
        write_text(tmp_path / "file" / "below.txt", "x")
    assert "\n" not in str(error.value)


def test_markdown_table() -> None:
    table = markdown_table(["a", "b|c"], [["x", None], ["y|z", 2]])
    assert table == "| a | b\\|c |\n| --- | ---: |\n| x | – |\n| y\\|z | 2 |"
    assert markdown_table(["a", "b"], [], "ll").endswith("| --- | --- |")
    with pytest.raises(ValueError, match="expected 2 cells, got 1"):
        markdown_table(["a", "b"], [["x"]])
    with pytest.raises(ValueError, match="expected 2 letters"):
        markdown_table(["a", "b"], [], "lx")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.012345, "0.0123"), (1.2345, "1.23"), (1234.5, "1230"), (0.0, "0"), (-0.5, "-0.500"), (9.999, "10.0")],
)
def test_significant(value: float, text: str) -> None:
    assert significant(value) == text


def test_what_is_no_number_has_no_digits() -> None:
    assert significant(None) is None
    assert significant(math.inf) is None


CPUINFO = """\
processor\t: 0
model name\t: Some CPU @ 2 GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx2 avx512_bf16

processor\t: 1
model name\t: Some CPU @ 2 GHz
physical id\t: 0
core id\t\t: 0

processor\t: 2
physical id\t: 1
core id\t\t: 0
"""


def test_cpuinfo() -> None:
    assert machine.parse_cpuinfo(CPUINFO) == ("Some CPU @ 2 GHz", 2, {"fpu", "avx2", "avx512_bf16"})
    assert machine.parse_cpuinfo("") == (None, None, set())


def test_graphics_cards_come_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_run", lambda *_: "NVIDIA GeForce RTX 4090, 570.1, 24564, 8.9\n")
    machine.gpus.cache_clear()
    try:
        assert machine.gpus() == [
            {"name": "NVIDIA GeForce RTX 4090", "driver": "570.1", "memory_mib": 24564, "compute_capability": "8.9"}
        ]
        monkeypatch.setattr(machine, "_run", lambda *_: None)
        machine.gpus.cache_clear()
        assert machine.gpus() == []
        assert machine.gpu_memory_used() is None
    finally:
        machine.gpus.cache_clear()


def test_changed_reports_do_not_make_the_source_dirty(monkeypatch: pytest.MonkeyPatch) -> None:
    for status, dirty in (("", False), (" M benchmarks/reports/x.json\n", False), (" M README.md\n", True)):
        answers = {"rev-parse": "ab" * 20 + "\n", "status": status}
        monkeypatch.setattr(machine, "_run", lambda *command, answers=answers: answers[command[3]])
        machine.commit.cache_clear()
        assert machine.commit() == Commit("ab" * 20, dirty)
    monkeypatch.setattr(machine, "_run", lambda *_: None)
    machine.commit.cache_clear()
    assert str(machine.commit()) == "unknown commit"
    machine.commit.cache_clear()


def test_peak_memory_counts_what_this_process_took() -> None:
    import numpy as np

    before = machine.peak_memory()
    taken = np.ones(64 * 2**20, dtype=np.uint8)
    assert machine.peak_memory() >= max(before, taken.nbytes)
