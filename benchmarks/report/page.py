"""One self-contained page, and the README's tables, made of the benchmarks' results."""

from __future__ import annotations

import argparse
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.harness.results import REPORTS, BenchmarkError, Report, markdown_table, significant, write_text
from benchmarks.latency.bench import TORCH
from benchmarks.parity import signed
from benchmarks.report import figures

HELP = "Makes one HTML page of the results, and the README's tables."
EXAMPLES = """\
examples:
  ldp bench report
  ldp bench report --update-readme

Reads every result in benchmarks/reports and writes report.html there; Markdown
files of that folder that belong to no result come at its end. With
--update-readme the tables between <!-- bench:NAME --> and <!-- /bench:NAME -->
in README.md are written anew. NAME is a kind of results (latency, parity,
roofline, peers, scaling, engine_build ...) or one result's file without its
suffix, such as latency-ldp-nano.
"""

PAGE = "report.html"
ORDER = ("latency", "parity", "roofline", "peers", "scaling", "windows", "batch", "service", "capacity", "reliability")
"""Kinds of results in the order of the page; others come last."""


_README = Path(__file__).resolve().parents[2] / "README.md"
_MARK = re.compile(r"<!-- bench:(?P<name>[\w-]+) -->\n(?P<body>.*?)<!-- /bench:(?P=name) -->", re.DOTALL)
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
.from { color: #555; font-size: 90%; }
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("-o", "--output", type=Path, default=REPORTS, metavar="DIR", help="where the results are")
    parser.add_argument(
        "--update-readme",
        nargs="?",
        type=Path,
        const=_README,
        metavar="FILE",
        help="also write the tables of a Markdown file anew (default: the repository's README.md)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes the page, and the README's tables if asked for.

    Raises:
        BenchmarkError: There are no results, one cannot be read, or the README has no markers.
    """
    reports = read_reports(arguments.output)
    page = arguments.output / PAGE
    write_text(page, to_html(reports, other_texts(arguments.output)))
    print(f"wrote {page}")
    if arguments.update_readme is not None:
        names = update_readme(arguments.update_readme, reports)
        print(f"wrote the tables {', '.join(names)} of {arguments.update_readme}")


def read_reports(folder: Path) -> list[tuple[Path, Report]]:
    """Every result in a folder with its file, in the order of the page.

    Raises:
        BenchmarkError: There is none, or one cannot be read.
    """
    reports = [(path, Report.read(path)) for path in _results(folder)]
    if not reports:
        raise BenchmarkError(
            f"expected results in {folder}, got none; run ldp bench latency and ldp bench parity first"
        )
    rank = {kind: i for i, kind in enumerate(ORDER)}
    return sorted(reports, key=lambda item: (rank.get(item[1].kind, len(rank)), item[0].name))


def other_texts(folder: Path) -> list[Path]:
    """The Markdown files of a folder and its folders that belong to no result, as of ``ldp-export evaluate``."""
    results = {path.with_suffix(".md") for path in _results(folder)}
    return [path for path in sorted([*folder.glob("*.md"), *folder.glob("*/*.md")]) if path not in results]


def _results(folder: Path) -> list[Path]:
    """The JSON files of a folder, less those that are of another making: they have no schema, nor do they need one."""

    def is_result(path: Path) -> bool:
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return True  # and reading it will say what is wrong
        return not isinstance(value, dict) or "schema" in value

    return [path for path in sorted(folder.glob("*.json")) if is_result(path)]


def to_html(reports: Sequence[tuple[Path, Report]], texts: Sequence[Path] = ()) -> str:
    """The page.

    Args:
        reports: As ``read_reports`` gives them. Their tables come from the Markdown files beside them.
        texts: Markdown files that come after them.
    """
    of_kind = {kind: [report for _, report in reports if report.kind == kind] for kind in ("latency", "parity")}
    sections = []
    for number, (path, report) in enumerate(reports):
        key = f"r{number}"
        parts = [_markdown(path.with_suffix(".md"), report, key)]
        if report.kind == "latency":
            for i, series in enumerate(report.data["series"]):
                parts.append(figures.stage_bars(report, series, f"{key}-{i}"))
            if len(report.data["series"]) > 1:
                parts.append(figures.latency_scaling(report, key))
        if report.kind == "peers":
            parts += figures.peers_scaling(report, key)
        if report.kind == "scaling" and len(report.data["points"]) > 1:
            parts.append(figures.size_scaling(report, key))
        sections.append((key, "\n".join(map(_figure_box, parts))))
    for number, path in enumerate(texts):
        blocks = re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip())
        key = f"t{number}"
        sections.append((key, "\n".join(_block(b, path.parent, f"{key}-{i}", "") for i, b in enumerate(blocks))))
    contents = []
    for key, section in sections:
        title = re.search(r"<h2>(.*?)</h2>", section)
        contents.append(f'<li><a href="#{key}">{title[1] if title else key}</a></li>')
    head = [
        "<h1>LDP: benchmarks</h1>",
        _paragraph(
            "Each section says which bundle, machine and commit its figures come from. Quoted figures are the paper's; "
            "predicted floors are computed, not measured; everything else was measured on the machine that is named."
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
    """A figure in a box that scrolls where the screen is narrow; what is no figure stays as it is."""
    return f'<div class="scroll figure">{part}</div>' if part.startswith("<svg") else part


# --- README ---------------------------------------------------------------------------------------------------


def update_readme(path: Path, reports: Sequence[tuple[Path, Report]]) -> list[str]:
    """Writes the tables between markers anew; what stands elsewhere is not touched.

    Args:
        path: A Markdown file with ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``, each on a line of its own.
        reports: The results with their files, as ``read_reports`` gives them.

    Returns:
        The names of the tables that were written.

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
        body = "\n\n".join(f"{_table_of(file, report)}\n\n{report.provenance()}." for file, report in own)
        return f"<!-- bench:{name} -->\n\n{body}\n\n<!-- /bench:{name} -->"

    write_text(path, _MARK.sub(table, text))
    return names


def _table_of(path: Path, report: Report) -> str:
    """The README's table of a result; the first of its Markdown file where its kind has none of its own."""
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
    """Times of one bundle, every shape, with ratios to torch."""
    rows = []
    for series in report.data["series"]:
        for entry in series["configurations"]:
            if entry["error"] is not None:
                continue
            ratios = [entry["ratios"].get(f"{name} fp32", {}).get("value") for name in TORCH]
            seconds = entry["seconds"]
            rows.append(
                [
                    f"{series['shape'][0]}x{series['shape'][1]}",
                    entry["name"],
                    significant(seconds["median"]),
                    f"{significant(seconds['p5'])}–{significant(seconds['p95'])}",
                    *map(significant, ratios),
                    f"{entry['host_bytes'] / 2**20:.0f}",
                ]
            )
    header = ["px", "backend, precision", "median s", "p5–p95 s", "/ torch eager fp32", "/ torch channels-last fp32"]
    return markdown_table([*header, "peak MiB"], rows, "llrrrrr")


def parity_table(report: Report) -> str:
    """The worst of all sets, a row a backend and precision."""
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
    """The floor of the chain on each device, with what kind of figure it is."""
    rows = [
        [row["device"], row["label"], row["precision"], significant(row["fused_ms"])] for row in report.data["devices"]
    ]
    return markdown_table(["device", "what", "precision", "floor, ms"], rows, "lllr")


def peers_table(report: Report) -> str:
    """Every network at every size, with ratios to ours; accuracy is quoted."""
    networks = {network["who"]: network for network in report.data["networks"]}
    rows: list[list[object]] = []
    for row in report.data["rows"]:
        network = networks[row["who"]]
        rows.append(
            [
                network["title"],
                f"{network['parameters'] / 1e6:.1f} M",
                f"{row['backend']} {row['precision']}",
                f"{row['size'][0]}x{row['size'][1]}",
                significant(row["seconds"]) or "failed",
                significant(row["time_ratio"]),
                significant(row["memory_ratio"]),
                network["quoted"] and network["quoted"]["psnr"],
            ]
        )
    header = ["network", "parameters", "backend, precision", "px", "median s", "times ours", "times our peak memory"]
    return markdown_table([*header, "PSNR dB, quoted"], rows, "lrllrrrr")


def scaling_table(report: Report) -> str:
    """Time and working memory by size."""
    rows = [
        [
            f"{point['shape'][0]}x{point['shape'][1]}",
            f"{point['shape'][0] * point['shape'][1] / 1e6:.1f}",
            f"{point['backend']} {point['precision']}",
            point["tiles"],
            significant(point["seconds"]),
            f"{point['working'] / 2**20:.0f}",
        ]
        for point in report.data["points"]
    ]
    return markdown_table(["px", "megapixels", "backend, precision", "tiles", "s", "working MiB"], rows, "lrlrrr")


TABLES: Mapping[str, Callable[[Report], str]] = {
    "latency": latency_table,
    "parity": parity_table,
    "roofline": roofline_table,
    "peers": peers_table,
    "scaling": scaling_table,
}
"""Kind of results -> the README's table."""


# --- Markdown to HTML -----------------------------------------------------------------------------------------


def _markdown(path: Path, report: Report, key: str) -> str:
    """The Markdown file of a result as HTML, its SVG figures inside; a line on the result where there is no file."""
    if not path.is_file():
        return f"<h2>{html.escape(report.kind)}</h2>\n" + _paragraph(f"{report.provenance()}.", "from")
    blocks = re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip())
    last = len(blocks) - 1
    return "\n".join(
        _block(block, path.parent, f"{key}-{i}", "from" if i == last else "") for i, block in enumerate(blocks)
    )


def _block(block: str, folder: Path, key: str, css: str) -> str:
    """A heading, table, list, picture or paragraph."""
    lines = block.strip().splitlines()
    if picture := re.fullmatch(r"!\[[^\]]*\]\(([\w.-]+\.svg)\)", block.strip()):
        path = folder / picture[1]
        return figures.inline_svg(path.read_text(encoding="utf-8"), key) if path.is_file() else ""
    if heading := re.match(r"(#+) (.*)", lines[0]):
        level = min(len(heading[1]) + 1, 6)
        rest = "\n".join(lines[1:])
        title = f"<h{level}>{_inline(heading[2])}</h{level}>"
        return title + (f"\n{_block(rest, folder, key, css)}" if rest.strip() else "")
    if lines[0].startswith("|"):
        return _table(lines)
    if lines[0].startswith(("* ", "- ")):
        items = re.split(r"\n[*-] ", block.strip()[2:])
        return "<ul>\n" + "\n".join(f"<li>{_inline(item)}</li>" for item in items) + "\n</ul>"
    return _paragraph(block, css)


def _table(lines: Sequence[str]) -> str:
    def split(line: str) -> list[str]:
        return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]

    right = [mark.endswith(":") for mark in split(lines[1])]

    def row(line: str, tag: str) -> str:
        cells = []
        for number, cell in enumerate(split(line)):
            css = ' class="r"' if number < len(right) and right[number] else ""
            cells.append(f"<{tag}{css}>{_inline(cell.replace(chr(92) + '|', '|'))}</{tag}>")
        return f"<tr>{''.join(cells)}</tr>"

    body = "\n".join(row(line, "td") for line in lines[2:])
    return f'<div class="scroll"><table>\n{row(lines[0], "th")}\n{body}\n</table></div>'


def _paragraph(text: str, css: str = "") -> str:
    attribute = f' class="{css}"' if css else ""
    return f"<p{attribute}>{_inline(text)}</p>"


def _inline(text: str) -> str:
    """Text with ``code``, **bold** and [links](…), of which the text stays."""
    escaped = html.escape(re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text), quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", escaped)
