"""The report's plots, as SVG for a page: no scripts, no fonts, nothing fetched."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.harness.results import BenchmarkError, Report
from benchmarks.harness.tables import megapixels, size_text
from benchmarks.latency.tables import STAGES
from ldp_export.evaluation.paper import INFERENCE_DEVICE, OURS, load, load_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_QUOTED = "#7a7a7a"
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222222", "#ee9955")
_LEAST_SPAN_DB = 0.2  # of an axis of PSNR, so that thousandths of a dB do not look like a difference
_LABELS_ABOVE = 3  # px between a point and its name


def quality_and_time(latency: Sequence[Report], parity: Sequence[Report]) -> str:
    """PSNR against time, as the paper's Fig. 1: quoted from the paper on the left, measured on the right.

    The two sides have scales of their own: data and machines differ.

    Args:
        latency: Reports of kind "latency".
        parity: Reports of kind "parity", for the score of torch in FP32 on the sample and its change by backend; of
            trained bundles.
    """
    figure = _figure((10, 4.2))
    quoted, measured = figure.subplots(1, 2)
    table = load_table(1)
    for row in load("inference").rows:
        name = row.labels["method"]
        score = table.find(name).values["average_psnr"]
        quoted.scatter(row.values["seconds"], score, color=_QUOTED, marker="o" if name in OURS else "^")
        _name(quoted, name, row.values["seconds"], score)
    quoted.margins(x=0.25, y=0.12)  # room for the names
    quoted.set(title=f"Quoted from the paper: DPD-blur, {INFERENCE_DEVICE}", xlabel="seconds", ylabel="PSNR, dB")
    drawn = 0
    scores = {report.bundle.content: report for report in parity if report.bundle is not None and report.bundle.trained}
    for report in latency:
        scored = scores.get(report.bundle.content) if report.bundle is not None else None
        if scored is None or report.bundle is None or "sample" not in scored.data["sets"]:
            continue
        base = scored.data["sets"]["sample"]["psnr_db"]
        changes = {
            entry["name"]: entry["sets"]["sample"]["delta_psnr_db"]
            for entry in scored.data["configurations"]
            if entry["error"] is None
        } | {scored.data["reference"]: 0.0}
        series = report.data["series"][-1]
        for entry in series["configurations"]:
            if entry["error"] is None and entry["name"] in changes:
                seconds = entry["seconds"]
                measured.errorbar(
                    seconds["median"],
                    base + changes[entry["name"]],
                    xerr=[[seconds["median"] - seconds["p5"]], [seconds["p95"] - seconds["median"]]],
                    fmt="o",
                    capsize=2,
                    color=_COLOURS[drawn % len(_COLOURS)],
                    label=f"{report.bundle.name}, {entry['name']}, {size_text(series['shape'])} px",
                )
                drawn += 1
    measured.set(title="Measured here: the motorcycle sample", xlabel="seconds (bar: p5 to p95)", ylabel="PSNR, dB")
    if drawn:
        measured.ticklabel_format(axis="y", useOffset=False)
        low, high = measured.get_ylim()
        room = max(_LEAST_SPAN_DB - (high - low), 0) / 2
        measured.set_ylim(low - room, high + room)
        measured.legend(fontsize=7)
    else:
        measured.text(0.5, 0.5, "no trained bundle was measured", ha="center", transform=measured.transAxes)
    return to_svg(figure, "quality-and-time")


def stage_bars(report: Report, series: Mapping[str, Any], key: str) -> str:
    """Medians by stage, stacked, one bar per configuration.

    Args:
        report: Of kind "latency".
        series: One of its series.
        key: Unique in the page.
    """
    entries = [entry for entry in series["configurations"] if entry["error"] is None]
    names = [entry["name"] for entry in entries]
    figure = _figure((10, 1.2 + 0.32 * len(names)))
    axes = figure.subplots()
    left = [0.0] * len(names)
    stages = [stage for stage in STAGES if any(stage in entry["stages"] for entry in entries)]
    for colour, stage in zip(_COLOURS, stages, strict=False):
        widths = [entry["stages"].get(stage, 0.0) for entry in entries]
        axes.barh(names, widths, left=left, color=colour, label=stage.replace("_", " "))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(title=f"{report.name}, {size_text(series['shape'])} px: medians by stage", xlabel="seconds")
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", fontsize=8, ncols=len(stages))
    return to_svg(figure, f"stages-{key}")


def latency_scaling(report: Report, key: str) -> str:
    """Time and peak memory against the number of pixels, one line per configuration.

    Args:
        report: Of kind "latency", of several shapes.
        key: Unique in the page.
    """
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for series in report.data["series"]:
        for entry in series["configurations"]:
            if entry["error"] is None:
                point = (megapixels(series["shape"]), entry["seconds"]["median"], entry["host_bytes"] / 2**20)
                lines.setdefault(entry["name"], []).append(point)
    return _scaling(report.name, lines, f"scaling-{key}")


def size_scaling(report: Report, key: str) -> str:
    """Time and working memory against the number of pixels, one line per backend and precision.

    Args:
        report: Of kind "scaling", of several sizes.
        key: Unique in the page.
    """
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for point in report.data["points"]:
        measured = (megapixels(point["shape"]), point["seconds"], point["working"] / 2**20)
        lines.setdefault(f"{point['backend']} {point['precision']}", []).append(measured)
    return _scaling(report.name, lines, f"scaling-{key}", memory_title="working memory")


def to_svg(figure: Figure, key: str) -> str:
    """A figure as an SVG element.

    Args:
        figure: The figure.
        key: Unique in the page: a prefix of the figure's identifiers, so that no two figures share one.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": key, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    text = buffer.getvalue()
    element = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :].rstrip(), flags=re.DOTALL)
    element = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', element)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{key}-", element)


def _scaling(
    title: str,
    lines: Mapping[str, list[tuple[float, float, float]]],
    key: str,
    memory_title: str = "peak memory of the process",
) -> str:
    """Two axes side by side; a line has points of megapixels, seconds and MiB."""
    figure = _figure((10, 4.6))
    time, memory = figure.subplots(1, 2)
    for i, (name, points) in enumerate(lines.items()):
        pixels, seconds, mebibytes = zip(*sorted(points), strict=True)
        style: dict[str, Any] = {"marker": "o", "color": _COLOURS[i % len(_COLOURS)]}
        time.plot(pixels, seconds, label=name, **style)
        memory.plot(pixels, mebibytes, **style)
    time.set(title=f"{title}: time", xlabel="megapixels", ylabel="median, seconds", xscale="log", yscale="log")
    memory.set(title=f"{title}: {memory_title}", xlabel="megapixels", ylabel="MiB", xscale="log")
    memory.set_ylim(bottom=0)
    for axis in (time.xaxis, time.yaxis, memory.xaxis):
        _plain_log(axis)
    for axes in (time, memory):
        axes.grid(alpha=0.2)
    figure.legend(loc="outside lower center", fontsize=8, ncols=min(len(lines), 4))
    return to_svg(figure, key)


def _figure(size: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise BenchmarkError(
            f"expected the package {error.name} for the report, got none; in the repository run "
            "pip install -e '.[bench]'"
        ) from error
    return Figure(figsize=size, layout="constrained")


def _name(axes: Any, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), textcoords="offset points", xytext=(_LABELS_ABOVE, _LABELS_ABOVE), fontsize=8)


def _plain_log(axis: Any) -> None:
    """Plain numbers, 1, 2, 5, 10, on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
