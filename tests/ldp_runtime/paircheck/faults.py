"""Good pairs, and faults made from them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ldp_runtime.images.linear import linear_to_srgb, srgb_to_linear

Pixels = NDArray[Any]
Pair = tuple[Pixels, Pixels]


def light(view: Pixels) -> NDArray[np.float32]:
    """Linear light of a view."""
    return srgb_to_linear(view.astype(np.float32) / np.float32(np.iinfo(view.dtype).max))


def encoded(values: Pixels, dtype: Any = np.uint8) -> Pixels:
    """Linear light as sRGB pixels."""
    return stored(linear_to_srgb(np.asarray(values, np.float32)), dtype)


def stored(values: Pixels, dtype: Any) -> Pixels:
    """Values in [0, 1] as pixels, as they are."""
    pixels: Pixels = np.rint(np.clip(values, 0, 1) * np.iinfo(dtype).max).astype(dtype)
    return pixels


def exposed(pair: Pair, stops: float) -> Pair:
    """The right view brighter by so many stops."""
    return pair[0], encoded(light(pair[1]) * 2**stops, pair[1].dtype)


def sum_and_view(pair: Pair, gain: float) -> Pair:
    """The mean of both views and the right view times ``gain``."""
    total = (light(pair[0]) + light(pair[1])) / 2
    return encoded(total, pair[0].dtype), encoded(light(pair[1]) * gain, pair[1].dtype)


def turned(pair: Pair) -> Pair:
    """Disparity along y."""
    return pair[0].transpose(1, 0, 2), pair[1].transpose(1, 0, 2)


def lowered(pair: Pair, px: float) -> Pair:
    """The right view lower by so many px."""
    matrix = np.array([[1, 0, 0], [0, 1, -px]], np.float64)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    view = pair[1]
    return pair[0], cv2.warpAffine(view, matrix, view.shape[1::-1], flags=flags, borderMode=cv2.BORDER_REFLECT)


def of_bits(pair: Pair, bits: int) -> Pair:
    """Values of so many bits in 16."""
    full = (1 << bits) - 1
    left, right = (np.rint(view / np.iinfo(view.dtype).max * full).astype(np.uint16) for view in pair)
    return left, right


def linear(pair: Pair) -> Pair:
    """Linear light in 16 bits."""
    return stored(light(pair[0]), np.uint16), stored(light(pair[1]), np.uint16)
