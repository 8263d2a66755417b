import dataclasses
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.capacity import bench as capacity
from benchmarks.capacity.bench import PHOTO, plan
from benchmarks.capacity.files import FORMATS, PAPER, Coding
from benchmarks.capacity.rates import measured_rates, rate_at, read_measured
from benchmarks.capacity.tables import DAY
from benchmarks.harness.results import BenchmarkError, BundleId, Report
from benchmarks.roofline.hardware import gpus
from ldp_runtime.bundle.bundle import Bundle

CODINGS = [Coding(kind, bits, 0.25 * bits / 8, 0.5 * bits / 8, 1e6) for kind, bits in FORMATS]


FLOORS = {card.name: 1e9 / card.bandwidth * 1e-8 for card in gpus()}
"""Seconds per px."""


@pytest.fixture(autouse=True)
def no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "gpu_floors", lambda bundle: FLOORS)


def report(kind: str, data: dict[str, Any], bundle: Bundle, usable: int = 4) -> Report:
    made = Report.new(kind, data, bundle)
    return dataclasses.replace(made, machine={**made.machine, "cpu": {**made.machine["cpu"], "usable": usable}})


def latency(bundle: Bundle, threads: int | None = None) -> Report:
    def configuration(backend: str, median: float | None, gpu: bool = False) -> dict[str, Any]:
        error = "it broke" if median is None else None
        seconds = {"median": median}
        return {"name": f"{backend} fp32", "backend": backend, "error": error, "gpu": gpu, "seconds": seconds}

    configurations = [
        configuration("openvino", 2.0),
        configuration("onnxruntime", 3.0),
        configuration("torch", 1.0),
        configuration("cuda", 0.01, gpu=True),
        configuration("onnxruntime-cuda", None),
    ]
    series = [{"shape": list(PAPER), "configurations": configurations}]
    return report("latency", {"settings": {"threads": threads}, "series": series}, bundle)


def scaling(bundle: Bundle, *shapes: tuple[int, int], a: float = 1.0, b: float = 0.5) -> Report:
    points = [
        {"shape": [*s], "seconds": a + b * s[0] * s[1] / 1e6, "backend": "openvino", "precision": "bf16"}
        for s in shapes
    ]
    return report("scaling", {"threads": 2, "points": points, "fits": {"seconds": {"a": a, "b": b}}}, bundle)


def test_a_rate_is_measured_or_fitted_or_that_of_the_nearest_size(bundle: Bundle) -> None:
    """The quickest on the CPU counts; torch and GPUs do not."""
    both = {"latency": latency(bundle), "scaling": scaling(bundle, (2000, 3000), (8000, 9000))}
    rate = rate_at(both, PAPER)
    assert (rate.seconds, rate.cores, rate.core_seconds, rate.basis) == (2.0, 4, 8.0, "median of openvino fp32")
    assert rate_at(both, (2000, 3000)).basis == "one run of openvino bf16"
    fitted = rate_at(both, PHOTO)
    assert (fitted.seconds, fitted.cores, fitted.basis) == (13.0, 2, "line through 2 sizes")
    small = rate_at(both, (560, 840))
    assert (small.seconds, small.basis) == (0.5, "from 1120x1680, by pixels")
    large = rate_at(both, (16000, 9000))
    assert large.seconds == pytest.approx(2 * 37.0)
    assert rate_at({"latency": latency(bundle, threads=3)}, PHOTO).cores == 3
    assert len(measured_rates(both)) == 3


def test_a_line_that_starts_below_zero_is_not_believed(bundle: Bundle) -> None:
    line = {"scaling": scaling(bundle, (4000, 4000), (8000, 9000), a=-13.0, b=0.5)}
    assert rate_at(line, (5000, 5000)).basis == "from 4000x4000, by pixels"


def test_results_that_are_missing_or_of_another_bundle(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"expected latency-tiny\.json or scaling-tiny\.json in .*, got neither"):
        read_measured(tmp_path, bundle)
    made = latency(bundle)
    made.write(tmp_path / "latency-tiny.json")
    assert read_measured(tmp_path, bundle) == {"latency": made}
    dataclasses.replace(made, bundle=BundleId("tiny", "0" * 64, True)).write(tmp_path / "latency-tiny.json")
    with pytest.raises(BenchmarkError, match="run the benchmark latency again"):
        read_measured(tmp_path, bundle)
    only_torch = report("scaling", {"threads": None, "points": [], "fits": {"seconds": None}}, bundle)
    with pytest.raises(BenchmarkError, match="ran on the CPU"):
        rate_at({"scaling": only_torch}, PAPER)


def test_the_plan_multiplies_right(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "sample_shape", lambda: (500, 1000))
    data = plan(bundle, {"latency": latency(bundle)}, CODINGS, 2 * DAY, host_cores=8, network=1.0)
    paper = PAPER[0] * PAPER[1] / 1e6
    row = next(row for row in data["cpu"] if tuple(row["shape"]) == PAPER)
    assert row["cores"] == pytest.approx(2 * 8.0)
    assert row["core_hours_a_day"] == pytest.approx(24 * 16.0)
    assert row["pairs_a_second_a_core"] == pytest.approx(1 / 8)
    png = next(row for row in data["files"] if row["name"] == "PNG 16 bits")
    assert png["cores"][1] == pytest.approx(2 * (2 * 0.5 + 1.0) * paper)
    assert png["bytes_a_second"][1] == pytest.approx(2 * 3 * 1e6 * paper)
    for gpu in (row for row in data["gpu"] if tuple(row["shape"]) == PAPER):
        assert gpu["seconds"] == pytest.approx(FLOORS[gpu["device"]] * 1e6 * paper)
        assert gpu["gpus"] == pytest.approx(2 * gpu["seconds"])
        assert gpu["cores_to_feed"]["JPEG 8 bits"] == pytest.approx((2 * 0.25 + 0.5) * paper / gpu["seconds"])
        bounds = gpu["pairs_a_second"]
        assert bounds["files on the host"] == pytest.approx(8 / (2.0 * paper))
        assert bounds["network"] == pytest.approx(125e6 / (3e6 * paper))
        assert gpu["first"] == min(bounds, key=bounds.__getitem__)


def test_the_page_has_the_figures(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "sample_shape", lambda: (500, 1000))
    measured = {"latency": latency(bundle)}
    data = plan(bundle, measured, CODINGS, 1_000_000, host_cores=8, network=10.0)
    text = capacity.to_markdown(Report.new("capacity", data, bundle))
    assert text.startswith("# Capacity: 1 000 000 pairs per day with tiny")
    assert "| 1120x1680 | 1.88 | 2.00 | median of openvino fp32 | 0.125 | 93 | 2222 |" in text
    assert "predicted floor" in text
    assert "RTX 4090" in text
    assert "**files on the host** with RTX 3060" in text
    assert len(text.splitlines()) < 80
    slow = [dataclasses.replace(c, read=1e-6, write=1e-6, nbytes=1.0) for c in CODINGS]
    data = plan(bundle, measured, slow, 1_000_000, host_cores=8, network=10.0)
    assert {row["first"] for row in data["gpu"]} == {"GPU"}
    assert "**GPU** with RTX 3060, RTX 3090" in capacity.to_markdown(Report.new("capacity", data, bundle))


def test_the_command(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capacity, "measure_coding", lambda: CODINGS)
    latency(bundle).write(tmp_path / "latency-tiny.json")
    command = ["capacity", "--bundle", str(bundle.path), "-o", str(tmp_path)]
    assert main(command) == 0
    assert "# Capacity" in capsys.readouterr().out
    assert Report.read(tmp_path / "capacity-tiny.json").data["pairs_a_day"] == 1_000_000
    assert (tmp_path / "capacity-tiny.md").is_file()
    assert main([*command, "--network", "0"]) == 2
    assert "expected --network above 0" in capsys.readouterr().err
