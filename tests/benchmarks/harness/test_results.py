import json
import math
from pathlib import Path

import pytest

from benchmarks.harness.machine import Commit
from benchmarks.harness.results import BenchmarkError, BundleId, Report, publish, write_text
from ldp_runtime.bundle.bundle import Bundle

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
        ({"schema_version": 99}, r"version 1, .* 99 - at `\$\.schema_version`"),
        ({"schema": "other"}, r"'other' - at `\$\.schema`"),
        ({"kind": 3}, r"`str`, got `int` - at `\$\.kind`"),
        ({"machine": []}, r"at `\$\.machine`"),
        ({"bundle": {"name": "x"}}, r"missing required field `content` - at `\$\.bundle`"),
        ({"commit": {"hash": 5, "dirty": False}}, r"at `\$\.commit\.hash`"),
        ({"surprise": 1}, "unknown field `surprise`"),
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
    with pytest.raises(BenchmarkError, match="got `array`"):
        Report.from_json([])


def test_a_new_report_names_machine_commit_and_bundle(bundle: Bundle) -> None:
    report = Report.new("parity", {"a": 1}, bundle)
    assert report.bundle == BundleId("tiny", bundle.content, True)
    assert report.machine["packages"]["numpy"]
    assert report.machine["cpu"]["usable"] >= 1
    line = report.provenance()
    assert bundle.content[:12] in line
    assert report.machine["summary"] in line
    assert str(report.commit) in line
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_tables_are_printed_and_written_with_their_provenance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(REPORT, "# Title\n\ntext\n", tmp_path)
    paths = tmp_path / "latency-tiny.json", tmp_path / "latency-tiny.md"
    assert capsys.readouterr().out == f"# Title\n\ntext\n\nwrote {paths[0]} and {paths[1]}\n"
    assert Report.read(paths[0]) == REPORT
    assert paths[1].read_text(encoding="utf-8") == (
        "# Title\n\ntext\n\ntiny (random weights, content abababababab); a machine; 0123456789ab with changes; "
        "2026-01-02T03:04:05Z.\n"
    )


def test_what_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BenchmarkError, match="cannot be written") as error:
        write_text(tmp_path / "file" / "below.txt", "x")
    assert "\n" not in str(error.value)
