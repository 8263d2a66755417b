"""One self-contained page, and the README's tables, made of the benchmarks' results."""

from __future__ import annotations

import argparse
import html
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import figures
from benchmarks.latency import TORCH
from benchmarks.parity import signed
from benchmarks.results import REPORTS, BenchmarkError, Report, markdown_table, significant, write_text

HELP = "Makes one HTML page of the results, and the README's tables."
EXAMPLES = """\
examples:
  ldp bench report
  ldp bench report --update-readme

Reads every result in benchmarks/reports and writes report.html there. With
--update-readme the tables between <!-- bench:NAME --> and <!-- /bench:NAME -->
in README.md are written anew, NAME being latency, parity, roofline or peers.
"""

PAGE = "report.html"
ORDER = ("latency", "parity", "roofline", "peers", "engine_build")
"""Kinds of results in the order of the page; others come last."""

_README = Path(__file__).resolve().parent.parent / "README.md"
_MARK = re.compile(r"<!-- bench:(?P<name>[\w-]+) -->\n(?P<body>.*?)<!-- /bench:(?P=name) -->", re.DOTALL)
_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; font-size: 90%; }
th, td { border-bottom: 1px solid #ccc; padding: .2em .6em; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; }
svg { max-width: 100%; height: auto; }
h2 { margin-top: 2.5em; border-top: 2px solid #222; padding-top: .5em; }
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
    write_text(page, to_html(reports))
    print(f"wrote {page}")
    if arguments.update_readme is not None:
        names = update_readme(arguments.update_readme, [report for _, report in reports])
        print(f"wrote the tables {', '.join(names)} of {arguments.update_readme}")


def read_reports(folder: Path) -> list[tuple[Path, Report]]:
    """Every result in a folder with its file, in the order of the page.

    Raises:
        BenchmarkError: There is none, or one cannot be read.
    """
    reports = [(path, Report.read(path)) for path in sorted(folder.glob("*.json"))]
    if not reports:
        raise BenchmarkError(
            f"expected results in {folder}, came none; run ldp bench latency and ldp bench parity first"
        )
    rank = {kind: i for i, kind in enumerate(ORDER)}
    return sorted(reports, key=lambda item: (rank.get(item[1].kind, len(rank)), item[0].name))


def to_html(reports: Sequence[tuple[Path, Report]]) -> str:
    """The page.

    Args:
        reports: As `read_reports` gives them. Their tables come from the Markdown files beside them.
    """
    of_kind = {kind: [report for _, report in reports if report.kind == kind] for kind in ("latency", "parity")}
    parts = [
        "<h1>LDP: benchmarks</h1>",
        _paragraph(
            "Each section says which bundle, machine and commit its figures come from. Quoted figures are the paper's; "
            "predicted floors are computed, not measured; everything else was measured on the machine that is named."
        ),
    ]
    if of_kind["latency"]:
        parts.append(figures.quality_and_time(of_kind["latency"], of_kind["parity"]))
    for number, (path, report) in enumerate(reports):
        key = f"r{number}"
        parts.append(_markdown(path.with_suffix(".md"), report, key))
        if report.kind == "latency":
            for i, series in enumerate(report.data["series"]):
                parts.append(figures.stage_bars(report, series, f"{key}-{i}"))
            if len(report.data["series"]) > 1:
                parts.append(figures.latency_scaling(report, key))
        if report.kind == "peers":
            parts += figures.peers_scaling(report, key)
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>LDP: benchmarks</title>\n'
        f"<style>\n{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


# --- README ---------------------------------------------------------------------------------------------------


def update_readme(path: Path, reports: Sequence[Report]) -> list[str]:
    """Writes the tables between markers anew; what stands elsewhere is not touched.

    Args:
        path: A Markdown file with `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`, each on a line of its own.
        reports: The results.

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
            f"{path}: expected markers such as <!-- bench:latency --> and <!-- /bench:latency -->, came none; add them "
            "where the tables belong"
        )

    def table(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in TABLES:
            raise BenchmarkError(
                f"{path}: expected a table, one of {', '.join(TABLES)}, came {name!r}; mend the marker"
            )
        own = [report for report in reports if report.kind == name]
        if not own:
            raise BenchmarkError(f"{path}: expected results of {name}, came none; run ldp bench {name} first")
        body = "\n\n".join(f"{TABLES[name](report)}\n\n{report.provenance()}." for report in own)
        return f"<!-- bench:{name} -->\n\n{body}\n\n<!-- /bench:{name} -->"

    write_text(path, _MARK.sub(table, text))
    return names


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


TABLES: Mapping[str, Callable[[Report], str]] = {
    "latency": latency_table,
    "parity": parity_table,
    "roofline": roofline_table,
    "peers": peers_table,
}
"""Name of a marker, which is the kind of its results -> the README's table."""


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
    def row(line: str, tag: str) -> str:
        cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
        texts = (_inline(cell.strip().replace("\\|", "|")) for cell in cells)
        return "<tr>" + "".join(f"<{tag}>{text}</{tag}>" for text in texts) + "</tr>"

    body = "\n".join(row(line, "td") for line in lines[2:])
    return f'<div class="scroll"><table>\n{row(lines[0], "th")}\n{body}\n</table></div>'


def _paragraph(text: str, css: str = "") -> str:
    attribute = f' class="{css}"' if css else ""
    return f"<p{attribute}>{_inline(text)}</p>"


def _inline(text: str) -> str:
    """Text with `code`, **bold** and [links](…), of which the text stays."""
    escaped = html.escape(re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text), quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", escaped)
