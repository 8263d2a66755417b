"""What the commands on a pair share: their options, reading and checking the views, the report."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldp_runtime import __version__
from ldp_runtime.errors import ImageError

if TYPE_CHECKING:
    import numpy as np

    from ldp_runtime.image_io import Photo
    from ldp_runtime.pipeline import BlurMapResult, Deblurrer

MATCH_THRESHOLD = 0.5
"""Views that correlate less are taken for different photos. Of 380 pairs of unrelated photos (scikit-image's)
99 % correlate less; each photo correlates more than 0.6 with itself when one copy is shifted by 5 % of the
width, both are blurred over twice that shift, and noise of 3 % is added."""


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of a command on a pair."""
    from ldp_runtime.backends import BACKENDS, PRECISIONS

    add_json_argument(parser)
    parser.add_argument("left", metavar="LEFT", help="left view: PNG, TIFF or JPEG, 8 or 16 bits")
    parser.add_argument("right", metavar="RIGHT", help="right view, of the same size and depth")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="file to write")
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
    parser.add_argument(
        "--axis",
        default="horizontal",
        choices=("horizontal", "vertical"),
        help="how the sensor splits its pixels: vertical for top (LEFT) and bottom (RIGHT); a camera "
        "that was turned is known from EXIF (default: %(default)s)",
    )
    parser.add_argument("--swap", action="store_true", help="take LEFT for the right view and RIGHT for the left")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only warnings and errors")


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
        raise argparse.ArgumentTypeError(f"expected auto, off or a number of px, came {text!r}")
    return int(text)


def load(arguments: argparse.Namespace) -> Deblurrer:
    from ldp_runtime.pipeline import Deblurrer

    return Deblurrer.from_bundle(
        arguments.bundle,
        backend=arguments.backend,
        precision=arguments.precision,
        threads=arguments.threads,
        tile=getattr(arguments, "tile", "auto"),  # commands that restore nothing do not have it
    )


def check_blur_map_name(path: str) -> None:
    from ldp_runtime.image_io import image_format

    if Path(path).suffix.lower() != ".npy":
        image_format(path)


def check_outputs(inputs: list[str], outputs: list[str]) -> None:
    """Refuses, before anything is computed, what could not be written or would destroy an input."""
    from ldp_runtime.image_io import check_writable

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


def read_pair(arguments: argparse.Namespace, report: PairReport) -> tuple[Photo, Photo, str]:
    """Reads and checks both views.

    Returns:
        The left and the right view of the upright picture, the left with the metadata to keep; and the axis.
    """
    from dataclasses import replace

    import numpy as np

    from ldp_runtime.image_io import read_photo, upright_disparity
    from ldp_runtime.quality import view_correlation

    names = (arguments.right, arguments.left) if arguments.swap else (arguments.left, arguments.right)
    left, right = (read_photo(name) for name in names)
    if left.orientation != right.orientation:
        raise ImageError(
            f"{names[0]} has EXIF orientation {left.orientation} and {names[1]} has {right.orientation}; "
            "expected two views of one photo: give both files the same orientation tag"
        )
    check_like(names[1], right, names[0], left)
    if np.array_equal(left.pixels, right.pixels):
        report.warn(
            f"{names[0]} and {names[1]} hold the same picture, so there is no disparity to restore from; "
            "give the two views of a dual-pixel pair"
        )
    else:
        correlation = view_correlation(left.pixels, right.pixels)
        if correlation < MATCH_THRESHOLD:
            report.warn(
                f"{names[0]} and {names[1]} do not look like two views of one photo (correlation "
                f"{correlation:.2f}, expected at least {MATCH_THRESHOLD}); check that they belong together"
            )
    axis, mirrored = upright_disparity(arguments.axis, left.orientation)
    if mirrored:
        left, right = replace(left, pixels=right.pixels), replace(right, pixels=left.pixels)
    height, width = left.pixels.shape[:2]
    report.fields |= {"width": width, "height": height, "bits": 8 * left.pixels.dtype.itemsize, "axis": axis}
    return left, right, axis


def check_like(name: str, photo: Photo, other: str, expected: Photo) -> None:
    """Checks that a photo has the size and depth of another."""
    (h, w), (expected_h, expected_w) = photo.pixels.shape[:2], expected.pixels.shape[:2]
    if (h, w) != (expected_h, expected_w):
        raise ImageError(
            f"{name} is {w} x {h} px; expected {expected_w} x {expected_h} px as {other}: crop or scale "
            "neither, or all alike"
        )
    if photo.pixels.dtype != expected.pixels.dtype:
        bits, expected_bits = (8 * p.pixels.dtype.itemsize for p in (photo, expected))
        raise ImageError(f"{name} has {bits} bits; expected {expected_bits} as {other}: export all with the same depth")


def quality_text(value: dict[str, float | None]) -> str:
    psnr = "equal to the target" if value["psnr_db"] is None else f"PSNR {value['psnr_db']:.2f} dB"
    return psnr if value["ssim"] is None else f"{psnr}, SSIM {value['ssim']:.4f}"


def encode_blur_map(path: str, blur_map: np.ndarray) -> bytes:
    """Encodes a blur map ``(h, w)`` by the suffix: numbers as .npy, otherwise a colour picture."""
    import numpy as np

    from ldp_runtime.image_io import Photo, encode_photo
    from ldp_runtime.visualize import colour_blur_map

    if Path(path).suffix.lower() == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, blur_map)
        return buffer.getvalue()
    return encode_photo(path, Photo(colour_blur_map(blur_map)))
