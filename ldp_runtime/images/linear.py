"""Linear light and sRGB (IEC 61966-2-1), which the networks were trained on."""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

_BLOCK = 2**22  # samples at a time, so that the temporary arrays stay small beside a large photo
_F = TypeVar("_F", bound=np.floating)


def srgb_to_linear(values: NDArray[_F]) -> NDArray[_F]:
    """Linear light of sRGB values in [0, 1], of any shape; of the same dtype, float32 or float64."""
    power = cv2.pow((values + 0.055) / 1.055, 2.4).reshape(values.shape)
    light: NDArray[_F] = np.where(values <= 0.04045, values / 12.92, power)
    return light


def linear_to_srgb(light: NDArray[_F]) -> NDArray[_F]:
    """The way back. Light below 0 counts as 0, and light above 1 gives values above 1."""
    light = np.maximum(light, 0)
    power = 1.055 * cv2.pow(light, 1 / 2.4).reshape(light.shape) - 0.055
    values: NDArray[_F] = np.where(light <= 0.0031308, 12.92 * light, power)
    return values


def encode_srgb(linear: np.ndarray, black: float = 0.0, white: float = 1.0) -> np.ndarray:
    """Linear light as 16-bit sRGB.

    Args:
        linear: Any shape, any real dtype.
        black: The value without light; what is less is clipped.
        white: The value of full light; what is more is clipped.

    Returns:
        The same shape, uint16 over the full range.
    """
    encoded = np.empty(linear.shape, np.uint16)
    source, target = np.ascontiguousarray(linear).reshape(-1), encoded.reshape(-1)
    for start in range(0, source.size, _BLOCK):
        block = source[start : start + _BLOCK].astype(np.float32)
        light = np.clip((block - np.float32(black)) / np.float32(white - black), 0, 1)
        target[start : start + _BLOCK] = np.rint(65535 * linear_to_srgb(light))
    return encoded
