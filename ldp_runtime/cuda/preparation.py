"""The call of ``prepare``, which makes the input of the networks from the pixels of a pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from ldp_runtime.cuda.arguments import (
    STRIP,
    Arguments,
    Size,
    blocks,
    ceil,
    float_type,
    image_at,
    ints,
    pixel_type,
    pointer,
    windows,
)
from ldp_runtime.cuda.launch import Launch, Pixels
from ldp_runtime.stages.geometry import WindowGrid


@dataclass(frozen=True)
class PairRegion:
    """Where ``prepare`` writes the pair: a rectangle of the padded frame, whole or one tile.

    Attributes:
        address: Of ``(6, rows, columns)`` float32 in [0, 1].
        origin: ``(y, x)`` of the rectangle in the padded frame.
        size: ``(rows, columns)`` of the rectangle, inside the padded frame.
    """

    address: int
    origin: Size
    size: Size


@dataclass(frozen=True)
class Canvases:
    """Where ``prepare`` writes what CLIP sees of the windows ``first .. first + count`` of a grid.

    Attributes:
        stereo: Address of ``(count, 3, s, 2 s)``: L beside the flipped R, normalised; 0 leaves it out.
        center: Address of ``(count, 3, s, s)``: the mean of L and R, normalised; 0 leaves it out.
        dtype: float16 or float32, of both.
        grid: The windows over the padded frame (``WindowGrid.cover``).
        patch: p in px.
        mean: Mean of R, G, B that CLIP wants subtracted.
        std: Standard deviation of R, G, B that CLIP wants divided by.
        first: Index of the first window, in the order of ``grid.origins()``.
        count: Windows; None for all from ``first`` on.
    """

    stereo: int
    center: int
    dtype: DTypeLike
    grid: WindowGrid
    patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    first: int = 0
    count: int | None = None


def prepare(
    left: Pixels,
    right: Pixels,
    dtype: DTypeLike,
    size: Size,
    padded_size: Size,
    *,
    pair: PairRegion | None = None,
    canvases: Canvases | None = None,
) -> Launch:
    """Scales, pads, flips and normalises a pair in one read of it: the network's input, CLIP's, or both.

    The twin of ``stages.PaddedPair``'s ``region`` and ``canvases``, bit for bit (FP16:
    their FP32 rounded once). For vertical pairs give the transposed views' strides.

    Fewest bytes: the photo's pixels under the outputs once (6 or 12 B per px), 24 B per px of the pair, and 18 B
    (FP16) or 36 B (FP32) a px of each window, two thirds of them for the stereo canvas.

    Args:
        left: The left view, ``size``.
        right: The right view, ``size``, its own strides.
        dtype: uint8 or uint16, of both views, in the machine's byte order.
        size: ``(h, w)``.
        padded_size: ``(H, W)``, neither smaller.
        pair: Where the network's input goes; None leaves it out.
        canvases: Where CLIP's input goes; None leaves it out.

    Raises:
        ValueError: Nothing to write, or arguments that contradict each other.
    """
    h, w = size
    H, W = padded_size
    kind = pixel_type(dtype)
    if not (0 < h <= H and 0 < w <= W):
        raise ValueError(f"expected a padded size that holds {h} x {w} px, got {H} x {W}")
    if pair is None and canvases is None:
        raise ValueError("expected a pair, canvases or both to prepare, got neither")
    boxes: list[tuple[int, int, int, int]] = []  # top, left, bottom, right of what is written
    region, canvas_arguments, suffix, written = _NO_PAIR, _NO_CANVASES, "f16", 0
    if pair is not None:
        (y, x), (rows, columns) = pair.origin, pair.size
        if not (y >= 0 and x >= 0 and 0 < rows <= H - y and 0 < columns <= W - x):
            raise ValueError(f"expected a region inside {H} x {W} px, got {rows} x {columns} px at ({y}, {x})")
        boxes.append((y, x, y + rows, x + columns))
        region = (pointer(pair.address), *ints(y, x, rows, columns))
        written += 24 * rows * columns
    if canvases is not None:
        suffix, box, canvas_arguments, elements = _canvas_arguments(canvases, padded_size)
        boxes.append(box)
        written += elements * np.dtype(canvases.dtype).itemsize
    top, bottom = min(box[0] for box in boxes), max(box[2] for box in boxes)
    start, end = min(box[1] for box in boxes) // STRIP * STRIP, max(box[3] for box in boxes)
    strips = ceil(end - start, STRIP)
    turned = left.column_stride != 3 or right.column_stride != 3
    # Views read transposed: 32 rows a block, so that the bytes beside a pixel, which are those of the rows below,
    # are still in L1 when they are wanted.
    block = (8, 32, 1) if turned else (64, 4, 1)
    read = 6 * np.dtype(dtype).itemsize * min(bottom - top, h) * min(end - start, w)
    return Launch(
        kernel=f"prepare_{kind}_{suffix}",
        grid=blocks(strips, bottom - top, block),
        block=block,
        arguments=(
            *image_at(left, dtype),
            *image_at(right, dtype),
            *ints(h, w, H, W, top, start, bottom - top, strips),
            *region,
            *canvas_arguments,
        ),
        minimum_bytes=read + written,
    )


_NO_PAIR: Arguments = (pointer(0), *ints(0, 0, 0, 0))
_NO_CANVASES: Arguments = (
    *(pointer(0), pointer(0)),
    *ints(1, 0, 0, 1, 1, 0, 1, 0),  # no window, of one token of one px
    *[np.float32(0)] * 3,
    *[np.float32(1)] * 6,
)


def _canvas_arguments(canvases: Canvases, padded_size: Size) -> tuple[str, tuple[int, int, int, int], Arguments, int]:
    """The canvases' element type, the rectangle that their windows span, their arguments and number of elements."""
    grid, p, first = canvases.grid, canvases.patch, canvases.first
    total, across, g = len(grid), len(grid.columns.origins), grid.rows.window
    count = total - first if canvases.count is None else canvases.count
    if not (first >= 0 and 0 < count <= total - first):
        raise ValueError(f"expected windows among the grid's {total}, got {count} from {first} on")
    for axis, side in ((grid.rows, padded_size[0]), (grid.columns, padded_size[1])):
        if axis.grid * p != max(side, g * p):
            raise ValueError(f"expected a grid of windows over {side} px, got {axis.grid} tokens of {p} px")
    if len(canvases.mean) != 3 or len(canvases.std) != 3:
        raise ValueError(f"expected mean and std of R, G, B, got {canvases.mean} and {canvases.std}")
    last = first + count - 1
    rows = first // across, last // across
    columns = (first % across, last % across) if rows[0] == rows[1] else (0, across - 1)
    box = (
        grid.rows.origins[rows[0]] * p,
        grid.columns.origins[columns[0]] * p,
        (grid.rows.origins[rows[1]] + g) * p,
        (grid.columns.origins[columns[1]] + g) * p,
    )
    std = np.asarray(canvases.std, dtype=np.float32)
    arguments = (
        pointer(canvases.stereo),
        pointer(canvases.center),
        *ints(p, first, count),
        *windows(grid),
        *np.asarray(canvases.mean, dtype=np.float32),
        *std,
        *(np.float32(1) / std),
    )
    planes = 3 * (2 * bool(canvases.stereo) + bool(canvases.center))
    if not planes:
        raise ValueError("expected the address of a stereo canvas, of a center view or both, got neither")
    return float_type(canvases.dtype), box, arguments, planes * count * (g * p) ** 2
