"""The tables of the docs, from the results."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.figure1 import tables as figure1
from benchmarks.harness.results import BenchmarkError, Report, write_text
from benchmarks.harness.tables import markdown_table, mebibytes, signed, significant, size_text
from benchmarks.latency.contenders import TORCH
from benchmarks.latency.tables import beside

_MARK = re.compile(r"<!-- bench:(?P<name>[\w-]+) -->\n(?P<body>.*?)<!-- /bench:(?P=name) -->", re.DOTALL)


def update_docs(path: Path, reports: Sequence[tuple[Path, Report]]) -> list[str]:
    """Rewrites the tables between markers; the rest of the file stays.

    Args:
        path: A Markdown file with ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``, each on a line of its own.
        reports: The results with their files, from ``read_reports``.

    Returns:
        The names of the tables.

    Raises:
        BenchmarkError: The file cannot be read or has no markers, or a table has no results or no such name.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BenchmarkError(f"{path}: cannot be read ({error.strerror}); name a Markdown file") from error
    names = [found["name"] for found in _MARK.finditer(text)]
    if not names:
        raise BenchmarkError(
            f"{path}: expected markers such as <!-- bench:latency --> and <!-- /bench:latency -->, got none; add them "
            "where the tables belong"
        )

    def table(found: re.Match[str]) -> str:
        name = found["name"]
        own = [(file, report) for file, report in reports if name in (report.kind, file.stem)]
        if not own:
            have = ", ".join(dict.fromkeys(each for file, report in reports for each in (report.kind, file.stem)))
            raise BenchmarkError(
                f"{path}: expected results of {name}, got those of {have}; measure them first, or fix the marker"
            )
        body = "\n\n".join(f"{_table_of(file, report)}\n\n{_wrapped(report.provenance())}" for file, report in own)
        return f"<!-- bench:{name} -->\n\n{body}\n\n<!-- /bench:{name} -->"

    write_text(path, _MARK.sub(table, text))
    return names


def _wrapped(text: str) -> str:
    """A sentence in lines of the docs."""
    return textwrap.fill(f"{text}.", 120, break_long_words=False, break_on_hyphens=False)


def _table_of(path: Path, report: Report) -> str:
    """The table of a result; the first one of its Markdown file where its kind has none in ``TABLES``."""
    if report.kind in TABLES:
        return TABLES[report.kind](report)
    try:
        text = path.with_suffix(".md").read_text(encoding="utf-8")
    except OSError as error:
        raise BenchmarkError(f"{path.with_suffix('.md')}: cannot be read ({error.strerror}); run it again") from error
    found = re.search(r"^\|.*(?:\n\|.*)*", text, re.MULTILINE)
    if found is None:
        raise BenchmarkError(f"{path.with_suffix('.md')}: expected a table, got none; run that benchmark again")
    return found.group()


def latency_table(report: Report) -> str:
    """Times of one bundle, every shape, with ratios to torch and to the bundle that it was timed in turn with."""
    rows, others = [], beside(report)
    for series in report.data["series"]:
        for entry in series["configurations"]:
            if entry["error"] is not None:
                continue
            ratios = [entry["ratios"].get(name, {}).get("value") for name in (*(f"{t} fp32" for t in TORCH), *others)]
            seconds = entry["seconds"]
            rows.append(
                [
                    size_text(series["shape"]),
                    entry["name"],
                    significant(seconds["median"]),
                    f"{significant(seconds['p5'])}–{significant(seconds['p95'])}",
                    *map(significant, ratios),
                    mebibytes(entry["host_bytes"]),
                ]
            )
    header = ["px", "backend, precision", "median s", "p5–p95 s", "/ torch eager fp32", "/ torch channels-last fp32"]
    header += [*(f"/ {name}" for name in others), "peak MiB"]
    return markdown_table(header, rows, "ll" + "r" * (len(header) - 2))


def parity_table(report: Report) -> str:
    """The worst of all sets, a row per backend and precision."""
    rows: list[list[object]] = []
    for entry in report.data["configurations"]:
        sets = list(entry["sets"].values())
        if entry["error"] is not None or not sets:
            rows.append([entry["name"], None, None, None, "failed"])
            continue
        psnrs = [s["psnr_db"] for s in sets if s["psnr_db"] is not None]
        rows.append(
            [
                entry["name"],
                significant(max(s["max_error"] for s in sets), 2),
                f"{min(psnrs):.1f}" if psnrs else "equal",
                f"{signed(max((s['delta_psnr_db'] for s in sets), key=abs), 4)} (limit {entry['limit_db']:g})",
                "passed" if all(s["passed"] for s in sets) else "failed",
            ]
        )
    header = ["backend, precision", "max error", "PSNR to torch fp32, dB", "change in PSNR to the target, dB", "gate"]
    return markdown_table(header, rows)


def roofline_table(report: Report) -> str:
    """The floor of the chain on each device, and which kind of figure it is."""
    rows = [
        [
            *(row["device"], row["label"], row["precision"]),
            *(significant(row[key]) for key in ("floor_ms", "fp32_accumulate_ms", "cached_ms")),
        ]
        for row in report.data["devices"]
    ]
    header = ["device", "what", "precision", "floor, ms", "FP32 accumulation, ms", "ideal cache, ms"]
    return markdown_table(header, rows, "lllrrr")


def scaling_table(report: Report) -> str:
    """Time and working memory by size."""
    rows = [
        [
            size_text(point["shape"]),
            f"{point['shape'][0] * point['shape'][1] / 1e6:.1f}",
            f"{point['backend']} {point['precision']}",
            point["tiles"],
            significant(point["seconds"]),
            mebibytes(point["working"]),
        ]
        for point in report.data["points"]
    ]
    return markdown_table(["px", "megapixels", "backend, precision", "tiles", "s", "working MiB"], rows, "lrlrrr")


TABLES: Mapping[str, Callable[[Report], str]] = {
    "latency": latency_table,
    "parity": parity_table,
    "roofline": roofline_table,
    "figure1": lambda report: figure1.table(report.data),
    "scaling": scaling_table,
}
"""Kind of results -> its table."""
