"""The picture of the page in the docs: the sample pair, restored by ldp-nano in a Chromium of the system."""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from benchmarks.harness import ROOT, SAMPLE
from benchmarks.harness.results import BenchmarkError
from benchmarks.harness.serving import serving

EXAMPLES = """\
examples:
  python -m benchmarks screenshot
  python -m benchmarks screenshot --dark -o build/page-dark.png
"""

_COLOURS = 256
"""Colours of the palette, dithered, which keeps the file small."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "page.png", metavar="PATH")
    parser.add_argument("--dark", action="store_true", help="the page of a dark desktop")


def run(arguments: argparse.Namespace) -> None:
    """Takes the screenshot.

    Raises:
        BenchmarkError: There is no Chromium.
    """
    executable = shutil.which("chromium")
    if executable is None:
        raise BenchmarkError("expected the program chromium, got none; install Debian's package chromium")
    with serving() as service:
        take(service.url, executable, arguments.output, dark=arguments.dark)
    print(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1000:.0f} kB)")


def take(url: str, executable: str, output: Path, *, dark: bool) -> None:
    """Restores the sample in a browser and saves a picture of the whole page."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
        )
        page = browser.new_page(
            viewport={"width": 940, "height": 820}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
        )
        page.set_default_timeout(300_000)
        page.goto(url)
        for name in ("left", "right"):
            page.locator(f"#{name}").set_input_files(SAMPLE / f"{name}.png")
        page.get_by_role("button", name="Restore").click()
        page.get_by_text("Done.").wait_for()
        page.locator("h1").click()  # no focus ring
        shown = page.screenshot(full_page=True)
        browser.close()
    picture = Image.open(io.BytesIO(shown)).convert("RGB")
    picture.quantize(palette=picture.quantize(_COLOURS), dither=Image.Dither.FLOYDSTEINBERG).save(output, optimize=True)
