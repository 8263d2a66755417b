"""``ldp deblur``: restores a pair."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ldp_runtime.commands._pair import (
    PairReport,
    add_pair_arguments,
    check_outputs,
    quality_text,
    read_pair,
    view_files,
)
from ldp_runtime.commands.options import add_tile_argument, require_blur_map, start_loading
from ldp_runtime.commands.progress import ProgressBar

if TYPE_CHECKING:
    from ldp_runtime.images.decode import Photo
    from ldp_runtime.images.quality import Quality
    from ldp_runtime.result import Result

HELP = "Restores a pair: everything in focus."
EXAMPLES = """\
examples:
  ldp deblur left.png right.png -o sharp.png
  ldp deblur left.tif right.tif -o sharp.tif --blur-map blur.png --compare before-after.jpg
  ldp deblur left.png right.png -o sharp.png --target truth.png --json
  ldp deblur top.png bottom.png -o sharp.png --axis vertical
  ldp deblur PHOTO.CR3 -o sharp.tif
  ldp deblur 20240101_120000_000_left.pgm 20240101_120000_000_right.pgm -o sharp.png
  ldp deblur left.jpg right.jpg -o sharp.jpg --scale 1/2

OUT has the format of its suffix (.png, .tif, .tiff, .jpg, .jpeg, .pgm, .ppm,
.pnm) and the depth, ICC profile, EXIF data, alpha and greyness of LEFT; it is
upright (the EXIF orientation is applied). An existing OUT is replaced.

A dual-pixel raw photo is split and developed as `ldp split` does it.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    add_pair_arguments(parser, restores=True)
    add_tile_argument(parser)
    parser.add_argument("--blur-map", metavar="PATH", help="also write the blur map (picture or .npy)")
    parser.add_argument("--compare", metavar="PATH", help="also write a picture of before, after and blur map")
    parser.add_argument(
        "--target",
        metavar="PATH",
        help="the sharp photo; prints PSNR and SSIM of the center view (the mean of both views) and of the "
        "restored image against it",
    )


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    from dataclasses import replace

    from ldp_runtime.files import write_files
    from ldp_runtime.images.pair_files import check_blur_map_name, encode_blur_map, read_target
    from ldp_runtime.images.photo import check_format, encode_photo, image_format
    from ldp_runtime.images.quality import against_target

    report = PairReport(arguments)
    inputs = [*view_files(arguments), *([arguments.target] if arguments.target else [])]
    outputs = [p for p in (arguments.output, arguments.blur_map, arguments.compare) if p is not None]
    image_format(arguments.output)
    if arguments.blur_map is not None:
        check_blur_map_name(arguments.blur_map)
        require_blur_map(arguments.bundle)
    if arguments.compare is not None:
        image_format(arguments.compare)
    check_outputs(inputs, outputs)

    loading = start_loading(arguments, restores=True)
    with report.stage("read"):
        views = read_pair(arguments, report)
        left, right = views.left, views.right
        check_format(arguments.output, left)
        target = read_target(arguments.target, left) if arguments.target else None
    with report.stage("load"):
        deblurrer = loading.result()
    with ProgressBar(quiet=arguments.quiet or arguments.json) as progress:
        result = deblurrer(left.pixels, right.pixels, axis=views.axis, linear=views.linear, progress=progress)
    report.add_result(deblurrer, result)
    report.fields["tiles"] = result.tiles
    del deblurrer, loading  # frees the memory of its graphs before a large photo is encoded

    quality = None
    if target is not None:
        left_, right_, target_ = (_scaled_alike(photo, result).pixels for photo in (left, right, target))
        quality = against_target(left_, right_, result.restored, target_)
    with report.stage("write"):
        contents = {arguments.output: encode_photo(arguments.output, replace(left, pixels=result.restored))}
        if arguments.blur_map is not None:
            contents[arguments.blur_map] = encode_blur_map(arguments.blur_map, result.blur_map)
        if arguments.compare is not None:
            contents[arguments.compare] = _encode_comparison(arguments.compare, left, right, result, target, quality)
        write_files(contents)
    written = {"restored": arguments.output, "blur_map": arguments.blur_map, "compare": arguments.compare}
    report.fields["outputs"] = {name: path for name, path in written.items() if path is not None}
    if quality is not None:
        report.fields["quality"] = quality
    report.print()


def _scaled_alike(photo: Photo, result: Result) -> Photo:
    """The photo, its values over the whole range where the restored image has them so."""
    from dataclasses import replace

    from ldp_runtime.paircheck.correct import full_range

    check = result.check
    if check is None or check.mode != "auto":
        return photo
    return replace(photo, pixels=full_range(photo.pixels, check.measurement.coding))


def _encode_comparison(
    path: str,
    left: Photo,
    right: Photo,
    result: Result,
    target: Photo | None,
    quality: Quality | None,
) -> bytes:
    import numpy as np

    from ldp_runtime.images.decode import Photo
    from ldp_runtime.images.photo import encode_photo
    from ldp_runtime.images.quality import center_view
    from ldp_runtime.images.visualize import colour_blur_map, comparison

    def label(name: str, key: str) -> str:
        return name if quality is None else f"{name}: {quality_text(quality[key])}"

    center = np.rint(center_view(left.pixels, right.pixels)).astype(left.pixels.dtype)
    panels = {
        label("Center view", "center_view"): center,
        label("Restored", "restored"): result.restored,
    }
    if result.blur_map is not None:
        panels["Blur map (light: blurred)"] = colour_blur_map(result.blur_map)
    if target is not None:
        panels["Target"] = target.pixels
    # The profile of a grey photo does not fit a colour picture.
    return encode_photo(path, Photo(comparison(panels), icc_profile=None if left.grey else left.icc_profile))
