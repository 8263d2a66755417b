"""Arguments of kernels with their exact C types, and the blocks that a call needs."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from ldp_runtime.cuda.launch import Pixels
from ldp_runtime.stages.geometry import WindowGrid

Arguments = tuple[np.generic, ...]
Size = tuple[int, int]

STRIP = 4
"""Px along x that a thread of the pixel kernels handles: one 128-bit store of FP32."""

_GRID_Y = 65535  # CUDA's limit; the kernels loop over what is left


def pointer(address: int) -> np.generic:
    """An address; 0 is null."""
    return np.uintp(address)


def ints(*numbers: int) -> Arguments:
    """Numbers as ``int``."""
    return tuple(np.int32(n) for n in numbers)


def longs(*numbers: int) -> Arguments:
    """Numbers as ``long long``."""
    return tuple(np.int64(n) for n in numbers)


def image_at(pixels: Pixels, dtype: DTypeLike) -> Arguments:
    """Address and strides of an image.

    Raises:
        ValueError: The address is no multiple of the element's size.
    """
    if pixels.address % np.dtype(dtype).itemsize:
        raise ValueError(f"expected pixels at a multiple of {np.dtype(dtype).itemsize} B, got {pixels.address:#x}")
    return pointer(pixels.address), *longs(pixels.row_stride, pixels.column_stride)


def windows(grid: WindowGrid) -> Arguments:
    """The side of a window in tokens; for rows and columns the number of windows and the last one's origin.

    Raises:
        ValueError: The windows are not square, not spread evenly, or too many for 32-bit integers.
    """
    if grid.rows.window != grid.columns.window:
        raise ValueError(f"expected square windows, got {grid.rows.window} x {grid.columns.window} tokens")
    numbers = [grid.rows.window]
    for axis in (grid.rows, grid.columns):
        count, span = len(axis.origins), axis.grid - axis.window
        if axis.origins != tuple(i * span // max(count - 1, 1) for i in range(count)):
            raise ValueError(f"expected windows spread evenly, as WindowAxis.spread does it, got {axis.origins}")
        if (axis.grid + 1) * count >= 2**31:
            raise ValueError(f"expected a shorter axis, got {axis.grid} tokens with {count} windows")
        numbers += [count, span]
    return ints(*numbers)


def pixel_type(dtype: DTypeLike) -> str:
    """What a kernel's name says of its pixels.

    Raises:
        ValueError: They are neither uint8 nor uint16.
    """
    return _name_of(dtype, {"u8": np.uint8, "u16": np.uint16})


def float_type(dtype: DTypeLike) -> str:
    """What a kernel's name says of its features or canvases.

    Raises:
        ValueError: They are neither float16 nor float32.
    """
    return _name_of(dtype, {"f16": np.float16, "f32": np.float32})


def _name_of(dtype: DTypeLike, names: dict[str, type[np.generic]]) -> str:
    for name, known in names.items():
        if np.dtype(dtype) == np.dtype(known):
            return name
    raise ValueError(f"expected {' or '.join(t.__name__ for t in names.values())}, got {np.dtype(dtype)}")


def blocks(across: int, down: int, block: tuple[int, int, int]) -> tuple[int, int, int]:
    """Blocks for this many threads along x and y."""
    return ceil(across, block[0]), min(ceil(down, block[1]), _GRID_Y), 1


def ceil(n: int, d: int) -> int:
    """``n / d``, rounded up."""
    return -(-n // d)
