"""The floor of the chain, its tables, its finding and its plot, on nano."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.results import BenchmarkError, Report
from benchmarks.roofline import bench as roofline
from benchmarks.roofline.bench import analyse
from benchmarks.roofline.chain import Chain, floor
from benchmarks.roofline.fusion import EXTRA
from benchmarks.roofline.hardware import Device, gpus
from benchmarks.roofline.tables import PREDICTED, finding, markdown
from ldp_runtime.bundle.bundle import Bundle

NANO = Path(__file__).resolve().parents[3] / "models" / "ldp-nano"
SIZE = (100, 150)
CPU = Device("a CPU", "fp32", 1e11, 1e11, 1e10, 0, True)


@pytest.fixture(scope="module")
def data(nano_bundle: Bundle) -> dict[str, Any]:
    return analyse(nano_bundle, SIZE, "RTX 3060", cpu=[CPU])


def test_every_figure_of_a_gpu_is_labelled(data: dict[str, Any]) -> None:
    labels = {row["device"]: row["label"] for row in data["devices"]}
    assert labels.pop("a CPU") == "floor at measured rates"
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
    (deblur,) = [row["ms"] for row in data["stages"] if row["what"] == "deblur"]
    for key in ("kinds", "scales"):
        assert sum(row["ms"] for row in data[key]) == pytest.approx(deblur)
    assert len(data["kernels"]) == len(data["nodes"]) == 10
    assert [row["ms"] for row in data["kernels"]] == sorted((row["ms"] for row in data["kernels"]), reverse=True)
    matrix = chain.batches * chain.clip.matrix_flops + chain.deblur.matrix_flops
    assert data["totals"][0]["matrix_gflop"] == pytest.approx(matrix / 1e9)


def test_more_fusions_lower_the_floor(data: dict[str, Any]) -> None:
    rules, *alone, together = (row["ms"] for row in data["fusions"])
    assert len(alone) == len(EXTRA)
    assert max(alone) <= rules
    assert together < min(alone)


def test_the_finding_is_made_of_the_figures(data: dict[str, Any]) -> None:
    stages = [{**data["stages"][0], "what": "some stage", "share": 0.875}, *data["stages"][1:]]
    fusions = [
        {"change": "the rules alone", "ms": 10.0},
        {"change": "one thing", "ms": 9.0},
        {"change": "another", "ms": 7.0},
        {"change": "all of these", "ms": 5.0},
    ]
    variants = [
        {"change": "as it is", "parameters": 1, "ms": 10.0},
        {"change": "a smaller one", "parameters": 2_500_000, "ms": 4.0},
    ]
    text = finding(data | {"stages": stages, "fusions": fusions, "variants": variants})
    assert "some stage stage takes 88%" in text
    assert "*another*: 7.00 ms (-30.0%)" in text and "5.00 ms (-50.0%)" in text
    assert "*a smaller one* would lower it most: 4.00 ms (-60.0%) with 2.5 M parameters" in text
    assert "unknown until it is trained" in text


def test_the_command_writes_all_its_files(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(roofline, "measure_cpu", lambda: [CPU])
    monkeypatch.setenv("LDP_CACHE", str(tmp_path_factory.mktemp("cache")))  # has no variants, whatever the user's has
    parser = argparse.ArgumentParser()
    roofline.add_arguments(parser)
    roofline.run(parser.parse_args(["--bundle", str(NANO), "--shape", "100x150", "--output", str(tmp_path)]))
    report = Report.read(tmp_path / "roofline-ldp-nano.json")
    assert (report.kind, report.data["size"]) == ("roofline", [100, 150])
    assert (tmp_path / "roofline-ldp-nano.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "roofline-ldp-nano.md").read_text()
    assert "## Finding" in text and "roofline-ldp-nano.png" in text
    assert "## Finding" in capsys.readouterr().out
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".png"]


def test_errors_say_what_is_wrong(nano_bundle: Bundle) -> None:
    with pytest.raises(BenchmarkError, match=r"expected a device, one of RTX 3060, .*got 'GTX 1080'"):
        analyse(nano_bundle, SIZE, "GTX 1080", cpu=[CPU])
