"""How the values of a picture are coded: linear light or sRGB, and how many of the bits are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNUSED_BITS = (10, 12, 14)
"""Depths of cameras whose values people leave as they are in 16-bit files."""

LINEAR_MOST = (0.30, 0.24, 0.013)
"""Mean, median and percentile 1 of a linear picture over its highlights, at most. Of 100 photos in sRGB coding none is
below all three; of the same photos in linear light a third is: those with shadows and a few bright places."""

HIGHLIGHT = 0.4
"""Highlights of a linear picture, a share of white, at least: without any a picture may be dark rather than linear."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Coding:
    """How the values of a pair are coded.

    Attributes:
        bits: Bits that the values use.
        depth: Bits that the values have, 8 or 16.
        linear: The values are linear light.
    """

    bits: int
    depth: int
    linear: bool

    @property
    def full(self) -> int:
        """The value that stands for white."""
        return (1 << self.bits) - 1

    @property
    def usual(self) -> bool:
        """Whether values are sRGB over the whole range."""
        return self.bits == self.depth and not self.linear


def find_coding(left: NDArray[Any], right: NDArray[Any], grey: Floats, *, linear: bool | None) -> Coding:
    """Finds how a pair is coded.

    Args:
        left: ``(h, w, 3)`` uint8 or uint16.
        right: The other view.
        grey: ``(h, w)`` float32, a reduced copy of the left view, at the scale of its values.
        linear: Whether the values are linear light, where the file says so; None judges by the picture.
    """
    depth = 8 * left.dtype.itemsize
    bits = depth
    if depth == 16:
        top = max(int(view.max()) for view in (left, right))
        bits = next((n for n in UNUSED_BITS if 0 < top < 1 << n), 16)
    if linear is None:
        shadow, median, highlight = (float(v) for v in np.percentile(grey, (1, 50, 99.5)))
        shares = (float(grey.mean()), median, shadow)
        bright = highlight > HIGHLIGHT * ((1 << bits) - 1)
        linear = bright and all(share < most * highlight for share, most in zip(shares, LINEAR_MOST, strict=True))
    return Coding(bits, depth, linear)
