"""The stages of the pipeline on the host: what the networks are fed, and the pixels that come of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.errors import NumericsError
from ldp_runtime.stages.blur_map import CANVASES
from ldp_runtime.stages.geometry import reflect_indices

FIX_NUMERICS = "use precision fp32, and if that does not help the bundle is at fault"

LARGEST_FEATURE = 1e17
"""Squares of larger features may overflow in FP32 when they are summed; their direction would be lost."""

STRIP_BYTES = 2**20
"""What is worked on at a time, so that the second step over a strip finds it in the cache. Two threads took longer than
one: a step takes little more than handing Python's lock over."""

Image = NDArray[Any]


class PaddedPair:
    """A pair padded bottom and right (reflect-101), of which regions are made when they are needed.

    It holds the views as they are, so its memory does not grow with the image.

    Attributes:
        size: ``(H, W)`` with the padding, in px.
    """

    size: tuple[int, int]

    def __init__(self, left: Image, right: Image, size: tuple[int, int]) -> None:
        """Takes the views ``(h, w, 3)`` uint8 or uint16, disparity along x, and the padded size ``(H, W)`` in px."""
        h, w = left.shape[:2]
        self._views = left, right
        self._set(reflect_indices(h, size[0]), reflect_indices(w, size[1]))

    def _set(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> None:
        self._rows, self._columns = rows, columns
        self.size = len(rows), len(columns)

    def extended(self, size: tuple[int, int]) -> PaddedPair:
        """The padded pair padded once more, to ``size`` (reflect-101 of what is there)."""
        longer = PaddedPair(*self._views, self.size)
        rows, columns = (reflect_indices(n, more) for n, more in zip(self.size, size, strict=True))
        longer._set(self._rows[rows], self._columns[columns])
        return longer

    def region(self, y: int, x: int, height: int, width: int) -> NDArray[np.float32]:
        """A region of the padded pair.

        Args:
            y: First row in px.
            x: First column in px.
            height: Rows; the region lies within ``size``.
            width: Columns.

        Returns:
            ``(6, height, width)`` float32 in [0, 1]: R, G, B of L, then of R.
        """
        top = np.float32(np.iinfo(self._views[0].dtype).max)
        h, w = self._views[0].shape[:2]
        rows, columns = self._rows[y : y + height], self._columns[x : x + width]
        ny, nx = (min(max(n - at, 0), most) for n, at, most in ((h, y, height), (w, x, width)))
        region = np.empty((6, height, width), dtype=np.float32)
        for view, planes in ((self._views[0], region[:3]), (self._views[1], region[3:])):
            for start, stop in _strips(ny, 3 * 4 * width):
                strip = view[y + start : y + stop]
                _scale(strip[:, x : x + nx], top, planes[:, start:stop, :nx])
                if nx < width:
                    _scale(strip[:, columns[nx:]], top, planes[:, start:stop, nx:])
            if ny < height:
                _scale(view[rows[ny:, None], columns], top, planes[:, ny:])
        return region


def _strips(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """The first row of each strip of about ``STRIP_BYTES``, and the row after its last."""
    step = max(1, STRIP_BYTES // row_bytes)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _scale(pixels: Image, top: np.float32, planes: NDArray[np.float32]) -> None:
    import cv2  # it takes a while to load

    if not pixels.size:  # of which OpenCV makes no picture
        return
    samples = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)  # OpenCV knows no other byte order
    for part, plane in zip(cv2.split(samples), planes, strict=True):
        np.copyto(plane, part)
        np.divide(plane, top, out=plane)


def canvases(
    regions: Iterable[NDArray[np.float32]],
    shape: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    names: Collection[str] = tuple(CANVASES),
) -> dict[str, NDArray[np.float32]]:
    """What CLIP sees of each region, normalised.

    Args:
        regions: ``(6, s, s)`` each, float32 in [0, 1]: L, then R. Best made one by one: they are read while they
            are in the cache.
        shape: Their number B, and s.
        mean: Mean of R, G, B.
        std: Standard deviation of R, G, B.
        names: Which to make, of ``blur_map.CANVASES``.

    Returns:
        ``stereo (B, 3, s, 2 s)``, L beside the flipped R, so that column x mirrors to 2 s - 1 - x; and
        ``center (B, 3, s, s)``, the mean of the views.
    """
    import cv2

    count, s = shape
    stereo, center = (
        np.empty((count if name in names else 0, 3, s, width), dtype=np.float32)
        for name, width in (("stereo", 2 * s), ("center", s))
    )
    offset, scale = (np.asarray([*value, *value], np.float32).reshape(6, 1, 1) for value in (mean, std))
    pair = np.empty((6, s, s), dtype=np.float32)  # contiguous, and small enough for a cache
    left, right = pair[:3], pair[3:]
    for i, region in zip(range(count), regions, strict=True):
        np.subtract(region, offset, out=pair)
        np.divide(pair, scale, out=pair)
        if len(stereo):
            stereo[i, :, :, :s] = left
            for plane, flipped in zip(right, stereo[i, :, :, s:], strict=True):
                cv2.flip(plane, 1, dst=flipped)
        if len(center):
            np.add(left, right, out=center[i])
            np.multiply(center[i], np.float32(0.5), out=center[i])
    return {name: made for name, made in (("stereo", stereo), ("center", center)) if name in names}


def check_features(features: Mapping[str, NDArray[Any]]) -> None:
    """Checks what CLIP gave: also numbers whose squares overflow, since features are scaled to length one.

    Args:
        features: By name, ``(..., c)``, any float dtype.

    Raises:
        NumericsError: NaN or Inf anywhere, or numbers that are too large.
    """
    for name, values in features.items():
        with np.errstate(all="ignore"):
            usable = np.abs(values.astype(np.float32, copy=False)) <= LARGEST_FEATURE  # False for NaN
        if not usable.all():
            raise NumericsError(
                f"expected finite numbers of at most {LARGEST_FEATURE:g} in CLIP's {name}, got NaN, Inf or larger "
                f"in {np.sum(~usable)} of {usable.size}; {FIX_NUMERICS}"
            )


def new_image(view: Image, axis: str) -> tuple[Image, Image]:
    """Memory for the restored image.

    Args:
        view: ``(h, w, 3)``, a view of the pair along x, for its size and dtype.
        axis: As for a call of ``Deblurrer``: the image is turned back.

    Returns:
        The image ``(h, w, 3)``, or ``(w, h, 3)`` for ``"vertical"``, contiguous, in the machine's byte order; and the
        same memory as ``(h, w, 3)``.
    """
    h, w = view.shape[:2]
    shape = (h, w, 3) if axis == "horizontal" else (w, h, 3)
    image = np.empty(shape, dtype=view.dtype.newbyteorder("="))
    return image, image if axis == "horizontal" else image.transpose(1, 0, 2)


def write_pixels(restored: NDArray[np.float32], pixels: Image, origin: tuple[int, int] = (0, 0)) -> None:
    """Checks what the network restored; crops, clamps, rounds half to even and converts it.

    Args:
        restored: ``(3, height, width)`` float32, not clamped, the padding included.
        pixels: ``(h, w, 3)`` uint8 or uint16 to write to, not larger than ``restored``; undefined after an error.
        origin: First px ``(y, x)`` of ``restored`` in the padded pair.

    Raises:
        NumericsError: NaN or Inf anywhere, in the padding too.
    """
    import cv2

    h, w = pixels.shape[:2]
    top = np.float32(np.iinfo(pixels.dtype).max)

    for start, stop in _strips(restored.shape[1], 3 * 4 * restored.shape[2]):
        rows = max(0, min(stop, h) - start)
        values = np.empty((rows, w), np.float32)
        planes = [np.empty((rows, w), pixels.dtype) for _ in range(3)]
        for source, plane in zip(restored[:, start:stop], planes, strict=True):
            if not math.isfinite(cv2.sumElems(source)[0]):  # no sum of NaN or Inf is finite
                _check_finite(restored, origin)
            np.multiply(source[:rows, :w], top, out=values)
            np.rint(values, out=values)
            np.clip(values, 0, top, out=values)
            np.copyto(plane, values, casting="unsafe")
        if planes[0].size:
            pixels[start : start + rows] = cv2.merge(planes)


def _check_finite(restored: NDArray[np.float32], origin: tuple[int, int]) -> None:
    invalid = ~np.isfinite(restored)
    if invalid.any():
        c, y, x = (int(at) for at in np.unravel_index(np.argmax(invalid), invalid.shape))
        raise NumericsError(
            f"expected finite numbers in the restored image, got NaN or Inf in {np.sum(invalid)} of {invalid.size}, "
            f"first at channel {c}, y {origin[0] + y}, x {origin[1] + x}; {FIX_NUMERICS}"
        )
