import argparse
import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.harness import ROOT
from benchmarks.harness.machine import Commit
from benchmarks.harness.results import BenchmarkError, BundleId, Report, publish
from benchmarks.latency.tables import to_markdown as latency_markdown
from benchmarks.parity import to_markdown as parity_markdown
from benchmarks.report import figures
from benchmarks.report import page as report
from benchmarks.report.tables import update_docs
from benchmarks.scaling import to_markdown as scaling_markdown

MACHINE = {"summary": "a <small> machine", "cpu": {"name": "Some CPU"}, "gpus": []}
BUNDLE = BundleId("nano", "ab" * 32, True)


def made(kind: str, data: dict[str, Any], bundle: BundleId | None = BUNDLE) -> Report:
    return Report(kind, MACHINE, "2026-01-02T03:04:05Z", Commit("cd" * 20, False), bundle, data)


def configuration(name: str, seconds: float, error: str | None = None) -> dict[str, Any]:
    backend, precision = name.split()
    head = {"name": name, "backend": backend, "precision": precision, "gpu": False, "error": error}
    if error is not None:
        return head
    interval = {"low": seconds * 0.9, "high": seconds * 1.1}
    return {
        **head,
        "device": None,
        "device_and_copies": None,
        "runs_on": "CPU",
        "seconds": {"median": seconds, "p5": seconds / 2, "p95": 2 * seconds, **interval, "runs": 9, "blocks": 3},
        "ratios": {"torch fp32": {"value": seconds / 4, **interval}},
        "stages": {"read": 0.1, "prepare": seconds / 4, "clip": seconds / 4, "deblur": seconds / 2, "write": 0.1},
        "start_up": {"total": 1.5},
        "host_bytes": 123 * 2**20,
        "device_bytes": None,
        "psnr_to_torch_db": 61.5,
        "equal_to_torch": False,
    }


LATENCY = made(
    "latency",
    {
        "network": "nano",
        "settings": {"threads": None, "rounds": 3, "seconds": 12.0},
        "load_average": {"before": 0.5, "after": None},
        "series": [
            {
                "shape": [h, 2 * h],
                "configurations": [
                    configuration("openvino bf16", h / 100),
                    configuration("torch fp32", h / 50),
                    configuration("onnxruntime fp16", 0, "it <broke>"),
                ],
            }
            for h in (64, 128)
        ],
        "left_out": {"tensorrt": "no GPU"},
    },
)
SET = {
    **{"pairs": 1, "max_error": 0.01, "mean_error": 0.001, "psnr_db": 63.2, "blur_logits_max_error": 0.04},
    **{"delta_psnr_db": -0.003, "worst_delta_psnr_db": -0.003, "delta_ssim": 0.0, "passed": True},
}
PARITY = made(
    "parity",
    {
        "reference": "torch fp32",
        "sets": {"sample": {"pairs": 1, "psnr_db": 29.6, "ssim": 0.92}},
        "configurations": [
            {"name": "openvino bf16", "limit_db": 0.02, "error": None, "sets": {"sample": SET}},
            {"name": "onnxruntime fp16", "limit_db": 0.01, "error": "it broke", "sets": {}},
        ],
        "failures": [],
        "left_out": {},
    },
)
ROOFLINE = made(
    "roofline",
    {
        "devices": [
            {
                "device": "RTX 4090",
                "label": "predicted floor",
                "precision": "fp16",
                "floor_ms": 9.876,
                "fp32_accumulate_ms": 11.1,
                "cached_ms": 7.2,
            }
        ]
    },
    None,
)
FIGURE1 = made(
    "figure1",
    {
        "rows": [
            {
                **{"who": who, "title": title, "weights": "the authors'", "licence": "MIT", "quoted": {"psnr": 26.66}},
                **{"seconds": seconds, "cpu_seconds": 2.0, "time_ratio": seconds, "host_bytes": 3 * 2**20},
            }
            for who, title, seconds in (("ours", "nano", 1.0), ("x", "X (Table 1)", 2.5), ("y", "Y", None))
        ],
    },
)
SCALING = made(
    "scaling",
    {
        "tile": "auto",
        "threads": None,
        "load_average": {"before": 0.5, "after": None},
        "points": [
            {
                **{"shape": [side, 2 * side], "seconds": side / 100, "stages": {}, "tiles": 4, "images": 9, "peak": 9},
                **{"working": 300 * 2**20, "backend": "openvino", "precision": "bf16"},
            }
            for side in (1000, 2000)
        ],
        "fits": {"seconds": None, "working": None},
        "seams": [],
    },
)
OTHER = made("capacity", {"anything": 1}, None)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reports")
    publish(LATENCY, latency_markdown(LATENCY), path, "latency-nano")
    publish(PARITY, parity_markdown(PARITY), path, "parity-nano")
    publish(ROOFLINE, "# Roofline\n\nA `predicted` **floor**.\n\n![plot](roofline.png)", path, "roofline")
    (path / "roofline.png").write_bytes(PNG)
    publish(FIGURE1, "# Figure 1", path, "figure1")
    publish(SCALING, scaling_markdown(SCALING), path, "scaling-nano")
    publish(OTHER, "# Capacity\n\ntext\n\n| pairs | a second |\n| --- | ---: |\n| 8 | 1.5 |\n\nmore", path, "capacity")
    (path / "evaluate-nano").mkdir()
    (path / "evaluate-nano" / "simulated-val.md").write_text("# nano on simulated\n\n- a note\n")
    (path / "notes.md").write_text("# Notes\n\ntext\n")
    (path / "notes.json").write_text('{"of": "another making"}')
    return path


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return report.to_html(report.read_reports(folder), report.other_texts(folder))


class Page(HTMLParser):
    """Collects what a browser would fetch or run, identifiers, and whether tags close."""

    VOID = ("meta", "br", "img", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.wanted: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("script", "link", "iframe", "object", "embed", "image", "foreignobject"):
            self.wanted.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name.endswith(("href", "src")) and not (value or "").startswith(("#", "data:image/png;base64,")):
                self.wanted.append(f"{name}={value}")
            if name.startswith("on"):
                self.wanted.append(name)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(html: str) -> None:
    page = Page(html)
    assert page.wanted == []
    assert page.open == []
    assert len(page.ids) == len(set(page.ids)) > 50
    assert not re.search(r"@import|url\((?!#)", html)
    for reference in re.findall(r'(?:href="#|url\(#)([^")]+)', html):
        assert reference in page.ids
    assert html.count("<svg") == 1 + 2 + 1 + 1  # quality, stages of two shapes, scaling, of sizes
    assert f'<img alt="plot" src="data:image/png;base64,{base64.b64encode(PNG).decode()}">' in html


def test_the_page_shows_each_result_with_its_provenance(html: str) -> None:
    sections = [html.index(title) for title in ("Latency of nano", "Parity of nano", "<h2>Roofline", "<h2>Figure 1")]
    assert sections == sorted(sections)
    assert html.count("a &lt;small&gt; machine; cdcdcdcdcdcd; 2026-01-02T03:04:05Z.") == 6
    assert "onnxruntime fp16 failed: it &lt;broke&gt;" in html
    assert "<small>" not in html
    assert "<code>predicted</code> <b>floor</b>" in html
    assert "Quoted from the paper: DPD-blur, RTX 4090" in html
    assert "Measured here: the motorcycle sample" in html
    assert "nano, openvino bf16, 128x256 px" in html
    for method in ("K3DN", "Restormer", "Ours (Small)", "Ours (Large)"):
        assert method in html


def test_the_contents_lead_to_every_section(html: str) -> None:
    contents = re.findall(r'<li><a href="#(\w+)">(.*?)</a></li>', html)
    assert [title for _, title in contents] == [
        *("Latency of nano", "Parity of nano with torch fp32", "Roofline", "Figure 1", "Scaling of nano", "Capacity"),
        *("nano on simulated", "Notes"),
    ]
    for key, title in contents:
        assert f'<section id="{key}">\n<h2>{title}</h2>' in html


def test_the_page_is_made_for_small_screens_too(html: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert html.count("<svg") == html.count('<div class="scroll figure"><svg')
    assert '<td>8</td><td class="r">1.5</td>' in html


def test_a_damaged_result_is_an_error(folder: Path, tmp_path: Path) -> None:
    assert [path.name for path in report.other_texts(folder)] == ["simulated-val.md", "notes.md"]
    (tmp_path / "latency.json").write_text("{")
    with pytest.raises(BenchmarkError, match="expected the JSON of a benchmark"):
        report.read_reports(tmp_path)


def test_a_figure_is_the_same_each_time() -> None:
    series = LATENCY.data["series"][0]
    assert figures.stage_bars(LATENCY, series, "k") == figures.stage_bars(LATENCY, series, "k")


def test_without_a_trained_bundle_nothing_is_plotted_as_quality() -> None:
    random = made("latency", dict(LATENCY.data), BundleId("nano", "ab" * 32, False))
    scored = made("parity", dict(PARITY.data), BundleId("nano", "ab" * 32, False))
    svg = figures.quality_and_time([random], [scored])
    assert "no trained bundle was measured" in svg
    other = made("parity", dict(PARITY.data), BundleId("nano", "cd" * 32, True))
    assert "no trained bundle was measured" in figures.quality_and_time([LATENCY], [other])


DOCS = """\
# Title

text before

<!-- bench:latency -->
old | figures
<!-- /bench:latency -->

between

<!-- bench:parity -->
<!-- /bench:parity -->
<!-- bench:roofline -->

<!-- /bench:roofline -->
<!-- bench:figure1 -->
<!-- /bench:figure1 -->
<!-- bench:scaling-nano -->
<!-- /bench:scaling-nano -->
<!-- bench:capacity -->
<!-- /bench:capacity -->
after
"""


def test_the_tables_are_written_between_their_markers(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "docs.md"
    path.write_text(DOCS)
    reports = report.read_reports(folder)
    names = ["latency", "parity", "roofline", "figure1", "scaling-nano", "capacity"]
    assert update_docs(path, reports) == names
    text = path.read_text(encoding="utf-8")
    assert "old" not in text
    assert text.startswith("# Title\n\ntext before\n\n<!-- bench:latency -->\n\n| px |")
    assert text.endswith("<!-- /bench:capacity -->\nafter\n")
    assert "| 2000x4000 | 8.0 | openvino bf16 | 4 | 20.0 | 300 |" in text
    assert "<!-- bench:capacity -->\n\n| pairs | a second |\n| --- | ---: |\n| 8 | 1.5 |\n\na <small>" in text
    assert "\nbetween\n" in text
    assert "| 128x256 | openvino bf16 | 1.28 | 0.640–2.56 | 0.320 | – | 123 |" in text
    assert "| openvino bf16 | 0.010 | 63.2 | -0.0030 (limit 0.02) | passed |" in text
    assert "| onnxruntime fp16 | – | – | – | failed |" in text
    assert "| RTX 4090 | predicted floor | fp16 | 9.88 |" in text
    assert "| X (Table 1) | the authors' | MIT | 26.66 | 2.50 | 2.00 | 2.50 | 3 |" in text
    assert "| Y | the authors' | MIT | 26.66 | failed |" in text
    assert text.count("a <small> machine; cdcdcdcdcdcd; 2026-01-02T03:04:05Z.") == 6
    update_docs(path, reports)
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# Title\n", "expected markers such as <!-- bench:latency -->"),
        ("<!-- bench:speed -->\n<!-- /bench:speed -->\n", "expected results of speed, got those of latency"),
        ("<!-- bench:roofline -->\n<!-- /bench:roofline -->\n", "results of roofline, got those of latency, l-nano"),
        ("<!-- bench:x -->\n<!-- /bench:x -->\n", r"x\.md: expected a table, got none"),
    ],
)
def test_a_file_that_cannot_be_filled_stays_as_it_is(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "docs.md"
    path.write_text(text)
    (tmp_path / "x.md").write_text("# No table")
    reports = [(tmp_path / "l-nano.json", LATENCY), (tmp_path / "x.json", made("x", {}))]
    with pytest.raises(BenchmarkError, match=words):
        update_docs(path, reports)
    assert path.read_text(encoding="utf-8") == text
    with pytest.raises(BenchmarkError, match="cannot be read"):
        update_docs(tmp_path / "missing.md", reports)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, docs = tmp_path / "results", tmp_path / "docs.md"
    publish(ROOFLINE, "# Roofline", folder, "roofline")
    docs.write_text("<!-- bench:roofline -->\nold\n<!-- /bench:roofline -->\n")
    page = tmp_path / "new" / "page.html"
    assert main(["report", "--results", str(folder), "-o", str(page), "--update-docs", str(docs)]) == 0
    assert f"wrote {page}" in capsys.readouterr().out
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "old" not in docs.read_text(encoding="utf-8")
    assert main(["report", "--results", str(tmp_path / "nothing")]) == 2
    assert "expected results in" in capsys.readouterr().err


def test_the_page_is_built_and_the_docs_are_updated_only_if_asked_to() -> None:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    arguments = parser.parse_args([])
    assert arguments.update_docs is None
    assert arguments.output == ROOT / "build" / "report.html"
    assert parser.parse_args(["--update-docs"]).update_docs == ROOT / "docs" / "benchmarks.md"
