"""Restoring at a smaller scale, where blur fits the model, and bringing the result back to full size.

Blur in px grows with the size of a photo, and a network knows the radii that it was trained on. The small restoration
says how light changes where the photo is blurred, as far as several of them agree. The photo's own pixels stay where it
is sharp, and the detail that it has beyond its reduced copy is added everywhere, as far as both views have it in
common: that is detail, the rest is noise.

A photo is sharp where its views are alike although they have something to differ by. That is judged at full size and
pixel by pixel: a sharp edge before a blurred background is alike up to the edge, and any mean over a window would mix
it with what lies behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_NOISE = 5.0  # times the variance of noise: a square difference of the views that says nothing
_FLAT = 1e-5  # square of a slope that says nothing
_ALIKE = (0.3, 1.0)  # px of disparity: up to which views are alike, and from which they are not
_ALONG = (0.1, 0.3)  # share of the slopes that lies along the disparity: the rest shows none
_FINE = (0.1, 0.3)  # energy of the detail that the reduced copy lacks over that of its slopes; 0 where blurred
_TEXTURE = (2.5e-5, 1e-4)  # square of a slope: below there is nothing to restore
_DOUBT = 4.0  # weight of what restorations do not agree on beside what they change
_GAPS = 7  # px: views that cross within as little are not alike
_OPEN = 3  # px: as little beside what is not alike may be
_AROUND = 8.0  # px of the small pair: standard deviation of what is around a px
_AGREED = 3.0  # px of the small pair: the same of what restorations agree on
_SPREAD = 2.5  # px: the same of slopes
_LIGHT = (16, 2.0)  # the views' difference in light: px of the small pair per px of its copy, and px there
_ROWS = 256  # of the photo that are blended at a time
_MARGIN = 32  # rows of the small pair that a strip sees beyond itself: what `_AROUND` reaches

Image = NDArray[Any]
Floats = NDArray[np.float32]


def reduce_view(view: Image, n: int) -> Image:
    """A view at 1/n of its size, means of n x n px; the last row and column are repeated to a multiple of n."""
    view = _padded(np.ascontiguousarray(view, dtype=view.dtype.newbyteorder("=")), n)
    return _means(view, n)


def blend_full_size(
    restored: Sequence[Image], full: tuple[Image, Image], small: tuple[Image, Image], n: int, axis: str
) -> Image:
    """Brings small restorations of one pair back to the size of the photo.

    Args:
        restored: One or more, ``(ceil(h / n), ceil(w / n), 3)`` in the dtype of the views.
        full: The views, ``(h, w, 3)`` uint8 or uint16.
        small: The same views, as ``reduce_view`` gives them.
        n: Px of the photo per px of ``restored``.
        axis: Direction of the disparity.

    Returns:
        ``(h, w, 3)`` in the dtype of the views.
    """
    h, w = full[0].shape[:2]
    top = np.float32(np.iinfo(full[0].dtype).max)
    light, noise = _difference_in_light(*small) / top, _noise(*full)
    out = np.empty(full[0].shape, full[0].dtype.newbyteorder("="))
    for y in range(0, h, _ROWS):
        low, high = max(0, y - n * _MARGIN), min(h, y + _ROWS + n * _MARGIN)
        rows = slice(low // n, -(-high // n))
        views = [_padded(view[low:high].astype(np.float32) / top, n) for view in full]
        copies = [view[rows].astype(np.float32) / top for view in small]
        pictures = [picture[rows].astype(np.float32) / top for picture in restored]
        blended = _blend(_agreed_change(pictures, copies), views, copies, light[rows], noise, n, axis)
        count = min(_ROWS, h - y)
        strip = blended[y - low : y - low + count, :w]
        strip *= top
        out[y : y + count] = np.clip(np.rint(strip, out=strip), 0, top)
    return out


def _agreed_change(restored: list[Floats], copies: list[Floats]) -> Floats:
    """What restorations change of the small center view, less where they differ among themselves."""
    mean = np.asarray(np.mean(restored, axis=0), np.float32)
    change = np.asarray(mean - (copies[0] + copies[1]) / 2, np.float32)
    doubt = _blurred(_grey(np.mean([(each - mean) ** 2 for each in restored], axis=0)), _AGREED)
    energy = _blurred(_grey(change**2), _AGREED)
    change *= (energy / (energy + np.float32(_DOUBT) * doubt + np.float32(1e-9)))[..., None]
    return change


def _blend(
    change: Floats, views: list[Floats], copies: list[Floats], light: Floats, noise: float, n: int, axis: str
) -> Floats:
    """A strip of the blend, in [0, 1]: views ``(n a, n b, 3)``, the rest ``(a, b, 3)`` and ``light`` ``(a, b)``."""
    details = [view - _enlarged(copy, n) for view, copy in zip(views, copies, strict=True)]
    common = _blurred(_means(_grey(details[0] * details[1]), n), 1.0)
    power = _blurred(_means(_grey(details[0] ** 2 + details[1] ** 2) / 2, n), 1.0)
    sharp = _sharpness(views, copies, common, light, noise, n, axis)
    own = 1 - np.maximum(common, 0) / (power + np.float32(1e-7))
    blurred = 1 - sharp
    blend = np.asarray((views[0] + views[1]) / 2, np.float32)
    blend -= (_enlarged(own, n) * blurred)[..., None] * (details[0] + details[1]) / 2
    blend += _enlarged(change, n) * blurred[..., None]
    return blend


def _sharpness(
    views: list[Floats], copies: list[Floats], common: Floats, light: Floats, noise: float, n: int, axis: str
) -> Floats:
    """How sure it is that the photo is sharp, 0 to 1, a map at full size."""
    unlike, along, across = _unlike(views, _enlarged(light, n), noise, axis)
    # Blurred views cross where one is as bright as the other: such lines are closed, and the px beside an edge opened.
    closed = cv2.morphologyEx(unlike, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_GAPS, _GAPS)))
    opened = np.asarray(cv2.erode(closed, np.ones((_OPEN, _OPEN), np.uint8)), np.float32)
    slopes = along + across
    alike = 1 - _step(np.sqrt(opened / (along + np.float32(_FLAT))), *_ALIKE)
    # What lies along the disparity looks alike in any case: its own detail has to show it, or what is around it.
    unlike_small, along_small, across_small = _unlike(copies, light, noise / n**2, axis)
    fine = _step(common / (along_small + across_small + np.float32(_FLAT)), *_FINE)
    wide, known = (_blurred(values, _AROUND) for values in (unlike_small, along_small))
    around = 1 - _step(n * np.sqrt(wide / (known + np.float32(_FLAT))), *_ALIKE)
    around *= _step(known, *_TEXTURE)
    shown = np.maximum(_step(along / (slopes + np.float32(_FLAT)), *_ALONG), _enlarged(np.maximum(fine, around), n))
    return np.asarray(alike * np.maximum(shown, 1 - _step(slopes, *_TEXTURE)), np.float32)


def _unlike(pair: list[Floats], light: Floats, noise: float, axis: str) -> tuple[Floats, Floats, Floats]:
    """Square difference of two views without noise, and mean squares of the slopes along and across the disparity."""
    left, right = (_grey(view) for view in pair)
    difference = left - right - light
    unlike = np.maximum(difference * difference - np.float32(_NOISE * noise), 0)
    return unlike, *_slopes((left + right) / 2, axis)


def _slopes(grey: NDArray[Any], axis: str) -> tuple[Floats, Floats]:
    """Mean squares of the slopes along and across the disparity."""
    x, y = (_blurred(np.square(cv2.Sobel(grey, cv2.CV_32F, dx, 1 - dx, scale=1 / 8)), _SPREAD) for dx in (1, 0))
    return (x, y) if axis == "horizontal" else (y, x)


def _difference_in_light(left: Image, right: Image) -> Floats:
    """What one view is brighter than the other over a wide area, ``(a, b)`` in their range; that is no disparity."""
    px, spread = _LIGHT
    h, w = left.shape[:2]
    size = max(1, w // px), max(1, h // px)
    wide = [_grey(cv2.resize(view, size, interpolation=cv2.INTER_AREA).astype(np.float32)) for view in (left, right)]
    smooth = _blurred(wide[0] - wide[1], spread)
    return np.asarray(cv2.resize(smooth, (w, h), interpolation=cv2.INTER_LINEAR), np.float32)


def _noise(left: Image, right: Image) -> float:
    """Variance of the noise of the greys' difference, for views in [0, 1].

    The views differ by their disparity too, but smoothly in most places: half of all second differences are noise.
    """
    rows = slice(None, None, max(1, len(left) // 256))
    greys = [_grey(view[rows].astype(np.float32)) / np.float32(np.iinfo(view.dtype).max) for view in (left, right)]
    second = np.diff(greys[0] - greys[1], n=2, axis=1)
    spread = float(np.median(np.abs(second))) / 0.6745 if second.size else 0.0
    return spread**2 / 6 + 1e-6


def _step(values: Floats, low: float, high: float) -> Floats:
    """0 up to ``low``, 1 from ``high``, smooth between."""
    t = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _grey(picture: NDArray[Any]) -> Floats:
    return np.asarray(picture @ np.full(3, 1 / 3, np.float32), np.float32)


def _blurred(picture: NDArray[Any], spread: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), spread), np.float32)


def _padded(picture: Image, n: int) -> Image:
    h, w = picture.shape[:2]
    if h % n or w % n:
        picture = cv2.copyMakeBorder(picture, 0, -h % n, 0, -w % n, cv2.BORDER_REPLICATE)
    return picture


def _means(picture: Image, n: int) -> Image:
    size = picture.shape[1] // n, picture.shape[0] // n
    small: Image = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return small


def _enlarged(small: Floats, n: int) -> Floats:
    size = small.shape[1] * n, small.shape[0] * n
    return np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_CUBIC), np.float32)
