"""The two frames of a dual-pixel raw photo: black levels, whether they are what they should be, the views.

The main frame is the sum of both photodiodes of each pixel, the second frame is one of them; the other view is the sum
minus the second frame, each without its own black level.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np

ROWS = 256
"""Rows that are computed at a time, so that signed copies of a large frame are never whole in memory."""

_EDGE = 8  # px at a masked margin's inner side that light may reach, and where sensors store other things
_LEAST_MARGIN = 24
_MASKED_SPREAD = 1 / 64  # of the range: no more noise than that, or the margin is not masked
_BLACK_RANGE = 1 / 16  # of the range: most that a measured black level may differ from the file's metadata

_GRID = (64, 48)
_SAME, _HALF = (0.8, 1.25), (0.3, 0.7)
_LEAST_CORRELATION = 0.9
_LEAST_LIGHT = 1 / 256  # of the range, on average


@dataclass(frozen=True)
class Frame:
    """A raw frame.

    Attributes:
        samples: ``(h, w)`` uint16, with the margins.
        black: ``(2, 2)`` int32, the black level at each place of the colour filter's pattern from the first sample on.
        top: Rows of the upper margin.
        left: Columns of the left margin.
    """

    samples: np.ndarray
    black: np.ndarray
    top: int
    left: int


class Pairing(Enum):
    """What a second frame is to the main one; the value completes "it holds ..."."""

    DUAL_PIXEL = "both views of a dual-pixel photo"
    NONE = "one frame"
    WHOLE = "two frames of the same exposure, as a burst has them"
    OTHER = "two frames that are not a sum and one view of it"
    DARK = "frames without light"


def measured_black(samples: np.ndarray, metadata: np.ndarray, top: int, left: int, white: int) -> np.ndarray:
    """The black level of a frame: the median of its masked margin, where it has one, else the file's.

    Args:
        samples: ``(h, w)`` uint16, with the margins.
        metadata: ``(2, 2)`` int32, the file's black level, for the main frame.
        top: Rows of the upper margin.
        left: Columns of the left margin.
        white: The value at which the frame clips.

    Returns:
        ``(2, 2)`` int32.
    """
    if left >= _LEAST_MARGIN:
        margin = samples[top - top % 2 :, : left - _EDGE]
        margin = margin[:, 4:]
    elif top >= _LEAST_MARGIN:
        margin = samples[4 : top - _EDGE, left - left % 2 :]
    else:
        return metadata
    measured = np.empty((2, 2), np.int32)
    span = white - metadata
    for y in range(2):
        for x in range(2):
            low, middle, high = np.percentile(margin[y::2, x::2], (5, 50, 95))
            spread = high - low > span[y, x] * _MASKED_SPREAD
            if spread or abs(middle - metadata[y, x]) > span[y, x] * _BLACK_RANGE:
                return metadata
            measured[y, x] = round(middle)
    return measured


def pairing(main: Frame, second: Frame, white: int) -> Pairing:
    """Compares two frames, reduced, where the main one does not clip."""
    if np.array_equal(main.samples, second.samples):
        return Pairing.NONE
    small = []
    for frame in (main, second):
        light = frame.samples[frame.top :, frame.left :]
        size = tuple(min(grid, side) for grid, side in zip(_GRID, reversed(light.shape), strict=True))
        small.append(cv2.resize(light, size, interpolation=cv2.INTER_AREA).astype(np.float64) - frame.black.mean())
    span = white - float(main.black.mean())
    unclipped = small[0] < 0.9 * span
    total, one = (view[unclipped] for view in small)
    if not total.size or total.mean() < span * _LEAST_LIGHT:
        return Pairing.DARK
    ratio = one.mean() / total.mean()
    textured = min(total.std(), one.std()) > span * _LEAST_LIGHT
    if textured and np.corrcoef(total, one)[0, 1] < _LEAST_CORRELATION:
        return Pairing.OTHER
    if _SAME[0] < ratio < _SAME[1]:
        return Pairing.WHOLE
    return Pairing.DUAL_PIXEL if _HALF[0] < ratio < _HALF[1] else Pairing.OTHER


def view_rows(
    main: Frame, second: Frame, view: str, white: int, black: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """The samples of a view, encoded as the main frame is.

    Both views are clipped at half of the sum's range and doubled. Where the sum clips, the difference would be too
    small, in green first, which colours highlights: there it is half of the range.

    Args:
        main: The sum.
        second: One of the two.
        view: ``"second"``, ``"difference"``, or ``"sum"`` for the main frame as it is.
        white: The value at which the main frame clips.
        black: ``(2, 2)`` int32, the black level that the samples get, as for ``Frame``.

    Yields:
        Rows, and their samples ``(rows, w)`` uint16.
    """
    height, width = main.samples.shape
    tile = (ROWS // 2, width // 2 + 1)
    main_black, second_black, target = (np.tile(b, tile)[:, :width] for b in (main.black, second.black, black))
    for start in range(0, height, ROWS):
        rows = slice(start, min(start + ROWS, height))
        here = slice(0, rows.stop - start)
        span = white - target[here]
        total = main.samples[rows].astype(np.int32) - main_black[here]
        if view == "sum":
            light = total
        else:
            light = second.samples[rows].astype(np.int32) - second_black[here]
            if view == "difference":
                light = np.where(main.samples[rows] >= white, span, total - light)
            light *= 2
        yield rows, (light.clip(0, span) + target[here]).astype(np.uint16)
