"""One kernel call as a plain value, and where the images that it reads or writes lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Launch:
    """One kernel call.

    Attributes:
        kernel: Its ``extern "C"`` name.
        grid: Blocks along x, y, z.
        block: Threads of a block along x, y, z.
        arguments: NumPy scalars of the parameters' exact types; ``np.uintp`` is an address.
        minimum_bytes: Bytes that the call cannot but read and write: every input once, every output once.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[np.generic, ...]
    minimum_bytes: int


@dataclass(frozen=True)
class Pixels:
    """Where an image ``(height, width, 3)`` of uint8 or uint16 lies; the three channels are neighbours.

    Attributes:
        address: Of the top left pixel, a multiple of the element's size.
        row_stride: Elements from a pixel to the one below.
        column_stride: Elements from a pixel to the one on its right: 3, or for a pair of ``axis="vertical"``
            (whose views are read transposed) the stride of the photo's rows, while ``row_stride`` is 3.
    """

    address: int
    row_stride: int
    column_stride: int = 3

    @classmethod
    def from_array(cls, image: NDArray[np.generic], address: int | None = None) -> Pixels:
        """The pixels of an array ``(height, width, 3)``, or of a copy of its memory at ``address``.

        Raises:
            ValueError: The channels are not neighbours, or a stride is no multiple of the element's size.
        """
        size = image.itemsize
        if image.ndim != 3 or image.shape[2] != 3 or image.strides[2] != size or any(n % size for n in image.strides):
            raise ValueError(f"expected (h, w, 3) with channels side by side, got {image.shape}, {image.strides} B")
        start = int(image.__array_interface__["data"][0]) if address is None else address
        return cls(start, image.strides[0] // size, image.strides[1] // size)
