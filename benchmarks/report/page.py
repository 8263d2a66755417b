"""One self-contained page, and the tables of the docs, from the results of the benchmarks."""

from __future__ import annotations

import argparse
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import REPORTS, ROOT
from benchmarks.harness.results import BenchmarkError, Report, write_text
from benchmarks.report import figures
from benchmarks.report.html import markdown_to_html, paragraph
from benchmarks.report.tables import update_docs

EXAMPLES = """\
examples:
  python -m benchmarks report
  python -m benchmarks report --update-docs

Reads every result of a folder and makes one page of them; Markdown files of that
folder that belong to no result go to its end. --update-docs rewrites the tables
between <!-- bench:NAME --> and <!-- /bench:NAME --> of docs/benchmarks.md. NAME
is a kind of results (latency, parity, roofline, figure1, scaling, engine_build ...)
or one result's file without its suffix, such as latency-ldp-nano.
"""

PAGE = ROOT / "build" / "report.html"
DOCS = ROOT / "docs" / "benchmarks.md"
ORDER = (
    *("latency", "parity", "roofline", "figure1", "scaling", "windows", "batch", "service", "capacity", "reliability"),
)
"""Kinds of results in the order of the page; others are last."""

_STYLE = """\
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222;
  background: #fff; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 2.5em; border-top: 2px solid #222; padding-top: .5em; }
table { border-collapse: collapse; margin: 1em 0; font-size: 90%; }
th, td { border-bottom: 1px solid #ccc; padding: .2em .6em; text-align: left; vertical-align: top; }
th { vertical-align: bottom; }
.r { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.r { white-space: normal; }
.scroll { overflow-x: auto; }
.figure svg { width: 60em; max-width: none; height: auto; display: block; }
@media (min-width: 62em) { .figure svg { max-width: 100%; } }
nav ul { columns: 22em; padding-left: 1.2em; }
img { max-width: 100%; }
.from { color: #555; font-size: 90%; }
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--results", type=Path, default=REPORTS, metavar="DIR", help="where the results are (default: %(default)s)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=PAGE, metavar="FILE", help="the page (default: %(default)s)"
    )
    parser.add_argument(
        "--update-docs",
        nargs="?",
        type=Path,
        const=DOCS,
        metavar="FILE",
        help="also rewrite the tables of a Markdown file (default: docs/benchmarks.md)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes the page, and the tables of the docs if asked to.

    Raises:
        BenchmarkError: There are no results, one cannot be read, or the Markdown file has no markers.
    """
    reports = read_reports(arguments.results)
    write_text(arguments.output, to_html(reports, other_texts(arguments.results)))
    print(f"wrote {arguments.output}")
    if arguments.update_docs is not None:
        names = update_docs(arguments.update_docs, reports)
        print(f"wrote the tables {', '.join(names)} of {arguments.update_docs}")


def read_reports(folder: Path) -> list[tuple[Path, Report]]:
    """Every result in a folder with its file, in the order of the page.

    Raises:
        BenchmarkError: There is none, or one cannot be read.
    """
    reports = [(path, Report.read(path)) for path in _results(folder)]
    if not reports:
        raise BenchmarkError(f"expected results in {folder}, got none; run the benchmarks latency and parity first")
    rank = {kind: i for i, kind in enumerate(ORDER)}
    return sorted(reports, key=lambda item: (rank.get(item[1].kind, len(rank)), item[0].name))


def other_texts(folder: Path) -> list[Path]:
    """The Markdown files of a folder, two levels deep, that belong to no result, such as an evaluation's."""
    results = {path.with_suffix(".md") for path in _results(folder)}
    return [path for path in sorted([*folder.glob("*.md"), *folder.glob("*/*.md")]) if path not in results]


def _results(folder: Path) -> list[Path]:
    """The JSON files of a folder that are results; others have no schema."""

    def is_result(path: Path) -> bool:
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return True  # reading it gives the error
        return not isinstance(value, dict) or "schema" in value

    return [path for path in sorted(folder.glob("*.json")) if is_result(path)]


def to_html(reports: Sequence[tuple[Path, Report]], texts: Sequence[Path] = ()) -> str:
    """The page.

    Args:
        reports: The value of ``read_reports``; their tables are in the Markdown files beside them.
        texts: Markdown files for the end of the page.
    """
    of_kind = {kind: [report for _, report in reports if report.kind == kind] for kind in ("latency", "parity")}
    sections = []
    for number, (path, report) in enumerate(reports):
        key = f"r{number}"
        tables = path.with_suffix(".md")
        if tables.is_file():
            parts = [markdown_to_html(tables, "from")]
        else:
            parts = [f"<h2>{html.escape(report.kind)}</h2>", paragraph(f"{report.provenance()}.", "from")]
        if report.kind == "latency":
            for i, series in enumerate(report.data["series"]):
                parts.append(figures.stage_bars(report, series, f"{key}-{i}"))
            if len(report.data["series"]) > 1:
                parts.append(figures.latency_scaling(report, key))
        if report.kind == "scaling" and len(report.data["points"]) > 1:
            parts.append(figures.size_scaling(report, key))
        sections.append((key, "\n".join(map(_figure_box, parts))))
    for number, path in enumerate(texts):
        sections.append((f"t{number}", markdown_to_html(path)))
    contents = []
    for key, section in sections:
        title = re.search(r"<h2>(.*?)</h2>", section)
        contents.append(f'<li><a href="#{key}">{title[1] if title else key}</a></li>')
    head = [
        "<h1>LDP: benchmarks</h1>",
        paragraph(
            "Each section says which bundle, machine and commit its figures come from. Quoted figures are the paper's; "
            "predicted floors are computed, not measured; everything else was measured on the named machine."
        ),
        "<nav><ul>\n" + "\n".join(contents) + "\n</ul></nav>",
    ]
    if of_kind["latency"]:
        head.append(_figure_box(figures.quality_and_time(of_kind["latency"], of_kind["parity"])))
    body = "\n".join([*head, *(f'<section id="{key}">\n{section}\n</section>' for key, section in sections)])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>LDP: benchmarks</title>\n'
        f"<style>\n{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _figure_box(part: str) -> str:
    """A figure in a box that scrolls on narrow screens; anything else as it is."""
    return f'<div class="scroll figure">{part}</div>' if part.startswith("<svg") else part
