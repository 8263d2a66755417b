"""The table of the comparison: what can be run, and what it costs here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness.tables import markdown_table, mebibytes, significant, size_text


def markdown(data: Mapping[str, Any]) -> str:
    """The report's tables, from the report's values alone."""
    failed = [f"- {row['title']}: {row['error']}." for row in data["rows"] if row["error"] is not None]
    parts = [
        "# Figure 1",
        f"Every method on the same pair of {size_text(data['size'])} px with {data['backend']} {data['precision']}; "
        "EBDB and the deconvolution after DMENet run in NumPy, and K3DN works at 1152x1792 px whatever the pair. Times "
        "and memory are measured, with random weights but for bundles; *CPU s* is the processor time of all threads. "
        "PSNR is **quoted** from the LDP paper's tables (DPD-blur) and belongs to its authors' trained weights.",
        _loaded(data),
        "![PSNR against time](figure1.png)",
        table(data),
        "Without time\n\n" + "\n".join(failed) if failed else "",
        scores_table(data),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(data: Mapping[str, Any]) -> str:
    """A row per method."""
    rows = [
        [
            row["title"],
            row["weights"],
            row["licence"],
            None if row["quoted"] is None else f"{row['quoted']['psnr']:.2f}",
            significant(row["seconds"]) or "failed",
            significant(row["cpu_seconds"]),
            significant(row["time_ratio"]),
            mebibytes(row["host_bytes"]),
        ]
        for row in data["rows"]
    ]
    header = ["network", "trained weights", "their licence", "PSNR dB, quoted"]
    times = ["s", "CPU s", f"times {data['rows'][0]['title']}", "peak MiB"]
    return markdown_table([*header, *times], rows, "lllrrrrr")


def scores_table(data: Mapping[str, Any]) -> str:
    """A row per bundle that was scored on real pairs; empty without."""
    rows = [
        [row["title"], m["pairs"], f"{m['center_psnr']:.2f}", f"{m['psnr']:.2f}", m["backend"]]
        for row in data["rows"]
        if (m := row["measured"]) is not None
    ]
    header = ["trained, on real pairs", "pairs", "center view, PSNR dB", "restored, PSNR dB", "backend"]
    return markdown_table(header, rows, "lrrrl") if rows else ""


def _loaded(data: Mapping[str, Any]) -> str:
    load = data["load_average"]
    rounds = max((row["rounds"] or 0 for row in data["rows"]), default=0)
    text = f"Medians of {rounds} {'rounds' if rounds > 1 else 'round'}"
    return f"{text}." if load is None else f"{text}; the load average was {load[0]:.1f} to {load[1]:.1f} meanwhile."
