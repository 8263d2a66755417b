"""The picture of Figure 1."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.results import BenchmarkError
from benchmarks.harness.tables import size_text
from ldp_runtime.files import write_whole

OTHERS = ("^", "#228833")
OURS = {"small": ("o", "#1f4fbf"), "large": ("o", "#cc2222")}
"""Marks as in the paper: a blue circle for small, a red one for large, green triangles for others."""
TRAINED = ("s", "#222222")


def plot(data: Mapping[str, Any], stem: Path) -> None:
    """Draws PSNR against time: quoted above, where the paper has it; below, if there is any, measured on real pairs.

    Methods that the paper does not score are ticks on the axis of time.

    Args:
        data: The values of the report.
        stem: The files to write, without ``.svg`` and ``.png``.

    Raises:
        BenchmarkError: matplotlib is missing, or a file cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchmarkError(f"expected matplotlib for the figure, got {error}; install it") from error

    timed = [row for row in data["rows"] if row["seconds"] is not None]
    scored = [row for row in timed if row["measured"] is not None]
    heights = [3, 1] if scored else [3]
    figure = Figure(figsize=(8, 1 + 1.6 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    what = f"{size_text(data['size'])} px, {data['backend']} {data['precision']}"
    _quoted(panels[0], timed)
    panels[0].set_title(f"PSNR quoted from the LDP paper (DPD-blur); time measured here, {what}", fontsize=10)
    if scored:
        _points(panels[1], scored, [row["measured"]["psnr"] for row in scored])
        pairs, center = (scored[0]["measured"][key] for key in ("pairs", "center_psnr"))
        panels[1].axhline(center, color="gray", linewidth=1, linestyle="--", label="center view")
        panels[1].legend(fontsize=8)
        panels[1].set_title(f"PSNR measured on {pairs} real pairs", fontsize=10)
    panels[-1].set_xlabel("seconds a pair")
    pictures = {}
    for kind, extra in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 120})):
        picture = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "figure1"}):
            figure.savefig(picture, format=kind, **extra)
        pictures[stem.with_suffix(f".{kind}")] = picture.getvalue()
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_whole(pictures)


def _quoted(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    quoted = [row for row in rows if row["quoted"] is not None]
    _points(axes, quoted, [row["quoted"]["psnr"] for row in quoted])
    axes.margins(x=0.14, y=0.3)
    for row in rows:
        if row["quoted"] is None:
            place = axes.get_xaxis_transform()
            axes.plot([row["seconds"]] * 2, [0, 0.05], transform=place, color=TRAINED[1], linewidth=1.5)
            axes.annotate(
                *(row["title"], (row["seconds"], 0.06)),
                xycoords=place,
                rotation=90,
                fontsize=8,
                ha="center",
                va="bottom",
            )


def _points(axes: Any, rows: Sequence[Mapping[str, Any]], values: Sequence[float]) -> None:
    for row, value in zip(rows, values, strict=True):
        default = TRAINED if row["kind"] == "bundle" and row["quoted"] is None else OTHERS
        marker, colour = OURS.get(row["who"], default)
        axes.scatter(row["seconds"], value, marker=marker, color=colour, s=60, zorder=3)
        name = row["title"].partition(",")[0]
        axes.annotate(name, (row["seconds"], value), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.set(xscale="log", ylabel="PSNR, dB")
    axes.grid(which="both", alpha=0.2)
