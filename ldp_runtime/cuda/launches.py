"""The kernels' calls as plain values, so that a CUDA device and the host run the very same ones.

A function here checks its arguments, works out the grid and gives a ``Launch``: the name of a kernel of
``kernels/*.cu`` and its arguments with their exact C types. Nothing runs. Addresses are plain integers (0 is
null): device memory for a CUDA device, host memory for the host build of the tests. All launches of a frame
belong on one stream, in order. Arrays are C-contiguous unless strides are named.

Sizes are ``(height, width)`` in px, with the paper's names: ``(h, w)`` is the photo, ``(H, W)`` the padded pair,
``p`` CLIP's patch, ``s = g p`` the side of a window, ``c`` the width of CLIP's features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from ldp_runtime.cuda.launch import Launch, Pixels
from ldp_runtime.cuda.prompt_table import PromptTable
from ldp_runtime.stages.geometry import WindowAxis, WindowGrid

STRIP = 4
"""Px along x that a thread of the pixel kernels handles: one 128-bit store of FP32."""

_THREADS = 256  # of a block of the pixel kernels, as their launch bounds
_TOKEN_THREADS = 128  # of blur_logits
_GRID_Y = 65535  # CUDA's limit; the kernels loop over what is left
_WARP = 32
_WALK = 8  # rows that a thread of blur_map walks down

Size = tuple[int, int]


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

    The twin of ``stages.PaddedPair`` and ``stages.canvases``, bit for bit (FP16:
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
    kind = _pixel_type(dtype)
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
        region = (_address(pair.address), *_ints(y, x, rows, columns))
        written += 24 * rows * columns
    if canvases is not None:
        suffix, box, canvas_arguments, elements = _canvas_arguments(canvases, padded_size)
        boxes.append(box)
        written += elements * np.dtype(canvases.dtype).itemsize
    top, bottom = min(box[0] for box in boxes), max(box[2] for box in boxes)
    start, end = min(box[1] for box in boxes) // STRIP * STRIP, max(box[3] for box in boxes)
    strips = _ceil(end - start, STRIP)
    turned = left.column_stride != 3 or right.column_stride != 3
    # Views read transposed: 32 rows a block, so that the bytes beside a pixel, which are those of the rows below,
    # are still in L1 when they are wanted.
    block = (8, 32, 1) if turned else (64, 4, 1)
    read = 6 * np.dtype(dtype).itemsize * min(bottom - top, h) * min(end - start, w)
    return Launch(
        kernel=f"prepare_{kind}_{suffix}",
        grid=_grid(strips, bottom - top, block),
        block=block,
        arguments=(
            *_pixels(left, dtype),
            *_pixels(right, dtype),
            *_ints(h, w, H, W, top, start, bottom - top, strips),
            *region,
            *canvas_arguments,
        ),
        minimum_bytes=read + written,
    )


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
    element = _float_type(dtype)
    rows, columns = size
    if not (0 < rows <= grid.rows.grid and 0 < columns <= grid.columns.grid):
        raise ValueError(f"expected at most {grid.rows.grid} x {grid.columns.grid} tokens, got {rows} x {columns}")
    warps = _TOKEN_THREADS // _WARP
    reads = _covered(grid.rows, rows) * _covered(grid.columns, columns)
    vectors = (1 if table.blur_aware else 0) + (2 if table.dp_aware else 0)
    return Launch(
        kernel=f"blur_logits_{element}",
        grid=(_ceil(rows * columns, warps), 1, 1),
        block=(_TOKEN_THREADS, 1, 1),
        arguments=(
            *(_address(at) for at in (stereo, center, table_address)),
            *_ints(table.array.shape[1], table.channels, table.blur_aware, table.dp_aware),
            *_axes(grid),
            _address(logits),
            *_ints(rows, columns),
            _address(invalid),
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
        grid=_grid(_ceil(columns, STRIP) + 1, _ceil(rows, _WALK), block),
        block=block,
        arguments=(
            _address(logits),
            *_longs(row_stride, column_stride),
            *_ints(*grid, patch),
            _address(out),
            *_ints(rows, columns),
        ),
        minimum_bytes=4 * rows * columns + 4 * _ceil(rows, patch) * _ceil(columns, patch),
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
    strips = _ceil(end - first, STRIP)
    block = (64, _THREADS // 64, 1)
    return Launch(
        kernel="blend",
        grid=_grid(strips, bottom - top, block),
        block=block,
        arguments=(
            _address(tile),
            *_ints(rows, columns),
            _address(weight_y),
            _address(weight_x),
            _address(accumulator),
            *_ints(total_rows, total_columns, y, x, top, bottom, strips, first),
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
    kind = _pixel_type(dtype)
    if not (0 < h <= H and 0 < w <= W):
        raise ValueError(f"expected a padded size that holds {h} x {w} px, got {H} x {W}")
    if plane is not None and plane < H * W:
        raise ValueError(f"expected planes of at least {H * W} elements, got {plane}")
    turned = image.column_stride != 3
    if turned:
        block = (_WARP, _THREADS // _WARP, 1)
        grid = _grid(W, _ceil(H, STRIP) + 1, block)
    else:
        block = (64, _THREADS // 64, 1)
        grid = _grid(_ceil(W, STRIP) + 1, H, block)
    return Launch(
        kernel=f"finish_{kind}_turned" if turned else f"finish_{kind}",
        grid=grid,
        block=block,
        arguments=(
            _address(restored),
            *_longs(H * W if plane is None else plane),
            *_ints(H, W),
            *_pixels(image, dtype),
            *_ints(h, w),
            _address(invalid),
        ),
        minimum_bytes=12 * H * W + 3 * np.dtype(dtype).itemsize * h * w,
    )


_NO_PAIR: tuple[np.generic, ...] = (np.uintp(0), *[np.int32(0)] * 4)
_NO_CANVASES: tuple[np.generic, ...] = (
    *[np.uintp(0)] * 2,
    *(np.int32(n) for n in (1, 0, 0, 1, 1, 0, 1, 0)),  # no window, of one token of one px
    *[np.float32(0)] * 3,
    *[np.float32(1)] * 6,
)


def _canvas_arguments(
    canvases: Canvases, padded_size: Size
) -> tuple[str, tuple[int, int, int, int], tuple[np.generic, ...], int]:
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
        _address(canvases.stereo),
        _address(canvases.center),
        *_ints(p, first, count),
        *_axes(grid),
        *np.asarray(canvases.mean, dtype=np.float32),
        *std,
        *(np.float32(1) / std),
    )
    planes = 3 * (2 * bool(canvases.stereo) + bool(canvases.center))
    if not planes:
        raise ValueError("expected the address of a stereo canvas, of a center view or both, got neither")
    return _float_type(canvases.dtype), box, arguments, planes * count * (g * p) ** 2


def _axes(grid: WindowGrid) -> tuple[np.generic, ...]:
    """The side of a window in tokens; for rows and columns the number of windows and the last one's origin."""
    if grid.rows.window != grid.columns.window:
        raise ValueError(f"expected square windows, got {grid.rows.window} x {grid.columns.window} tokens")
    numbers = [grid.rows.window]
    for axis in (grid.rows, grid.columns):
        count, span = len(axis.origins), axis.grid - axis.window
        if axis.origins != tuple(i * span // max(count - 1, 1) for i in range(count)):
            raise ValueError(f"expected windows spread evenly, as WindowAxis.spread does it, got {axis.origins}")
        if (axis.grid + 1) * count >= 2**31:  # the kernels find windows in 32-bit integers
            raise ValueError(f"expected a shorter axis, got {axis.grid} tokens with {count} windows")
        numbers += [count, span]
    return _ints(*numbers)


def _covered(axis: WindowAxis, tokens: int) -> int:
    """Tokens of the first ``tokens`` that the windows of an axis see, each as often as it is seen."""
    return sum(max(min(origin + axis.window, tokens) - origin, 0) for origin in axis.origins)


def _pixels(pixels: Pixels, dtype: DTypeLike) -> tuple[np.generic, ...]:
    if pixels.address % np.dtype(dtype).itemsize:
        raise ValueError(f"expected pixels at a multiple of {np.dtype(dtype).itemsize} B, got {pixels.address:#x}")
    return _address(pixels.address), *_longs(pixels.row_stride, pixels.column_stride)


def _pixel_type(dtype: DTypeLike) -> str:
    return _name_of(dtype, {"u8": np.uint8, "u16": np.uint16})


def _float_type(dtype: DTypeLike) -> str:
    return _name_of(dtype, {"f16": np.float16, "f32": np.float32})


def _name_of(dtype: DTypeLike, names: dict[str, type[np.generic]]) -> str:
    for name, known in names.items():
        if np.dtype(dtype) == np.dtype(known):
            return name
    raise ValueError(f"expected {' or '.join(t.__name__ for t in names.values())}, got {np.dtype(dtype)}")


def _grid(across: int, down: int, block: tuple[int, int, int]) -> tuple[int, int, int]:
    return _ceil(across, block[0]), min(_ceil(down, block[1]), _GRID_Y), 1


def _address(address: int) -> np.generic:
    return np.uintp(address)


def _ints(*numbers: int) -> tuple[np.generic, ...]:
    return tuple(np.int32(n) for n in numbers)


def _longs(*numbers: int) -> tuple[np.generic, ...]:
    return tuple(np.int64(n) for n in numbers)


def _ceil(n: int, d: int) -> int:
    return -(-n // d)
