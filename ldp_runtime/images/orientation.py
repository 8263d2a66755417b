"""EXIF orientation: pictures turned upright, and where a disparity points once they are."""

from __future__ import annotations

import numpy as np

# Orientation -> array axes to flip, after 5 to 8 are transposed.
_FLIPS = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Applies EXIF orientation (1 to 8) to ``(h, w, c)``; 5 to 8 exchange h and w."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    return np.flip(array, _FLIPS.get(orientation, ()))


def upright_disparity(axis: str, orientation: int) -> tuple[str, bool]:
    """Turns a disparity as ``upright`` turns its picture.

    Args:
        axis: Its direction in the stored picture, which is the sensor's: "horizontal" or "vertical".
        orientation: The EXIF orientation, 1 to 8.

    Returns:
        Its direction in the upright picture, and whether its sign changes, which exchanges the views.
    """
    array_axis = int(axis == "horizontal")
    if orientation >= 5:
        array_axis = 1 - array_axis
    return ("vertical", "horizontal")[array_axis], array_axis in _FLIPS.get(orientation, ())
