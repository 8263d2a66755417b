"""The stages of the pipeline on the host: what the networks are fed, and the pixels that come of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
        region = np.empty((6, height, width), dtype=np.float32)
        for view, planes in ((self._views[0], region[:3]), (self._views[1], region[3:])):
            for part, down, along in self._parts(view, (y, x), (height, width)):
                target = planes[:, down, along]
                for start, stop in _strips(len(part), 3 * 4 * width):
                    _scale(part[start:stop], top, target[:, start:stop])
        return region

    def _parts(
        self, view: Image, origin: tuple[int, int], size: tuple[int, int]
    ) -> Iterator[tuple[Image, slice, slice]]:
        """The px ``(.., .., 3)`` of a region in a view, in up to three parts, and the rows and columns of each."""
        (y, x), (height, width) = origin, size
        rows, columns = self._rows[y : y + height], self._columns[x : x + width]
        ny, nx = (min(max(n - at, 0), most) for n, at, most in zip(view.shape, origin, size, strict=False))
        yield view[y : y + ny, x : x + nx], slice(ny), slice(nx)
        if nx < width:
            yield view[y : y + ny, columns[nx:]], slice(ny), slice(nx, None)
        if ny < height:
            yield view[rows[ny:, None], columns], slice(ny, None), slice(None)

    def canvases(
        self,
        origins: Sequence[tuple[int, int]],
        s: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        names: Collection[str] = tuple(CANVASES),
    ) -> dict[str, NDArray[np.float32]]:
        """What CLIP sees of windows of the padded pair, normalised.

        Args:
            origins: First px ``(y, x)`` of each of B windows, which lie within ``size``.
            s: Side of a window in px.
            mean: Mean of R, G, B.
            std: Standard deviation of R, G, B.
            names: Which to make, of ``blur_map.CANVASES``.

        Returns:
            ``stereo (B, 3, s, 2 s)``, L beside the flipped R, so that column x mirrors to 2 s - 1 - x; and
            ``center (B, 3, s, s)``, the mean of the views.
        """
        dtype = self._views[0].dtype.newbyteorder("=")
        made = {
            name: np.empty((len(origins), 3, s, width), np.float32)
            for name, width in (("stereo", 2 * s), ("center", s))
            if name in names
        }
        samples, spare = np.empty((s, 2 * s), dtype), np.empty((3, s, 2 * s), np.float32)
        normalisers = [_normaliser(dtype, np.float32(m), np.float32(d)) for m, d in zip(mean, std, strict=True)]
        for y, row in itertools.groupby(enumerate(origins), lambda window: window[1][0]):
            windows = [(i, x) for i, (_, x) in row]  # long rows of px are read faster than those of a window
            first, end = min(x for _, x in windows), max(x for _, x in windows) + s
            left, right = self._samples((y, first), (s, end - first), dtype)
            for i, x in windows:
                canvas = made["stereo"][i] if "stereo" in made else spare
                for of_left, of_right, normalise, plane in zip(left, right, normalisers, canvas, strict=True):
                    samples[:, :s] = of_left[:, x - first : x - first + s]
                    samples[:, s:] = of_right[:, end - x - s : end - x]
                    normalise(samples, plane)
                if "center" in made:
                    middle = made["center"][i]
                    np.add(canvas[:, :, :s], canvas[:, :, : s - 1 : -1], out=middle)
                    np.multiply(middle, np.float32(0.5), out=middle)
        return made

    def _samples(self, origin: tuple[int, int], size: tuple[int, int], dtype: np.dtype[Any]) -> Image:
        """R, G, B of a region in L, and of the same region in R flipped: ``(2, 3, *size)``."""
        samples = np.empty((2, 3, *size), dtype)
        for view, planes in zip(self._views, (samples[0], samples[1, :, :, ::-1]), strict=True):
            for part, down, along in self._parts(view, origin, size):
                planes[:, down, along] = part.transpose(2, 0, 1)
        return samples


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


def _normaliser(
    dtype: np.dtype[Any], mean: np.float32, std: np.float32
) -> Callable[[Image, NDArray[np.float32]], object]:
    """What writes ``(samples / top - mean) / std`` to a plane; with 8 bits it looks them up, in half the time."""
    import cv2

    top = np.float32(np.iinfo(dtype).max)

    def normalise(samples: Image, plane: NDArray[np.float32]) -> None:
        np.copyto(plane, samples)
        np.divide(plane, top, out=plane)
        np.subtract(plane, mean, out=plane)
        np.divide(plane, std, out=plane)

    if dtype != np.uint8:
        return normalise
    table = np.empty(256, np.float32)
    normalise(np.arange(256), table)
    return lambda samples, plane: cv2.LUT(samples, table, dst=plane)


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
