"""The stages of ``ldp_runtime.stages.pixels`` on a pair in one piece: what the CUDA kernels are compared with."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.stages.pixels import Image, PaddedPair, new_image, write_pixels


def prepare(left: Image, right: Image, size: tuple[int, int]) -> NDArray[np.float32]:
    """The pair ``(1, 6, H, W)`` float32 in [0, 1], padded bottom and right (reflect-101) to ``size``."""
    return PaddedPair(left, right, size).region(0, 0, *size)[None]


def to_image(restored: NDArray[Any], view: Image, axis: str) -> Image:
    """The checked image of ``(3, H, W)`` float32; ``view`` and ``axis`` are those of ``new_image``."""
    image, along_x = new_image(view, axis)
    write_pixels(restored, along_x)
    return image
