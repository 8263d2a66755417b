"""Times of a pair on CPUs, from measured results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.results import BenchmarkError, Report
from benchmarks.harness.tables import megapixels, size_text
from benchmarks.latency.contenders import TORCH

if TYPE_CHECKING:
    from ldp_runtime.bundle.bundle import Bundle


@dataclass(frozen=True)
class Rate:
    """The time of a pair on the CPUs of the measured machine.

    Attributes:
        shape: Height and width in px.
        seconds: Wall time of a pair.
        cores: CPUs of that machine, as the system counts them.
        basis: Where the seconds come from, for people.
    """

    shape: tuple[int, int]
    seconds: float
    cores: int
    basis: str

    @property
    def core_seconds(self) -> float:
        """Seconds of all these CPUs together."""
        return self.seconds * self.cores


def read_measured(folder: Path, bundle: Bundle) -> dict[str, Report]:
    """The results of latency and scaling for a bundle, by kind.

    Raises:
        BenchmarkError: There is none, or one is of another bundle of that name.
    """
    name = bundle.manifest.name
    files = {kind: folder / f"{kind}-{name}.json" for kind in ("latency", "scaling")}
    found = {kind: Report.read(path) for kind, path in files.items() if path.is_file()}
    if not found:
        raise BenchmarkError(
            f"expected {' or '.join(path.name for path in files.values())} in {folder}, got neither; run the "
            "benchmarks latency and scaling for this bundle first"
        )
    for kind, report in found.items():
        if report.bundle is None or report.bundle.content != bundle.content:
            raise BenchmarkError(
                f"{files[kind]}: expected figures of {name} with content {bundle.content[:12]}, got those of "
                f"{report.bundle}; run the benchmark {kind} again"
            )
    return found


def measured_rates(measured: Mapping[str, Report]) -> list[Rate]:
    """The fastest backend of the CPU at every measured size; those of latency first."""
    rates = []
    if (report := measured.get("latency")) is not None:
        cores = report.data["settings"]["threads"] or report.machine["cpu"]["usable"]
        for series in report.data["series"]:
            own = [
                (configuration["seconds"]["median"], configuration["name"])
                for configuration in series["configurations"]
                if configuration["error"] is None and not configuration["gpu"] and configuration["backend"] not in TORCH
            ]
            if own:
                seconds, name = min(own)
                rates.append(Rate(tuple(series["shape"]), seconds, cores, f"median of {name}"))
    if (report := measured.get("scaling")) is not None:
        cores = report.data["threads"] or report.machine["cpu"]["usable"]
        for point in report.data["points"]:
            name = f"one run of {point['backend']} {point['precision']}"
            rates.append(Rate(tuple(point["shape"]), point["seconds"], cores, name))
    return rates


def rate_at(measured: Mapping[str, Report], shape: tuple[int, int]) -> Rate:
    """The time of a pair of one size: measured, or on the fitted line within its sizes, or from the nearest size.

    Args:
        measured: The value of ``read_measured``.
        shape: Height and width in px.

    Raises:
        BenchmarkError: There is no size in the results.
    """
    rates = measured_rates(measured)
    if not rates:
        raise BenchmarkError(
            "expected a backend that ran on the CPU in the results, got none; run the benchmark latency"
        )
    for rate in rates:
        if rate.shape == shape:
            return rate
    size = megapixels(shape)
    if (report := measured.get("scaling")) is not None and (line := report.data["fits"]["seconds"]) is not None:
        points = [megapixels(tuple(point["shape"])) for point in report.data["points"]]
        seconds = line["a"] + line["b"] * size
        if min(points) <= size <= max(points) and seconds > 0:
            cores = report.data["threads"] or report.machine["cpu"]["usable"]
            return Rate(shape, seconds, cores, f"line through {len(points)} sizes")
    nearest = min(rates, key=lambda rate: abs(math.log(megapixels(rate.shape) / size)))
    seconds = nearest.seconds * size / megapixels(nearest.shape)
    return Rate(shape, seconds, nearest.cores, f"from {size_text(nearest.shape)}, by pixels")
