"""The kernels' calls as plain values, so that a CUDA device and the host run the very same ones.

A function here checks its arguments, works out the grid and gives a ``Launch``: the name of a kernel of
``kernels/*.cu`` and its arguments with their exact C types. Nothing runs. Addresses are plain integers (0 is
null): device memory for a CUDA device, host memory for the host build of the tests. All launches of a frame
belong on one stream, in order. Arrays are C-contiguous unless strides are named.

Sizes are ``(height, width)`` in px, with the paper's names: ``(h, w)`` is the photo, ``(H, W)`` the padded pair,
``p`` CLIP's patch, ``s = g p`` the side of a window, ``c`` the width of CLIP's features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from ldp_runtime.cuda.arguments import (
    STRIP,
    Size,
    blocks,
    ceil,
    float_type,
    image_at,
    ints,
    longs,
    pixel_type,
    pointer,
    windows,
)
from ldp_runtime.cuda.launch import Launch, Pixels
from ldp_runtime.cuda.prompt_table import PromptTable
from ldp_runtime.stages.geometry import WindowAxis, WindowGrid

_THREADS = 256  # of a block of the pixel kernels, as their launch bounds
_TOKEN_THREADS = 128  # of blur_logits
_WARP = 32
_WALK = 8  # rows that a thread of blur_map walks down


def blur_logits(
    stereo: int,
    center: int,
    dtype: DTypeLike,
    table: PromptTable,
    table_address: int,
    grid: WindowGrid,
    logits: int,
    size: Size,
    invalid: int,
) -> Launch:
    """The blur logits of the frame from the features of all its windows (Eq. 4 to 6, ensemble, blending).

    The twin of ``blur_map.blur_logits`` and ``WindowGrid.blend``, to within FP32 rounding of the sums. One
    warp computes one token: it gathers the token from each window over it, so the result never depends on the
    order of blocks. NaN and Inf stay what they are.

    Fewest bytes: ``3 c`` features of each window's token inside ``size``, the table, 4 B per token.

    Args:
        stereo: Address of ``(len(grid), g, 2 g, c)``; may be 0 if the table has no DP-aware prompt.
        center: Address of ``(len(grid), g, g, c)``; may be 0 if the table has no blur-aware prompt.
        dtype: float16 or float32, of both.
        table: The prompts.
        table_address: Address of a copy of ``table.array``.
        grid: The windows.
        logits: Address of ``size`` float32, written in full: in [-10, 10], larger where more blurred.
        size: ``(H / p, W / p)``, the tokens of the padded pair (of a small pair fewer than the grid's).
        invalid: Address of an int32 to which the number of tokens with NaN or Inf is added.

    Raises:
        ValueError: Arguments that contradict each other.
    """
    element = float_type(dtype)
    rows, columns = size
    if not (0 < rows <= grid.rows.grid and 0 < columns <= grid.columns.grid):
        raise ValueError(f"expected at most {grid.rows.grid} x {grid.columns.grid} tokens, got {rows} x {columns}")
    warps = _TOKEN_THREADS // _WARP
    reads = _covered(grid.rows, rows) * _covered(grid.columns, columns)
    vectors = (1 if table.blur_aware else 0) + (2 if table.dp_aware else 0)
    return Launch(
        kernel=f"blur_logits_{element}",
        grid=(ceil(rows * columns, warps), 1, 1),
        block=(_TOKEN_THREADS, 1, 1),
        arguments=(
            *(pointer(at) for at in (stereo, center, table_address)),
            *ints(table.array.shape[1], table.channels, table.blur_aware, table.dp_aware),
            *windows(grid),
            pointer(logits),
            *ints(rows, columns),
            pointer(invalid),
        ),
        minimum_bytes=reads * vectors * table.channels * np.dtype(dtype).itemsize
        + table.array.nbytes
        + 4 * rows * columns,
    )


def blur_map(
    logits: int,
    grid: Size,
    patch: int,
    out: int,
    size: Size,
    *,
    strides: Size | None = None,
) -> Launch:
    """The blur map for people: ``sigmoid(logits)``, bilinear at full size. The twin of ``blur_map.upsample_map``.

    Fewest bytes: 4 B per px written and 4 B per token read.

    Args:
        logits: Address of ``grid`` float32.
        grid: Tokens ``(rows, columns)``, of the map that is written.
        patch: p in px.
        out: Address of ``size`` float32 in [0, 1].
        size: ``(rows, columns)`` px to write.
        strides: Elements between logits along the map's rows and columns; None for contiguous rows. A vertical
            pair's map is written upright with ``grid=(W / p, H / p)`` and ``strides=(1, W / p)``.

    Raises:
        ValueError: Arguments that contradict each other.
    """
    rows, columns = size
    if rows < 1 or columns < 1:
        raise ValueError(f"expected at least 1 x 1 px, got {rows} x {columns} px")
    if grid[0] < 1 or grid[1] < 1 or patch < 1:
        raise ValueError(f"expected at least one token and a patch of 1 px, got {grid} and {patch}")
    row_stride, column_stride = (grid[1], 1) if strides is None else strides
    block = (_WARP, _THREADS // _WARP, 1)
    return Launch(
        kernel="blur_map",
        grid=blocks(ceil(columns, STRIP) + 1, ceil(rows, _WALK), block),
        block=block,
        arguments=(
            pointer(logits),
            *longs(row_stride, column_stride),
            *ints(*grid, patch),
            pointer(out),
            *ints(rows, columns),
        ),
        minimum_bytes=4 * rows * columns + 4 * ceil(rows, patch) * ceil(columns, patch),
    )


def blend(
    tile: int,
    tile_size: Size,
    weight_y: int,
    weight_x: int,
    accumulator: int,
    accumulator_size: Size,
    at: Size,
) -> Launch:
    """Adds ``weight_y[i] weight_x[j] tile[:, i, j]`` to an accumulator of restored rows.

    Where a weight is exactly one no other tile reaches (weights sum to one), so the value is stored without
    reading the accumulator; elsewhere the caller has zeroed the accumulator before the first tile.

    Fewest bytes: 12 B per px of tile read, 12 B written, and 12 B read back where tiles overlap.

    Args:
        tile: Address of ``(3, *tile_size)`` float32.
        tile_size: ``(rows, columns)``.
        weight_y: Address of ``(rows,)`` float32.
        weight_x: Address of ``(columns,)`` float32.
        accumulator: Address of ``(3, *accumulator_size)`` float32.
        accumulator_size: ``(rows, columns)``.
        at: ``(y, x)`` of the tile's corner in the accumulator; what sticks out (negative, or too far) is left out.

    Raises:
        ValueError: Nothing of the tile lies inside the accumulator.
    """
    (y, x), (rows, columns), (total_rows, total_columns) = at, tile_size, accumulator_size
    top, bottom = max(y, 0), min(y + rows, total_rows)
    start, end = max(x, 0), min(x + columns, total_columns)
    if top >= bottom or start >= end:
        raise ValueError(
            f"expected a tile over an accumulator of {total_rows} x {total_columns} px, got {rows} x {columns} px at "
            f"({y}, {x})"
        )
    first = start // STRIP * STRIP
    strips = ceil(end - first, STRIP)
    block = (64, _THREADS // 64, 1)
    return Launch(
        kernel="blend",
        grid=blocks(strips, bottom - top, block),
        block=block,
        arguments=(
            pointer(tile),
            *ints(rows, columns),
            pointer(weight_y),
            pointer(weight_x),
            pointer(accumulator),
            *ints(total_rows, total_columns, y, x, top, bottom, strips, first),
        ),
        minimum_bytes=24 * (bottom - top) * (end - start),
    )


def finish(
    restored: int,
    padded_size: Size,
    image: Pixels,
    dtype: DTypeLike,
    size: Size,
    invalid: int,
    *,
    plane: int | None = None,
) -> Launch:
    """Crops, clamps, rounds half to even and writes the image's pixels. The twin of ``stages.write_pixels``.

    Fewest bytes: 12 B per padded px read, 3 or 6 B per px written.

    Args:
        restored: Address of ``(3, H, W)`` float32; the padding is read too, to find NaN in it.
        padded_size: ``(H, W)``.
        image: Where the pixels go, ``size``; transposed strides for a vertical pair.
        dtype: uint8 or uint16.
        size: ``(h, w)``.
        invalid: Address of an int32 to which the number of NaN and Inf in ``restored`` is added.
        plane: Elements from a channel of ``restored`` to the next; None for ``H * W``.

    Raises:
        ValueError: Arguments that contradict each other.
    """
    (h, w), (H, W) = size, padded_size
    kind = pixel_type(dtype)
    if not (0 < h <= H and 0 < w <= W):
        raise ValueError(f"expected a padded size that holds {h} x {w} px, got {H} x {W}")
    if plane is not None and plane < H * W:
        raise ValueError(f"expected planes of at least {H * W} elements, got {plane}")
    turned = image.column_stride != 3
    if turned:
        block = (_WARP, _THREADS // _WARP, 1)
        grid = blocks(W, ceil(H, STRIP) + 1, block)
    else:
        block = (64, _THREADS // 64, 1)
        grid = blocks(ceil(W, STRIP) + 1, H, block)
    return Launch(
        kernel=f"finish_{kind}_turned" if turned else f"finish_{kind}",
        grid=grid,
        block=block,
        arguments=(
            pointer(restored),
            *longs(H * W if plane is None else plane),
            *ints(H, W),
            *image_at(image, dtype),
            *ints(h, w),
            pointer(invalid),
        ),
        minimum_bytes=12 * H * W + 3 * np.dtype(dtype).itemsize * h * w,
    )


def _covered(axis: WindowAxis, tokens: int) -> int:
    """Tokens of the first ``tokens`` that the windows of an axis see, each as often as it is seen."""
    return sum(max(min(origin + axis.window, tokens) - origin, 0) for origin in axis.origins)
