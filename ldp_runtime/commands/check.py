"""``ldp check``: says what is right and wrong with a pair, and restores nothing."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from ldp_runtime import __version__
from ldp_runtime.commands._pair import add_view_files, check_outputs, read_view_files, view_files
from ldp_runtime.commands.options import add_bundle_argument, add_json_argument, add_view_arguments
from ldp_runtime.commands.progress import ProgressBar

if TYPE_CHECKING:
    from ldp_runtime.paircheck.check import PairCheck

HELP = "Checks a pair: exposure, axis, alignment, coding, size of the blur."
EXAMPLES = """\
examples:
  ldp check left.png right.png
  ldp check left.tif right.tif --json
  ldp check left.png right.png --disparity disparity.png
  ldp check PHOTO.CR3

Prints what `ldp deblur` measures before it restores a pair, what it would correct, and
at which scale it would restore it. The picture of the disparity is red where content
lies further right (or down) in RIGHT, blue where it lies further left, and grey where
there is no texture to see it by. The exit code is 0 whatever is found, unless a file
cannot be read.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    add_view_files(parser)
    parser.add_argument("--disparity", metavar="PATH", help="write a picture of the measured disparity")
    add_json_argument(parser)
    add_bundle_argument(parser)
    add_view_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    from ldp_runtime.bundle.bundle import read_manifest
    from ldp_runtime.bundle.find import find_bundle
    from ldp_runtime.images.photo import image_format, write_pixels
    from ldp_runtime.images.visualize import colour_disparity
    from ldp_runtime.paircheck.check import check_pair
    from ldp_runtime.stages.scale_choice import BLUR_RANGE, SCALES, fitting_scale

    if arguments.disparity is not None:
        image_format(arguments.disparity)
        check_outputs(view_files(arguments), [arguments.disparity])
    blur_range = read_manifest(find_bundle(arguments.bundle)).blur_range or BLUR_RANGE
    with ProgressBar(quiet=arguments.quiet or arguments.json, name="checking") as progress:
        views = read_view_files(arguments)
        progress(0.8)
        left, right = views.left.pixels, views.right.pixels
        first, second = view_files(arguments) if arguments.right is not None else ("the left view", "the right view")
        names = (second, first) if arguments.swap and arguments.right is not None else (first, second)
        check = check_pair(left, right, axis=views.axis, names=names, linear=views.linear)
        progress(0.9)
        if arguments.disparity is not None:
            shifts = check.measurement.shifts(check.correction.axis)
            write_pixels(arguments.disparity, colour_disparity(shifts.along, shifts.weight > 0, left.shape[1::-1]))
    n = fitting_scale(check.disparity, blur_range)
    scale = next(name for name, px in SCALES.items() if px == n)
    height, width = left.shape[:2]
    fields: dict[str, Any] = {
        "version": __version__,
        "width": width,
        "height": height,
        **check.to_json(),
        "warnings": list(views.warnings),
        "scale": scale,
    }
    if arguments.json:
        print(json.dumps(fields, indent=2, allow_nan=False))
    elif not arguments.quiet:
        print("\n".join([*_lines(check, fields), *(f"{'warning':12} {warning}" for warning in views.warnings)]))


def _lines(check: PairCheck, fields: dict[str, Any]) -> list[str]:
    coding = check.measurement.coding
    lines = [
        "pair         {width} x {height} px".format(**fields),
        f"coding       {'linear light' if coding.linear else 'sRGB'}, {coding.bits} of {coding.depth} bits used",
        "exposure     right view {exposure_ratio:.2f} times the light of the left".format(**fields),
        "axis         disparity {axis}, up to {disparity_px:.1f} px".format(**fields),
        "alignment    {shift_across_px:+.2f} px across the disparity".format(**fields),
        "scale        {scale}".format(**fields),
    ]
    for fault in check.faults:
        word = "refused" if fault.refused else "corrected" if fault.done else "warning"
        lines.append(f"{word:12} {fault.what}; {fault.fix}")
    return lines if check.faults else [*lines, "nothing wrong was found"]
