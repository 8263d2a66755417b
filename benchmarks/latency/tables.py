"""The tables of a latency report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness.results import BundleId, Report
from benchmarks.harness.tables import load_text, markdown_table, mebibytes, significant, size_text
from benchmarks.latency.contenders import TORCH
from benchmarks.latency.verdict import verdicts
from benchmarks.latency.worker import FIRST_COUNTS
from ldp_runtime.errors import counted

STAGES = ("upload", "prepare", "clip", "blur_logits", "deblur", "finish", "download")
"""The stages in order; a backend may have some of them only."""


def to_markdown(report: Report) -> str:
    """The tables of a report, below a title.

    Args:
        report: Of kind "latency".
    """
    data = report.data
    settings = data["settings"]
    parts = [f"# Latency of {report.name}"]
    for series in data["series"]:
        table = times_table(series, beside(report))
        parts += [f"## {size_text(series['shape'])} px", table, "Seconds by stage, medians:"]
        parts.append(stages_table(series))
        parts += [f"* {c['name']} failed: {c['error']}" for c in series["configurations"] if c["error"] is not None]
    parts += [f"* {name} was skipped: {reason}" for name, reason in data["left_out"].items()]
    threads = (
        "each backend's own choice of threads"
        if settings["threads"] is None
        else counted(settings["threads"], "thread")
    )
    parts.append(
        f"A time is from both views in memory to the restored image in memory. {settings['rounds']} rounds in "
        f"{settings['seconds']:.0f} s, {threads}; load average before and after: {load_text(data['load_average'])}. "
        "In brackets: the 95 % interval of the median or ratio, by resampling rounds. The first run of each process is "
        f"not counted, except torch's of {FIRST_COUNTS:g} s of processor time or more. Start-up is from the "
        "start of a process to its first image, in the later rounds, when caches are warm. Memory is the peak of the "
        "process."
    )
    if other := data.get("beside"):
        parts.append(f"{BundleId(**other)} was timed in turn with it, by the same backends.")
    parts += [f"* {text}" for text in dict.fromkeys(verdict.text for verdict in verdicts(report))]
    return "\n\n".join(parts)


def beside(report: Report) -> list[str]:
    """The name of the bundle that the report's was timed in turn with, if there is one: its key among the ratios."""
    other = report.data.get("beside")  # older reports do not have it
    return [other["name"]] if other else []


def times_table(series: Mapping[str, Any], others: Sequence[str] = ()) -> str:
    """Times, ratios, start-up and memory of one shape, also ratios to ``others``."""
    timed = [c for c in series["configurations"] if c["error"] is None]
    on_device = {"device": "device s", "device_and_copies": "device and copies s"}
    on_device = on_device if any(c["device"] for c in timed) else {}
    rows = []
    for c in timed:
        seconds, ratios = c["seconds"], c["ratios"]
        rows.append(
            [
                c["name"],
                _with_interval(seconds["median"], seconds),
                f"{significant(seconds['p5'])}–{significant(seconds['p95'])}",
                seconds["runs"],
                *(significant(c[key]["median"]) if c[key] else None for key in on_device),
                *(
                    _with_interval(r["value"], r) if (r := ratios.get(name)) else None
                    for name in (*(f"{t} fp32" for t in TORCH), *others)
                ),
                significant(c["start_up"]["total"]),
                mebibytes(c["host_bytes"]),
                mebibytes(c["device_bytes"]),
                "equal" if c["equal_to_torch"] else significant(c["psnr_to_torch_db"]),
            ]
        )
    header = ["backend, precision", "median s", "p5–p95 s", "runs", *on_device.values()]
    header += ["/ torch eager fp32", "/ torch channels-last fp32", *(f"/ {name}" for name in others)]
    header += ["start-up s", "host MiB", "device MiB"]
    return markdown_table([*header, "PSNR to torch dB"], rows)


def stages_table(series: Mapping[str, Any]) -> str:
    """Medians by stage of one shape."""
    timed = [c for c in series["configurations"] if c["error"] is None]
    used = [stage for stage in ("read", *STAGES, "write") if any(stage in c["stages"] for c in timed)]
    rows = [[c["name"], *(significant(c["stages"].get(stage)) for stage in used)] for c in timed]
    return markdown_table(["backend, precision", *(stage.replace("_", " ") for stage in used)], rows)


def _with_interval(value: float, interval: Mapping[str, Any]) -> str:
    text = str(significant(value))
    if interval["low"] is None:
        return text
    return f"{text} ({significant(interval['low'])}–{significant(interval['high'])})"
