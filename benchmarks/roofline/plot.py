"""The picture of a roofline."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.results import BenchmarkError
from benchmarks.roofline.tables import PREDICTED
from ldp_runtime.files import write_whole


def plot(data: Mapping[str, Any], path: Path) -> None:
    """Draws the roofs of all devices, and the layers on the roof of the main one; area is share of the floor.

    Args:
        data: The values of ``analyse``.
        path: The PNG file to write.

    Raises:
        BenchmarkError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchmarkError(f"expected matplotlib for the plot, got {error}; install it") from error

    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    intensity = np.logspace(-1.5, 4, 200)
    for row in data["devices"]:
        roof = np.minimum(row["matrix_tflops"], intensity * row["gb_s"] / 1e3)
        main = row["device"] == data["device"]["name"]
        style = {"linewidth": 2.5} if main else {"linewidth": 1, "alpha": 0.7}
        line = "--" if row["label"] != PREDICTED else "-"
        axes.loglog(intensity, roof, line, label=f"{row['device']} ({row['label']})", **style)
    points = [p for p in data["points"] if p["gflop"] > 0 and p["ms"] > 0]
    for name, stages, marker in (("clip", ("clip",), "s"), ("deblur", ("head", "deblur"), "o")):
        own = [p for p in points if p["stage"] in stages]
        axes.scatter(
            [p["gflop"] * 1e3 / p["mb"] for p in own],
            [p["gflop"] / p["ms"] for p in own],
            [20 + 3000 * p["share"] for p in own],
            marker=marker,
            alpha=0.4,
            edgecolors="black",
            linewidths=0.3,
            label=f"{name} layers, {data['device']['name']}: area is the share of the floor",
        )
    axes.set(
        xlabel="FLOP per byte",
        ylabel="TFLOP/s at the floor",
        title=f"Roofline at {data['size'][0]} x {data['size'][1]} px: {PREDICTED}, not measured",
    )
    axes.grid(which="both", alpha=0.2)
    figure.legend(fontsize=7, loc="outside lower center", ncols=2, markerscale=0.5)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole({path: picture.getvalue()})
