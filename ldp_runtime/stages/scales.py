"""Restoring at a smaller scale, where blur fits the model, and bringing the result back to full size.

Blur in px grows with the size of a photo, and a network knows the radii that it was trained on. So small restorations
say how light changes, and the photo keeps the detail that it has beyond its reduced copy. Noise is each view's own, so
what both views have in common is detail.

How much of a change is taken is a weight from 0 to 1, like that of a Wiener filter: the change's energy, over itself
and what speaks against it. That is the difference between the restorations, and the photo's detail: a blurred photo has
none, so where it has some it is sharp, and what a restoration changes there is its error. There is no threshold, so
there are no edges between what is taken and what is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_SHARP = 10.0  # energy of a change that is half taken, over that of detail
_CHANCE = 0.5  # of the energy of noise: what may look like detail in a window
_SPREAD = 1.5  # px: standard deviation of the window that energies are means of
_LEAST = 1e-8  # an energy that is nothing, for views in [0, 1]
_ROWS = 256  # of the photo that are blended at a time
_MARGIN = 5  # rows of the small pair that a strip sees beyond itself: 6 px of a window, and 2 rows of an enlargement

Image = NDArray[Any]
Floats = NDArray[np.float32]


def reduce_view(view: Image, n: int) -> Image:
    """A view at 1/n of its size, means of n x n px; the last row and column are repeated to a multiple of n."""
    view = _padded(np.ascontiguousarray(view, dtype=view.dtype.newbyteorder("=")), n)
    return _means(view, n)


def blend_full_size(restored: Sequence[Image], full: tuple[Image, Image], small: tuple[Image, Image], n: int) -> Image:
    """Brings small restorations of one pair back to the size of the photo.

    Args:
        restored: Two, or one, ``(ceil(h / n), ceil(w / n), 3)`` in the dtype of the views.
        full: The views, ``(h, w, 3)`` uint8 or uint16.
        small: The same views, as ``reduce_view`` gives them.
        n: Px of the photo per px of ``restored``.

    Returns:
        ``(h, w, 3)`` in the dtype of the views.
    """
    h, w = full[0].shape[:2]
    top = np.float32(np.iinfo(full[0].dtype).max)
    out = np.empty(full[0].shape, full[0].dtype.newbyteorder("="))
    for y in range(0, h, _ROWS):
        low, high = max(0, y - n * _MARGIN), min(h, y + _ROWS + n * _MARGIN)
        rows = slice(low // n, -(-high // n))
        views = [_padded(view[low:high].astype(np.float32) / top, n) for view in full]
        copies, pictures = (
            [_enlarged(each[rows].astype(np.float32) / top, n) for each in them] for them in (small, restored)
        )
        count = min(_ROWS, h - y)
        strip = _blend(pictures, views, copies)[y - low : y - low + count, :w]
        strip *= top
        out[y : y + count] = np.clip(np.rint(strip, out=strip), 0, top)
    return out


def _blend(restored: list[Floats], views: list[Floats], copies: list[Floats]) -> Floats:
    """A strip of the blend; all ``(h, w, 3)`` in [0, 1], the restorations and the reduced copies enlarged."""
    a, b = (view - copy for view, copy in zip(views, copies, strict=True))
    detail, noise = _energy(a * b), _energy((a - b) ** 2) / 2
    change = np.asarray(np.mean(restored, axis=0) - (copies[0] + copies[1]) / 2, np.float32)
    energy, doubt = _energy(change**2), _energy(np.var(restored, axis=0))  # of two: the variance of their mean
    sharp = np.float32(_SHARP) * np.maximum(detail - np.float32(_CHANCE) * noise, 0) + np.float32(_LEAST)
    weight = energy**2 / (energy**2 + energy * doubt + sharp**2)
    noisy = noise / (np.maximum(detail, 0) + noise + np.float32(_LEAST))
    blend = np.asarray((views[0] + views[1]) / 2, np.float32)
    blend += weight[..., None] * (change - noisy[..., None] * (a + b) / 2)
    return blend


def _energy(squares: NDArray[Any]) -> Floats:
    """Means of squares ``(h, w, 3)`` over the channels and a window, ``(h, w)``."""
    grey = cv2.transform(np.asarray(squares, np.float32), np.full((1, 3), 1 / 3, np.float32))
    return np.asarray(cv2.GaussianBlur(grey, (0, 0), _SPREAD), np.float32)


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
