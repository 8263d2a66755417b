"""Files that hold both views of a pair: dual-pixel raw photos, TIFFs of two pages, pictures with the views abreast."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from ldp_runtime.errors import ImageError
from ldp_runtime.images import tiff
from ldp_runtime.images.decode import Photo, decoding
from ldp_runtime.images.photo import decode_photo, decode_photos
from ldp_runtime.images.raw import develop_pair
from ldp_runtime.images.raw_container import is_raw


def both_views(name: str | os.PathLike[str], data: bytes, *, side_by_side: bool = False) -> tuple[Photo, Photo]:
    """Reads the two views of one file, the left one first.

    Args:
        name: The name in error messages; it is not opened.
        data: The content.
        side_by_side: The file is a picture whose left half is the left view and whose right half the right one.

    Raises:
        ImageError: The file cannot be read, or does not hold two views.
        LDPError: It is a raw photo, and the extra ``raw`` is not installed.
    """
    if is_raw(data):
        return develop_pair(name, data)
    if side_by_side:
        return _halves(name, decode_photo(name, data))
    if data.startswith(tiff.TIFF.signatures):
        with decoding(Path(name)):
            pages = tiff.split_pages(data)
        if len(pages) == 2:
            left, right = decode_photos([(f"{name} (page {number})", page) for number, page in enumerate(pages, 1)])
            return left, right
    raise ImageError(
        f"{name} holds one picture; expected both views: give LEFT and RIGHT, a dual-pixel raw photo, a TIFF of two "
        "pages, or a picture with the views side by side and --side-by-side"
    )


def _halves(name: str | os.PathLike[str], photo: Photo) -> tuple[Photo, Photo]:
    if photo.orientation != 1:
        raise ImageError(
            f"{name} has EXIF orientation {photo.orientation}; expected an upright picture of two views: turn it"
        )
    width = photo.pixels.shape[1]
    if width % 2:
        raise ImageError(f"{name} is {width} px wide; expected an even number, for two views of one size: crop it")

    def half(columns: slice) -> Photo:
        alpha = None if photo.alpha is None else np.ascontiguousarray(photo.alpha[:, columns])
        return replace(photo, pixels=np.ascontiguousarray(photo.pixels[:, columns]), alpha=alpha)

    return half(slice(width // 2)), half(slice(width // 2, None))
