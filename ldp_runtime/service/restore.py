"""From the files of a client, two or one that holds both views, to the files of their restoration."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from ldp_runtime.errors import ImageError
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.pair_files import Views, claimed_size, decode_views, encode_blur_map
from ldp_runtime.images.photo import check_format, encode_photo
from ldp_runtime.images.pixel_capture import CAPTURE_NAMES
from ldp_runtime.images.quality import center_view
from ldp_runtime.images.visualize import to_uint8
from ldp_runtime.paircheck.modes import Mode
from ldp_runtime.service.jobs import Job, JobQueue
from ldp_runtime.service.models import Report

if TYPE_CHECKING:
    from ldp_runtime.deblurrer import Deblurrer
    from ldp_runtime.result import Result

Axis = Literal["horizontal", "vertical"]
Format = Literal["png", "tiff", "jpeg"]
FileName = Literal["image", "blur-map", "before", "after"]

SUFFIXES: dict[Format, str] = {"png": ".png", "tiff": ".tif", "jpeg": ".jpg"}
NAMES = ("the left view", "the right view")
"""The names of the files in errors: a client's own names are not repeated."""
BOTH = "the photo"
"""The name of a file that holds both views."""


@dataclass(frozen=True)
class Upload:
    """A client's request.

    Attributes:
        left: Content of the file of the left view, or of one that holds both.
        right: Content of the file of the right view; None if ``left`` holds both.
        axis: How the sensor splits its pixels, as for ``read_views``.
        swap: The files are exchanged.
        format: Of the restored image.
        side_by_side: ``left`` is a picture with both views abreast.
        check: What the check of the pair does; None is what the service was started with.
        is_pixel_capture: The files have the names of a Pixel capture.
    """

    left: bytes
    right: bytes | None
    axis: Axis = "horizontal"
    swap: bool = False
    format: Format = "png"
    side_by_side: bool = False
    check: Mode | None = None
    is_pixel_capture: bool = False


@dataclass(frozen=True)
class File:
    """A picture to be sent."""

    data: bytes
    format: Format = "png"


@dataclass(frozen=True)
class Restoration:
    """The outcome of an upload.

    Attributes:
        files: ``image``, in the format that was asked for, with the depth and metadata of the left view. With
            previews also ``before`` and ``after`` as every browser shows them, 8-bit PNG, and ``blur-map`` if there is
            one.
        report: How the pair was restored.
    """

    files: Mapping[str, File]
    report: Report


RestorationJob = Job["Deblurrer", Restoration]
RestorationQueue = JobQueue["Deblurrer", Restoration]


def restore(
    deblurrer: Deblurrer, job: RestorationJob, upload: Upload, *, max_pixels: int, previews: bool
) -> Restoration:
    """Restores an upload.

    Args:
        deblurrer: Of the thread that this runs in.
        job: Knows whether anyone still waits.
        upload: The pair.
        max_pixels: Largest view.
        previews: Make the pictures of the page too.

    Raises:
        ImageError: The files are no pair, are too large, or do not fit into the format.
        ProblemError: The time is over, or the client left.
        LDPError: The restoration failed.
    """
    begin = time.monotonic()
    seconds = {"wait": begin - job.submitted}
    views = _read(upload, max_pixels)
    name = "restored" + SUFFIXES[upload.format]
    check_format(name, views.left)
    seconds["read"] = time.monotonic() - begin
    job.check()
    result = deblurrer(
        views.left.pixels,
        views.right.pixels,
        axis=views.axis,
        linear=views.linear,
        check=upload.check,
        progress=job.progress,
    )
    job.check()
    begin = time.monotonic()
    files = {"image": File(encode_photo(name, replace(views.left, pixels=result.restored)), upload.format)}
    if previews:
        files |= _previews(views, result, files["image"])
    seconds |= {**result.timings, "write": time.monotonic() - begin}
    height, width = result.restored.shape[:2]
    report = Report(
        width=width,
        height=height,
        bits=8 * result.restored.dtype.itemsize,
        seconds={stage: round(value, 6) for stage, value in seconds.items()},
        bundle=deblurrer.bundle.manifest.name,
        backend=result.backend,
        precision=result.precision,
        tiles=result.tiles,
        scale=result.scale,
        blur_map=deblurrer.bundle.manifest.reads_blur_map,
        warnings=[*views.warnings, *views.notes, *result.notes],
    )
    return Restoration(files, report)


def _read(upload: Upload, max_pixels: int) -> Views:
    if upload.right is None:
        files = [(BOTH, upload.left)]
    else:
        files = list(zip(NAMES, (upload.left, upload.right), strict=True))
    views = 2 if upload.side_by_side else 1
    for name, data in files:
        if not data:
            raise ImageError(f"{name} is empty (0 bytes); choose the file again")
        width, height = claimed_size(name, data)
        if width * height > max_pixels * views:
            raise ImageError(
                f"{name} has {width} x {height} pixels; expected at most {max_pixels * views / 1e6:g} megapixels: crop "
                "or scale it, or start the service with a larger --max-megapixels"
            )
    return decode_views(
        files,
        axis=upload.axis,
        swap=upload.swap,
        side_by_side=upload.side_by_side,
        own_names=CAPTURE_NAMES if upload.is_pixel_capture else None,
    )


def _previews(views: Views, result: Result, image: File) -> dict[str, File]:
    left = views.left
    # The profile of a grey photo does not fit a colour picture; a browser needs no EXIF.
    profile = None if left.grey else left.icc_profile
    center = np.rint(center_view(left.pixels, views.right.pixels)).astype(left.pixels.dtype)
    before = encode_photo("before.png", Photo(to_uint8(center), icc_profile=profile))
    if image.format == "png" and result.restored.dtype == np.uint8 and left.alpha is None:
        after = image.data
    else:
        after = encode_photo("after.png", Photo(to_uint8(result.restored), icc_profile=profile))
    files = {"before": File(before), "after": File(after)}
    if result.blur_map is not None:
        files["blur-map"] = File(encode_blur_map("blur-map.png", result.blur_map))
    return files
