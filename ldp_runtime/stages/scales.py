"""Restoring at a smaller scale, where blur fits the model, and bringing the result back to full size.

Blur in px grows with the size of a photo, and a network knows the radii that it was trained on. The small
restoration gives what was blurred. What the center view shows beyond its own reduced copy is added where the views
agree: a photo has such detail where it is sharp, and noise elsewhere. Nothing is switched from one picture to another,
so no seam can show.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

DETAIL, NO_DETAIL = 3.0, 8.0
"""Disparity in px up to which the detail of the center view is kept, and from which it is taken for noise."""

_NOISE = 2e-5  # mean square difference of the views that says nothing
_WINDOW = 2.5  # px of the small pair: standard deviation of what a disparity is measured over
_LIGHT = 8.0  # the same, of the differences of light that are no disparity
_ROWS = 256  # of the photo that are blended at a time
_EDGE = 4  # rows of the small pictures that interpolation sees beyond a strip

Image = NDArray[Any]
Floats = NDArray[np.float32]


def reduce_view(view: Image, n: int) -> Image:
    """A view at 1/n of its size, means of n x n px; the last row and column are repeated to a multiple of n."""
    h, w = view.shape[:2]
    view = np.ascontiguousarray(view, dtype=view.dtype.newbyteorder("="))
    if h % n or w % n:
        view = cv2.copyMakeBorder(view, 0, -h % n, 0, -w % n, cv2.BORDER_REPLICATE)
    size = view.shape[1] // n, view.shape[0] // n
    small: Image = cv2.resize(view, size, interpolation=cv2.INTER_AREA)
    return small


def blend_full_size(restored: Image, full: tuple[Image, Image], small: tuple[Image, Image], n: int, axis: str) -> Image:
    """Brings a small restoration back to the size of the photo.

    Args:
        restored: ``(ceil(h / n), ceil(w / n), 3)`` uint8 or uint16.
        full: The views, ``(h, w, 3)`` in the same dtype.
        small: The same views, as ``reduce_view`` gives them.
        n: Px of the photo per px of ``restored``.
        axis: Direction of the disparity.

    Returns:
        ``(h, w, 3)`` in the dtype of the views.
    """
    left, right = full
    h, w = left.shape[:2]
    top = np.float32(np.iinfo(left.dtype).max)
    share = _detail_share(small[0], small[1], n, axis)
    center = small[0].astype(np.float32)
    center += small[1]
    center /= 2
    out = np.empty(left.shape, left.dtype.newbyteorder("="))
    rows = _ROWS // n * n
    for y in range(0, h, rows):
        count = min(rows, h - y)
        strips = (_enlarged_rows(each, y // n, -(-count // n), n)[:count, :w] for each in (restored, center, share))
        blurred, coarse, kept = strips
        blend = left[y : y + count].astype(np.float32)
        blend += right[y : y + count]
        blend /= 2
        blend -= coarse
        blend *= kept[..., None]
        blend += blurred
        out[y : y + count] = np.clip(np.rint(blend), 0, top)
    return out


def _detail_share(left: Image, right: Image, n: int, axis: str) -> Floats:
    """How much of the center view's detail is kept, a map over the small pair.

    The views differ by about the disparity times the slope of the picture along it.
    """
    scale = np.float32(1 / np.iinfo(left.dtype).max)
    a, b = (view.mean(axis=2, dtype=np.float32) * scale for view in (left, right))
    difference = a - b
    difference -= cv2.GaussianBlur(difference, (0, 0), _LIGHT)
    slope = cv2.Sobel((a + b) / 2, cv2.CV_32F, int(axis == "horizontal"), int(axis != "horizontal"), scale=1 / 8)
    unlike, slopes = (cv2.GaussianBlur(v * v, (0, 0), _WINDOW) for v in (difference, slope))
    disparity = n * np.sqrt(np.maximum(unlike - np.float32(_NOISE), 0) / (slopes + np.float32(1e-5)))
    t = np.clip((disparity - DETAIL) / (NO_DETAIL - DETAIL), 0, 1)
    share: Floats = (1 - t * t * (3 - 2 * t)).astype(np.float32)
    return share


def _enlarged_rows(small: Image, first: int, count: int, n: int) -> Floats:
    """Rows of a small picture enlarged n times (bicubic), without the rest of it."""
    low, high = max(0, first - _EDGE), min(len(small), first + count + _EDGE)
    strip = small[low:high].astype(np.float32)
    large = cv2.resize(strip, (strip.shape[1] * n, strip.shape[0] * n), interpolation=cv2.INTER_CUBIC)
    start = (first - low) * n
    return np.asarray(large[start : start + count * n], np.float32)
