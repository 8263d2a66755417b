"""Linear light encoded as sRGB, which is what the networks were trained on."""

from __future__ import annotations

import numpy as np

_BLOCK = 2**22  # samples at a time, so that the temporary arrays stay small beside a large photo


def encode_srgb(linear: np.ndarray, black: float = 0.0, white: float = 1.0) -> np.ndarray:
    """Encodes linear light with the sRGB curve (IEC 61966-2-1).

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
        curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.power(light, 1 / 2.4) - 0.055)
        target[start : start + _BLOCK] = np.rint(65535 * curve)
    return encoded
