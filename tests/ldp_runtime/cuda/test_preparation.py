"""The kernel that prepares a pair, built for the host, against its NumPy twin; see ``fenced`` for its outputs."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from ldp_runtime.cuda import preparation
from ldp_runtime.cuda.launch import Launch, Pixels
from ldp_runtime.cuda.preparation import Canvases, PairRegion
from ldp_runtime.stages.geometry import Padding, WindowGrid
from ldp_runtime.stages.pixels import PaddedPair
from tests.ldp_runtime.cuda.fenced import DTYPES, SIZES, Fenced, pair_of, same, sparse, unaligned
from tests.ldp_runtime.cuda.host_build import launch
from tests.ldp_runtime.whole import prepare

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def expected_canvases(
    pair: list[NDArray[Any]], padded: tuple[int, int], grid: WindowGrid, p: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    source = PaddedPair(*pair, padded).extended((grid.rows.grid * p, grid.columns.grid * p))
    made = source.canvases([(y * p, x * p) for y, x in grid.origins()], grid.rows.window * p, MEAN, STD)
    return made["stereo"], made["center"]


Region = tuple[tuple[int, int], tuple[int, int]]


def run_prepare(
    left: NDArray[Any],
    right: NDArray[Any],
    padded: tuple[int, int],
    *,
    region: Region | None = None,
    grid: WindowGrid | None = None,
    p: int = 16,
    canvas: DTypeLike = np.float32,
    offset: int = 0,
    first: int = 0,
    count: int | None = None,
) -> tuple[list[NDArray[Any]], Launch]:
    """What the kernel makes of two views, and its call: a region of the pair, both canvases of windows, or all."""
    outputs: list[Fenced] = []
    arguments: dict[str, Any] = {}
    if region is not None:
        outputs.append(Fenced((6, *region[1]), np.float32, offset))
        arguments["pair"] = PairRegion(outputs[0].address, *region)
    if grid is not None:
        n, s = (len(grid) - first if count is None else count), grid.rows.window * p
        outputs += [Fenced((n, 3, s, width), canvas, offset) for width in (2 * s, s)]
        addresses = [output.address for output in outputs[-2:]]
        arguments["canvases"] = Canvases(*addresses, canvas, grid, p, MEAN, STD, first=first, count=count)
    pixels = Pixels.from_array(left), Pixels.from_array(right)
    call = preparation.prepare(*pixels, left.dtype, left.shape[:2], padded, **arguments)
    launch(call)
    return [output.check() for output in outputs], call


def check_prepare(
    pair: list[NDArray[Any]], padded: tuple[int, int], grid: WindowGrid, p: int = 16, canvas: DTypeLike = np.float32
) -> Launch:
    """Asserts that the kernel makes the CPU's pair and canvases; returns its call."""
    wanted = prepare(*pair, padded)[0]
    stereo, center = expected_canvases(pair, padded, grid, p)
    outputs, call = run_prepare(*pair, padded, region=((0, 0), padded), grid=grid, p=p, canvas=canvas)
    for output, expected in zip(outputs, (wanted, stereo.astype(canvas), center.astype(canvas)), strict=True):
        same(output, expected)
    return call


@pytest.mark.parametrize("canvas", [np.float16, np.float32])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_prepare_equals_the_cpu_pipeline(size: tuple[int, int], dtype: DTypeLike, canvas: DTypeLike) -> None:
    H, W = Padding(32).padded_size(*size)
    grid = WindowGrid.cover(H, W, window=64, overlap=16, patch=16)
    call = check_prepare(pair_of(size, dtype), (H, W), grid, canvas=canvas)
    px = len(grid) * 64 * 64
    box = min(size[0], grid.rows.grid * 16) * min(size[1], grid.columns.grid * 16)
    assert call.minimum_bytes == 6 * np.dtype(dtype).itemsize * box + 24 * H * W + 9 * np.dtype(canvas).itemsize * px


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_value_is_divided_as_ieee_wants(dtype: DTypeLike) -> None:
    count = np.iinfo(np.dtype(dtype)).max + 1
    values = np.arange(count, dtype=np.int64).astype(dtype).reshape(-1, 64 if count > 256 else 16)
    left = np.repeat(values[..., None], 3, axis=2)
    size = left.shape[:2]
    grid = WindowGrid.cover(*size, window=16, overlap=0, patch=16)
    check_prepare([left, np.ascontiguousarray(left[::-1])], size, grid)


@pytest.mark.parametrize("p", [1, 2, 7, 14])
def test_prepare_takes_patches_no_multiple_of_four(p: int) -> None:
    size = (40, 61)
    padded = Padding(28).padded_size(*size)
    grid = WindowGrid.cover(*padded, window=3 * p if p > 3 else 5 * p, overlap=p, patch=p)
    check_prepare(pair_of(size, np.uint8), padded, grid, p, np.float16)


def views(size: tuple[int, int], dtype: DTypeLike) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    """One pair in memory of many kinds."""
    left, right = pair_of(size, dtype)
    for offset in (1, 2, 3):
        yield f"{offset} off", unaligned(left, offset), unaligned(right, 4 - offset)
    wide = [np.zeros((size[0] + 2, size[1] + 3, 3), dtype) for _ in range(2)]
    for whole, view in zip(wide, (left, right), strict=True):
        whole[1:-1, 2:-1] = view
    yield "cropped", wide[0][1:-1, 2:-1], wide[1][1:-1, 2:-1]
    upright = [np.ascontiguousarray(view.transpose(1, 0, 2)) for view in (left, right)]
    yield "vertical", upright[0].transpose(1, 0, 2), upright[1].transpose(1, 0, 2)
    yield "upside down", np.ascontiguousarray(left[::-1])[::-1], np.ascontiguousarray(right[:, ::-1])[:, ::-1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 3), (5, 8), (9, 21), (34, 67)])
def test_prepare_reads_any_strides(size: tuple[int, int], dtype: DTypeLike) -> None:
    H, W = Padding(16).padded_size(*size)
    wanted = prepare(*pair_of(size, dtype), (H, W))[0]
    kinds = set()
    for kind, left, right in views(size, dtype):
        kinds.add(kind)
        (output,), _ = run_prepare(left, right, (H, W), region=((0, 0), (H, W)))
        same(output, wanted)
    assert len(kinds) == 6


@pytest.mark.parametrize(
    ("origin", "region"),
    [((0, 0), (64, 96)), ((16, 32), (32, 48)), ((3, 5), (7, 9)), ((63, 95), (1, 1)), ((0, 4), (64, 91)),
     ((1, 2), (8, 8))],
)  # fmt: skip
@pytest.mark.parametrize("offset", [0, 1])
def test_prepare_writes_any_tile(origin: tuple[int, int], region: tuple[int, int], offset: int) -> None:
    size, padded = (50, 70), (64, 96)
    left, right = pair_of(size, np.uint8)
    wanted = prepare(left, right, padded)[0]
    (y, x), (rows, columns) = origin, region
    (output,), _ = run_prepare(left, right, padded, region=(origin, region), offset=offset)
    same(output, np.ascontiguousarray(wanted[:, y : y + rows, x : x + columns]))


@pytest.mark.parametrize("canvas", [np.float16, np.float32])
@pytest.mark.parametrize("offset", [0, 1])
def test_prepare_writes_some_windows_alone(canvas: DTypeLike, offset: int) -> None:
    size, padded, p = (90, 140), (96, 160), 16
    left, right = pair_of(size, np.uint8)
    grid = WindowGrid.cover(*padded, window=48, overlap=16, patch=p)
    stereo, center = expected_canvases([left, right], padded, grid, p)
    assert len(grid) > 8
    for first, count in ((0, 1), (1, 2), (2, 7), (len(grid) - 1, None), (3, None), (0, len(grid))):
        stop = len(grid) if count is None else first + count
        windows: dict[str, Any] = {"first": first, "count": count}
        outputs, _ = run_prepare(left, right, padded, grid=grid, canvas=canvas, offset=offset, **windows)
        for output, whole in zip(outputs, (stereo, center), strict=True):
            same(output, whole[first:stop].astype(canvas))


@pytest.mark.parametrize("canvas", [np.float16, np.float32])
@pytest.mark.parametrize("kept", [0, 1])
def test_prepare_leaves_a_canvas_out(kept: int, canvas: DTypeLike) -> None:
    size, padded, p = (50, 70), (64, 96), 16
    left, right = pair_of(size, np.uint8)
    grid = WindowGrid.cover(*padded, window=48, overlap=16, patch=p)
    expected = expected_canvases([left, right], padded, grid, p)[kept].astype(canvas)
    output = Fenced(expected.shape, canvas)
    places = [output.address if i == kept else 0 for i in range(2)]
    pixels = Pixels.from_array(left), Pixels.from_array(right)
    call = preparation.prepare(
        *pixels, left.dtype, size, padded, canvases=Canvases(*places, canvas, grid, p, MEAN, STD)
    )
    launch(call)
    same(output.check(), expected)
    assert call.minimum_bytes == left.nbytes + right.nbytes + expected.nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="maps memory without reserving it")
def test_prepare_reads_past_32_bits() -> None:
    stride = 2**31 + 1
    image = np.lib.stride_tricks.as_strided(sparse(3 * stride + 24), (4, 8, 3), (stride, 3, 1))
    image[...] = pair_of((4, 8), np.uint8)[0]
    (output,), _ = run_prepare(image, image, (4, 8), region=((0, 0), (4, 8)))
    same(output, prepare(image, image, (4, 8))[0])


GRID = WindowGrid.cover(32, 32, window=32, overlap=0, patch=16)
PHOTO = Pixels(64, 96)


def preparing(size: tuple[int, int], padded: tuple[int, int], dtype: DTypeLike = np.uint8, **outputs: Any) -> Any:
    """A call of ``prepare``; ``pair`` is a region's origin and size, ``first`` the first window of a grid of one."""
    photo = outputs.pop("photo", PHOTO)
    if "pair" in outputs:
        outputs["pair"] = PairRegion(64, *outputs["pair"])
    if "first" in outputs:
        outputs["canvases"] = Canvases(0, 0, np.float16, GRID, 16, MEAN, STD, outputs.pop("first"))
    return lambda: preparation.prepare(photo, PHOTO, dtype, size, padded, **outputs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (preparing((32, 32), (32, 32)), "got neither"),
        (preparing((1, 1), (1, 1), np.int8, pair=((0, 0), (1, 1))), "expected uint8 or uint16, got int8"),
        (preparing((32, 32), (16, 32), pair=((0, 0), (1, 1))), "holds 32 x 32 px, got 16 x 32"),
        (preparing((32, 32), (32, 32), pair=((8, 0), (32, 8))), "inside 32 x 32 px, got 32 x 8 px at"),
        (preparing((9, 9), (32, 64), first=0), "over 64 px, got 2 tokens of 16 px"),
        (preparing((9, 9), (32, 32), first=0), "a stereo canvas, of a center view or both, got neither"),
        (preparing((9, 9), (32, 32), first=1), "among the grid's 1, got 0 from 1 on"),
        (
            preparing((9, 9), (9, 9), np.uint16, photo=Pixels(65, 96), pair=((0, 0), (9, 9))),
            "pixels at a multiple of 2 B, got 0x41",
        ),
    ],
)
def test_a_call_that_contradicts_itself_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_pixels_are_channels_side_by_side() -> None:
    with pytest.raises(ValueError, match="channels side by side"):
        Pixels.from_array(np.zeros((3, 4, 3), np.uint8)[..., ::-1])
