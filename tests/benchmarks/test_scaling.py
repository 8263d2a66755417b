import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.harness.results import BenchmarkError, Report
from benchmarks.scaling import Point, Spec, fits, measure, measure_seams, to_markdown
from ldp_runtime.bundle.bundle import Bundle

MEBI = 2**20


def spec(bundle: Bundle, shape: tuple[int, int], tile: int | str = "auto") -> Spec:
    return Spec(str(bundle.path), "onnxruntime", "fp32", tile, 1, shape)


def point(shape: tuple[int, int], seconds: float, working: int) -> Point:
    return Point(shape, seconds, {"deblur": seconds}, 2, 3 * MEBI, 9 * MEBI, working, "openvino", "bf16")


def test_a_line_is_fitted_to_time_and_memory() -> None:
    points = [point((1000, n * 1000), 0.5 + 2 * n, 100 + 10 * n) for n in (1, 2, 4)]
    seconds, working = (fits(points)[name] for name in ("seconds", "working"))
    assert seconds is not None
    assert working is not None
    assert seconds == pytest.approx({"a": 0.5, "b": 2, "spread": 2.5 / (8.5 / 4) - 1})
    assert working == pytest.approx({"a": 100, "b": 10, "spread": 140 / 110 - 1})
    assert fits(points[:1]) == {"seconds": None, "working": None}
    whole = replace(point((1000, 100), 0.7, 7), tiles=1)  # in one piece memory grows by design
    assert fits([whole, *points])["working"] == working


def test_working_memory_does_not_grow_with_the_image(bundle: Bundle) -> None:
    small, large = (measure(spec(bundle, shape, tile=512)) for shape in ((1200, 800), (2400, 800)))
    assert large.images == 2 * small.images
    assert (small.tiles, large.tiles) > (1, 1)
    assert large.working < small.working + 12 * MEBI  # FP32 copies of the pair would differ by 22 MiB


def test_a_size_that_does_not_work_says_why(bundle: Bundle) -> None:
    with pytest.raises(BenchmarkError, match=r"100x200 px, got none: .*at least 256 px.*, got 9"):
        measure(replace(spec(bundle, (100, 200)), tile=9))


def test_wider_halos_leave_smaller_seams(bundle: Bundle) -> None:
    # The tiny network sees 2 px: its tiles agree to within FP32's rounding whatever the halo.
    narrow, wide = measure_seams(bundle, (32, 64), shape=(150, 420), tile=192, threads=1)
    assert (narrow["halo"], wide["halo"]) == (32, 64)
    assert narrow["tiles"] > 1
    assert max(narrow["max"], wide["max"]) < 1e-3
    assert 0 <= wide["rms"] <= wide["max"]


def test_the_command_writes_a_report(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    scaling.add_arguments(parser)
    options = ["--bundle", str(bundle.path), "--backend", "onnxruntime:fp32", "--threads", "1", "--no-seams"]
    scaling.run(parser.parse_args([*options, "--shape", "40x48", "300x400", "--tile", "256", "-o", str(tmp_path)]))
    assert {path.name for path in tmp_path.iterdir()} == {"scaling-tiny.json", "scaling-tiny.md"}
    report = Report.read(tmp_path / "scaling-tiny.json")
    first, second = report.data["points"]
    assert (first["shape"], first["tiles"]) == ([40, 48], 1)
    assert second["tiles"] > 1
    assert report.data["fits"]["seconds"].keys() == {"a", "b", "spread"}
    assert report.data["seams"] == []
    assert to_markdown(report) in capsys.readouterr().out


def test_the_report_has_the_seams(bundle: Bundle) -> None:
    seam = {"halo": 64, "tile": [256, 512], "tiles": 4, "max": 0.25, "rms": 0.0123}
    points = [vars(point((1000, 1000), 1.0, 5 * MEBI))]
    data = {"tile": "auto", "load_average": {"before": 0.1, "after": None}, "points": points, "seams": [seam]}
    text = to_markdown(Report.new("scaling", {**data, "fits": {"seconds": None, "working": None}}, bundle))
    assert "| 64 | 4 of 512 x 256 | 0.250 | 0.012 |" in text
    assert "0.10 and unknown" in text
    assert "Fitted" not in text
