"""Corrections of a pair that lose nothing, and how the restored picture is taken back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ldp_runtime.images.linear import linear_to_srgb, srgb_to_linear
from ldp_runtime.paircheck.coding import Coding

_ROWS = 256  # rows at a time: bounds the memory of float copies
_CLIPPED = 0.98  # of the sum: what it hides of the other view is unknown
_WHOLE = 0.12  # a shift this close to whole px is taken for whole, so that nothing is interpolated

Image = NDArray[Any]


@dataclass(frozen=True)
class Correction:
    """What is done to a pair before it is restored.

    Attributes:
        coding: How its values are coded.
        gains: Factors for the linear light of the left and of the right view.
        view: Which of the two is a single view where the other is the sum of both, ``"left"`` or ``"right"``; None
            for a pair of views. The sum then becomes the other view.
        shift: Px along y, or along x where the disparity lies along y, by which content lies lower (or further right)
            in the right view.
        axis: Direction of the disparity.
    """

    coding: Coding
    axis: str
    gains: tuple[float, float] = (1.0, 1.0)
    view: str | None = None
    shift: float = 0.0

    @property
    def recoded(self) -> bool:
        """Whether values change; the pair and its restoration then have 16 bits in between."""
        return self.gains != (1.0, 1.0) or self.view is not None or not self.coding.usual

    def apply(self, left: Image, right: Image) -> tuple[Image, Image]:
        """The pair as the network expects it.

        Args:
            left: ``(h, w, 3)`` uint8 or uint16.
            right: The other view.

        Returns:
            The corrected views, sRGB; uint16 where values change, otherwise in the dtype of the views.
        """
        if self.recoded:
            top = _CLIPPED * self.coding.full
            clipped = [view >= top if gain < 1 else None for view, gain in self._gained(left, right)]
            left, right = (self._encoded(view, gain) for view, gain in self._gained(left, right))
            if self.view is None:  # what the brighter view has lost is taken from the other, without a disparity
                for lost, one, other in ((clipped[0], left, right), (clipped[1], right, left)):
                    if lost is not None:
                        np.copyto(one, np.maximum(one, other), where=lost)
        if self.view == "right":
            left = _other_view(left, right)
        elif self.view == "left":
            right = _other_view(right, left)
        if self.shift:
            right = _moved(right, self.shift, self.axis)
        return left, right

    def undo(self, restored: Image, dtype: np.dtype[Any]) -> Image:
        """The restored picture in the coding and dtype of the views, over their whole range.

        Args:
            restored: ``(h, w, 3)``, of a pair as ``apply`` gives it.
            dtype: Of the views.
        """
        if not self.recoded:
            return restored
        values = np.arange(65536, dtype=np.float32) / np.float32(65535)
        if self.coding.linear:
            values = srgb_to_linear(values)
        top = np.iinfo(dtype).max
        table = np.rint(values * np.float32(top)).astype(dtype.newbyteorder("="))
        return np.asarray(table[restored])

    def _gained(self, left: Image, right: Image) -> Iterator[tuple[Image, float]]:
        return zip((left, right), self.gains, strict=True)

    def _encoded(self, view: Image, gain: float) -> Image:
        levels = np.arange(int(np.iinfo(view.dtype).max) + 1, dtype=np.float32)
        values = np.minimum(levels / np.float32(self.coding.full), 1)
        if gain != 1.0 or self.coding.linear:
            light = values if self.coding.linear else srgb_to_linear(values)
            values = linear_to_srgb(light * np.float32(gain))
        table = np.rint(np.clip(values, 0, 1) * np.float32(65535)).astype(np.uint16)
        return np.asarray(table[view])


def full_range(view: Image, coding: Coding) -> Image:
    """Values of unused high bits scaled to the whole range, as a restored picture has them."""
    if coding.bits == coding.depth:
        return view
    levels = np.arange(int(np.iinfo(view.dtype).max) + 1, dtype=np.float64) / coding.full
    return np.asarray(np.rint(np.minimum(levels, 1) * 65535).astype(np.uint16)[view])


def _other_view(total: Image, view: Image) -> Image:
    """The view that a sum holds besides another: twice their mean less the other, in linear light.

    Args:
        total: The mean of both views, ``(h, w, 3)`` uint16 sRGB.
        view: One of them.
    """
    other = np.empty_like(total)
    white = np.float32(65535)
    for y in range(0, len(total), _ROWS):
        mean, one = (srgb_to_linear(v[y : y + _ROWS].astype(np.float32) / white) for v in (total, view))
        rest = np.where(mean < _CLIPPED, 2 * mean - one, mean)
        other[y : y + _ROWS] = np.rint(np.clip(linear_to_srgb(rest), 0, 1) * white)
    return other


def _moved(view: Image, shift: float, axis: str) -> Image:
    """A view with its content moved against ``shift`` px across the disparity; the border is repeated."""
    whole = round(shift)
    if abs(shift - whole) <= _WHOLE:
        dim = 0 if axis == "horizontal" else 1
        at = np.clip(np.arange(view.shape[dim]) + whole, 0, view.shape[dim] - 1)
        return np.ascontiguousarray(np.take(view, at, axis=dim))
    dx, dy = (0.0, shift) if axis == "horizontal" else (shift, 0.0)
    moved: Image = cv2.warpAffine(
        view,
        np.array([[1, 0, dx], [0, 1, dy]], np.float64),
        view.shape[1::-1],
        flags=cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return moved
