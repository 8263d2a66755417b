"""The stages of the pipeline that are plain numpy: what the networks are fed, and the pixels that come of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.errors import NumericsError
from ldp_runtime.stages.geometry import reflect_indices

FIX_NUMERICS = "use precision fp32, and if that does not help the bundle is at fault"

LARGEST_FEATURE = 1e17
"""Squares of larger features may overflow in FP32 when they are summed; their direction would be lost."""

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
        scale = np.float32(np.iinfo(self._views[0].dtype).max)
        h, w = self._views[0].shape[:2]
        rows, columns = self._rows[y : y + height], self._columns[x : x + width]
        ny, nx = (int(np.clip(n - at, 0, most)) for n, at, most in ((h, y, height), (w, x, width)))
        region = np.empty((6, height, width), dtype=np.float32)
        for first, view in ((0, self._views[0]), (3, self._views[1])):
            planes = region[first : first + 3]
            _scale(view[y : y + ny, x : x + nx], scale, planes[:, :ny, :nx])
            if nx < width:
                _scale(view[y : y + ny][:, columns[nx:]], scale, planes[:, :ny, nx:])
            if ny < height:
                _scale(view[rows[ny:, None], columns], scale, planes[:, ny:])
        return region


def _scale(pixels: Image, scale: np.float32, planes: NDArray[np.float32]) -> None:
    for c in range(3):
        np.divide(pixels[..., c], scale, out=planes[c], dtype=np.float32)


def canvases(
    regions: list[NDArray[np.float32]], mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What CLIP sees of each region, normalised.

    Args:
        regions: ``(6, s, s)`` each, float32 in [0, 1]: L, then R.
        mean: Mean of R, G, B.
        std: Standard deviation of R, G, B.

    Returns:
        The stereo canvases ``(B, 3, s, 2 s)``, L beside the flipped R, so that column x mirrors to
        2 s - 1 - x; and the center views ``(B, 3, s, s)``.
    """
    s = regions[0].shape[1]
    stereo = np.empty((len(regions), 3, s, 2 * s), dtype=np.float32)
    center = np.empty((len(regions), 3, s, s), dtype=np.float32)
    offset, scale = (np.asarray(value, np.float32).reshape(3, 1, 1) for value in (mean, std))
    for region, canvas, middle in zip(regions, stereo, center, strict=True):
        left = canvas[:, :, :s]
        right = canvas[:, :, : s - 1 : -1]  # the right half read from its right edge: R before its flip
        np.subtract(region[:3], offset, out=left)
        np.subtract(region[3:], offset, out=right)
        canvas /= scale
        np.add(left, right, out=middle)
        middle *= np.float32(0.5)
    return stereo, center


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


def check_finite(restored: NDArray[Any], origin: tuple[int, int] = (0, 0)) -> None:
    """Checks what the network restored.

    Args:
        restored: ``(3, height, width)`` float32, the padding included.
        origin: Its first px ``(y, x)`` in the padded pair.

    Raises:
        NumericsError: NaN or Inf anywhere.
    """
    with np.errstate(invalid="ignore"):
        extremes = restored.min(), restored.max()
    if not np.isfinite(extremes).all():
        invalid = ~np.isfinite(restored)
        c, y, x = (int(at) for at in np.unravel_index(np.argmax(invalid), invalid.shape))
        raise NumericsError(
            f"expected finite numbers in the restored image, got NaN or Inf in {np.sum(invalid)} of {invalid.size}, "
            f"first at channel {c}, y {origin[0] + y}, x {origin[1] + x}; {FIX_NUMERICS}"
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


def write_pixels(restored: NDArray[Any], pixels: Image) -> None:
    """Crops, clamps, rounds half to even and converts.

    Args:
        restored: ``(3, height, width)`` float32, finite, not clamped.
        pixels: ``(h, w, 3)`` uint8 or uint16 to write to, not larger than ``restored``.
    """
    h, w = pixels.shape[:2]
    top = np.float32(np.iinfo(pixels.dtype).max)
    plane = np.empty((h, w), dtype=np.float32)
    for c in range(3):
        np.multiply(restored[c, :h, :w], top, out=plane)
        np.clip(np.rint(plane, out=plane), 0, top, out=plane)
        pixels[..., c] = plane
