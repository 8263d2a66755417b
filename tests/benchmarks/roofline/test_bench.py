"""The floor of the chain, its tables, its finding and its plot, on nano."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.results import BenchmarkError, Report
from benchmarks.roofline import bench as roofline
from benchmarks.roofline.bench import analyse
from benchmarks.roofline.chain import Chain, floor, walk_graphs
from benchmarks.roofline.hardware import Device, gpus
from benchmarks.roofline.tables import PREDICTED, finding, markdown
from ldp_runtime.bundle.bundle import Bundle

NANO = Path(__file__).resolve().parents[3] / "models" / "ldp-nano"
SIZE = (100, 150)
CPU = Device("a CPU", "fp32", 1e11, 1e11, 1e10, 0, 0, True)


@pytest.fixture(scope="module", autouse=True)
def one_build(chain: Chain) -> Iterator[None]:
    """The chain is built once for the tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "build_chain", lambda bundle, size: chain)
        yield


@pytest.fixture(scope="module")
def data(nano_bundle: Bundle) -> dict[str, Any]:
    return analyse(nano_bundle, SIZE, "RTX 3060", cpu=[CPU])


def test_every_figure_of_a_gpu_is_labelled(data: dict[str, Any]) -> None:
    labels = {row["device"]: row["label"] for row in data["devices"]}
    assert labels.pop("a CPU") == "arithmetic alone, at the measured rate"
    assert set(labels.values()) == {PREDICTED} and len(labels) == 6
    text = markdown(data)
    for heading in [line for line in text.splitlines() if line.startswith("## ") and "RTX" in line]:
        assert PREDICTED in heading
    assert text.count(f"| {PREDICTED} |") == 6


def test_shares_and_totals_add_up(data: dict[str, Any], chain: Chain) -> None:
    total = 1e3 * floor(chain.steps, gpus()[0])
    for key in ("stages", "bounds", "points"):
        assert sum(row["ms"] for row in data[key]) == pytest.approx(total)
        assert sum(row["share"] for row in data[key]) == pytest.approx(1)
    deblur = sum(row["ms"] for row in data["stages"] if row["what"] in ("head", "deblur"))
    for key in ("kinds", "scales"):
        assert sum(row["ms"] for row in data[key]) == pytest.approx(deblur)
    assert len(data["layers"]) == 10
    assert [row["ms"] for row in data["layers"]] == sorted((row["ms"] for row in data["layers"]), reverse=True)
    gpu = data["devices"][0]
    assert gpu["floor_ms"] == pytest.approx(total)
    assert gpu["cached_ms"] < gpu["floor_ms"] <= gpu["fp32_accumulate_ms"]
    assert gpu["copies_ms"] == pytest.approx(1e3 * sum(chain.copied) / gpus()[0].link)


def test_the_cpu_has_its_arithmetic_alone(data: dict[str, Any], nano_bundle: Bundle) -> None:
    walked = walk_graphs(nano_bundle, SIZE, "fp32")
    flops = walked.batches * walked.clip.matrix_flops + walked.deblur.matrix_flops
    assert data["devices"][-1]["floor_ms"] == pytest.approx(1e3 * flops / CPU.matrix)


def test_the_finding_is_made_of_the_figures(data: dict[str, Any]) -> None:
    kinds = [{**data["kinds"][0], "ms": 6.5}, {**data["kinds"][1], "ms": 2.25}]
    devices = [{**data["devices"][0], "floor_ms": 10.0, "cached_ms": 7.5}, *data["devices"][1:]]
    text = finding(data | {"kinds": kinds, "devices": devices})
    assert "On the RTX 3060" in text and "is 10.0 ms" in text and "7.50 ms with an ideal cache" in text
    assert "of which the deblur engine takes 88%" in text


def test_what_the_second_stream_gains_has_both_bounds(data: dict[str, Any]) -> None:
    rows = data["beside"]["rows"]
    assert len(rows) == 6 * 2 * 2
    assert all(row["at_best_ms"] <= row["in_turn_ms"] + 1e-9 for row in rows)
    assert rows[0]["in_turn_ms"] == data["devices"][0]["floor_ms"]
    rows = [{**row, "in_turn_ms": 10.0, "at_best_ms": 9.0} for row in rows]
    text = markdown(data | {"beside": {**data["beside"], "rows": rows}})
    assert text.count("| 10.0 | 9.00 | 10.0% |") == 4  # of the main device alone


def test_the_command_writes_all_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(roofline, "measure_cpu", lambda: [CPU])
    parser = argparse.ArgumentParser()
    roofline.add_arguments(parser)
    roofline.run(parser.parse_args(["--bundle", str(NANO), "--shape", "100x150", "--output", str(tmp_path)]))
    report = Report.read(tmp_path / "roofline-ldp-nano.json")
    assert (report.kind, report.data["size"]) == ("roofline", [100, 150])
    assert (tmp_path / "roofline-ldp-nano.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "roofline-ldp-nano.md").read_text(encoding="utf-8")
    assert "## Finding" in text and "roofline-ldp-nano.png" in text
    assert "## Finding" in capsys.readouterr().out
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".png"]


def test_errors_say_what_is_wrong(nano_bundle: Bundle) -> None:
    with pytest.raises(BenchmarkError, match=r"expected a device, one of RTX 3060, .*got 'GTX 1080'"):
        analyse(nano_bundle, SIZE, "GTX 1080", cpu=[CPU])
