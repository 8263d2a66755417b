"""What the commands on a pair share: their options, reading and checking the views, the report."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldp_runtime import __version__
from ldp_runtime.errors import ImageError

if TYPE_CHECKING:
    from ldp_runtime.deblurrer import Deblurrer
    from ldp_runtime.images.pair_files import Views
    from ldp_runtime.result import BlurMapResult


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of a command on a pair."""
    parser.add_argument("left", metavar="LEFT", help="left view: PNG, TIFF or JPEG, 8 or 16 bits")
    parser.add_argument("right", metavar="RIGHT", help="right view, of the same size and depth")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="file to write")
    add_model_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of a command that runs the networks on pairs, one or many."""
    add_json_argument(parser)
    add_backend_arguments(parser)
    parser.add_argument(
        "--axis",
        default="horizontal",
        choices=("horizontal", "vertical"),
        help="how the sensor splits its pixels: vertical for top (LEFT) and bottom (RIGHT); a camera "
        "that was turned is known from EXIF (default: %(default)s)",
    )
    parser.add_argument("--swap", action="store_true", help="take LEFT for the right view and RIGHT for the left")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only warnings and errors")


def add_backend_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares which bundle is run, and by what."""
    from ldp_runtime.backends import BACKENDS, PRECISIONS

    parser.add_argument(
        "--bundle",
        default="ldp-nano",
        metavar="NAME|DIR",
        help="model bundle: a name that `ldp info` lists, or a folder (default: %(default)s)",
    )
    parser.add_argument(
        "--backend",
        default="auto",
        choices=("auto", *BACKENDS),
        help="what runs the networks (default: auto, the fastest that works)",
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", *PRECISIONS),
        help="arithmetic of the networks (default: auto, the backend's own)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the backend's choice)")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Declares ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")


class PairReport:
    """What a command tells about its run, as lines for people or as one JSON object."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.fields: dict[str, Any] = {"version": __version__, "warnings": []}
        self._seconds: dict[str, float] = {}

    def warn(self, text: str) -> None:
        """Prints a warning on stderr and keeps it."""
        self.fields["warnings"].append(text)
        print(f"ldp: warning: {text}", file=sys.stderr)

    def stage(self, name: str) -> _Stage:
        """Times a ``with`` block."""
        return _Stage(self._seconds, name)

    def add_result(self, deblurrer: Deblurrer, result: BlurMapResult) -> None:
        """Keeps what ran and how long it took."""
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
        for note in result.notes:
            self.warn(note)

    def print(self) -> None:
        """Prints the report, as the options ask."""
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
        lines += [f"  {name:12}{value:8.3f} s" for name, value in self._seconds.items()]
        lines.append(f"  {'total':12}{sum(self._seconds.values()):8.3f} s")
        for name, value in fields.get("quality", {}).items():
            lines.append(f"{name.replace('_', ' '):12} {quality_text(value)}")
        lines += [f"wrote    {path}" for path in fields["outputs"].values()]
        return lines


class _Stage:
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = time.perf_counter() - self._start


def add_tile_argument(parser: argparse.ArgumentParser) -> None:
    """Declares ``--tile``, for commands that restore images."""
    parser.add_argument(
        "--tile",
        type=parse_tile,
        default="auto",
        metavar="auto|N|off",
        help="restore large photos in blended tiles, which bounds memory: of sides of at most N px, in tiles where the "
        "photo is too large for one piece (auto), or always in one piece (off) (default: %(default)s)",
    )


def parse_tile(text: str) -> int | str:
    """The value of ``--tile``.

    Raises:
        argparse.ArgumentTypeError: It is not of that form.
    """
    if text in ("auto", "off"):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected auto, off or a number of px, got {text!r}")
    return int(text)


def load(arguments: argparse.Namespace) -> Deblurrer:
    from ldp_runtime.deblurrer import Deblurrer

    return Deblurrer.from_bundle(
        arguments.bundle,
        backend=arguments.backend,
        precision=arguments.precision,
        threads=arguments.threads,
        tile=getattr(arguments, "tile", "auto"),  # commands that restore nothing do not have it
    )


def check_blur_map_name(path: str) -> None:
    from ldp_runtime.images.photo import image_format

    if Path(path).suffix.lower() != ".npy":
        image_format(path)


def check_outputs(inputs: list[str], outputs: list[str]) -> None:
    """Refuses, before anything is computed, what could not be written or would destroy an input."""
    from ldp_runtime.files import check_writable

    seen: dict[str, str] = {}
    for output in outputs:
        for name in inputs:
            if os.path.exists(output) and os.path.exists(name) and os.path.samefile(output, name):
                raise ImageError(f"{output} is an input, which would be lost; choose another name to write to")
        real = os.path.realpath(output)
        if real in seen:
            raise ImageError(f"{output} and {seen[real]} are one file; choose a name for each output")
        seen[real] = output
        check_writable(output)


def read_pair(arguments: argparse.Namespace, report: PairReport) -> Views:
    """Reads and checks both views; what looks wrong and their size go into the report."""
    from ldp_runtime.images.pair_files import read_views

    views = read_views(arguments.left, arguments.right, axis=arguments.axis, swap=arguments.swap)
    for warning in views.warnings:
        report.warn(warning)
    height, width = views.left.pixels.shape[:2]
    bits = 8 * views.left.pixels.dtype.itemsize
    report.fields |= {"width": width, "height": height, "bits": bits, "axis": views.axis}
    return views


def quality_text(value: dict[str, float | None]) -> str:
    psnr = "equal to the target" if value["psnr_db"] is None else f"PSNR {value['psnr_db']:.2f} dB"
    return psnr if value["ssim"] is None else f"{psnr}, SSIM {value['ssim']:.4f}"
