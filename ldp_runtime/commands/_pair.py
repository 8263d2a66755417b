"""What the commands on one pair share: their options, reading and checking the views, the report."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ldp_runtime import __version__
from ldp_runtime.commands.options import (
    add_backend_arguments,
    add_bundle_argument,
    add_check_arguments,
    add_json_argument,
    add_view_arguments,
)
from ldp_runtime.errors import ImageError

if TYPE_CHECKING:
    from ldp_runtime.deblurrer import Deblurrer
    from ldp_runtime.images.pair_files import Views
    from ldp_runtime.result import Result


def add_view_files(parser: argparse.ArgumentParser) -> None:
    """Declares the files of the views."""
    parser.add_argument(
        "left",
        metavar="LEFT|PHOTO",
        help="left view (PNG, TIFF, JPEG, PGM or PPM), or a file that holds both views: a dual-pixel raw photo (CR2, "
        "CR3, DNG), a TIFF of two pages, or a picture for --side-by-side",
    )
    parser.add_argument("right", nargs="?", metavar="RIGHT", help="right view, of the same size and depth")


def add_pair_arguments(parser: argparse.ArgumentParser, *, restores: bool) -> None:
    """Declares the options of a command on a pair; ``--scale`` where it restores it."""
    add_view_files(parser)
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="file to write")
    add_json_argument(parser)
    add_bundle_argument(parser)
    add_backend_arguments(parser)
    add_view_arguments(parser)
    add_check_arguments(parser, scale=restores)


class PairReport:
    """The report of a command on its run: lines for people or one JSON object."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.fields: dict[str, Any] = {"version": __version__, "warnings": []}
        self._seconds: dict[str, float] = {}

    def warn(self, text: str) -> None:
        """Prints a warning on stderr and keeps it."""
        self.fields["warnings"].append(text)
        print(f"ldp: warning: {text}", file=sys.stderr)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a ``with`` block."""
        begin = time.perf_counter()
        yield
        self._seconds[name] = time.perf_counter() - begin

    def add_result(self, deblurrer: Deblurrer, result: Result) -> None:
        """Keeps what ran and its times."""
        self.fields |= {
            "bundle": deblurrer.bundle.manifest.name,
            "bundle_path": str(deblurrer.bundle.path),
            "backend": result.backend,
            "precision": result.precision,
            "reason": deblurrer.reason,
        }
        self._seconds |= result.timings
        for name, why in deblurrer.passed_over.items():
            self.warn(f"{name} was passed over, {result.backend} ran: {why}")
        if result.check is not None:
            self.fields["check"] = result.check.to_json()
            self.fields["axis"] = result.check.correction.axis if result.check.mode == "auto" else result.check.axis
        self.fields["scale"] = result.scale
        for note in result.notes:
            self.warn(note)

    def print(self) -> None:
        """Prints the report as the options ask."""
        self.fields["seconds"] = {name: round(value, 6) for name, value in self._seconds.items()}
        if self._arguments.json:
            print(json.dumps(self.fields, indent=2, allow_nan=False))
        elif not self._arguments.quiet:
            print("\n".join(self._lines()))

    def _lines(self) -> list[str]:
        fields = self.fields
        lines = [
            f"bundle   {fields['bundle']} ({fields['bundle_path']})",
            f"backend  {fields['reason']}",
            "pair     {width} x {height} px, {bits} bits, {axis} disparity".format(**fields),
        ]
        lines += [f"note     {note}" for note in fields["notes"]]
        lines += [f"  {name:12}{value:8.3f} s" for name, value in self._seconds.items()]
        lines.append(f"  {'total':12}{sum(self._seconds.values()):8.3f} s")
        for name, value in fields.get("quality", {}).items():
            lines.append(f"{name.replace('_', ' '):12} {quality_text(value)}")
        lines += [f"wrote    {path}" for path in fields["outputs"].values()]
        return lines


def check_outputs(inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Refuses, before any work, outputs that could not be written or would destroy an input."""
    from ldp_runtime.files import check_writable

    seen: dict[str, str] = {}
    for output in outputs:
        real = os.path.realpath(output)  # what is written: `missing/../left.png` is there only by this name
        for name in inputs:
            if os.path.exists(real) and os.path.exists(name) and os.path.samefile(real, name):
                raise ImageError(f"{output} is an input, which would be lost; choose another name to write to")
        if real in seen:
            raise ImageError(f"{output} and {seen[real]} are one file; choose a name for each output")
        seen[real] = output
        check_writable(output)


def view_files(arguments: argparse.Namespace) -> list[str]:
    """The files of the views: two, or one that holds both."""
    return [name for name in (arguments.left, arguments.right) if name is not None]


def read_view_files(arguments: argparse.Namespace) -> Views:
    """Reads and checks both views."""
    from ldp_runtime.images.pair_files import read_views

    return read_views(
        arguments.left,
        arguments.right,
        axis=arguments.axis,
        swap=arguments.swap,
        side_by_side=arguments.side_by_side,
    )


def read_pair(arguments: argparse.Namespace, report: PairReport) -> Views:
    """Reads and checks both views; warnings and their size go into the report."""
    views = read_view_files(arguments)
    report.fields["notes"] = list(views.notes)
    for warning in views.warnings:
        report.warn(warning)
    height, width = views.left.pixels.shape[:2]
    bits = 8 * views.left.pixels.dtype.itemsize
    report.fields |= {"width": width, "height": height, "bits": bits, "axis": views.axis}
    return views


def quality_text(value: dict[str, float | None]) -> str:
    """PSNR and SSIM for people."""
    psnr = "equal to the target" if value["psnr_db"] is None else f"PSNR {value['psnr_db']:.2f} dB"
    return psnr if value["ssim"] is None else f"{psnr}, SSIM {value['ssim']:.4f}"
