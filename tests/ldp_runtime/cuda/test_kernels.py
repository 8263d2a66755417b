"""The kernels, built for the host, against their numpy twins: outputs poisoned and fenced, odd and unaligned sizes."""

import dataclasses
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from ldp_runtime.chain import AXES
from ldp_runtime.cuda import launches, preparation
from ldp_runtime.cuda.launch import Launch, Pixels
from ldp_runtime.cuda.preparation import Canvases, PairRegion
from ldp_runtime.cuda.prompt_table import PromptTable
from ldp_runtime.stages.blur_map import blur_logits as blur_logits_twin
from ldp_runtime.stages.blur_map import upsample_map
from ldp_runtime.stages.geometry import Padding, WindowGrid
from ldp_runtime.stages.pixels import PaddedPair
from tests.ldp_runtime.cuda.host_build import ENV_SANITIZE, address, launch, library, signature
from tests.ldp_runtime.tiny_bundle import tiny_manifest
from tests.ldp_runtime.whole import prepare, to_image

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PROMPTS = tiny_manifest().prompts
FENCE = 64
SIZES = [(1, 1), (1, 5), (5, 1), (2, 3), (4, 4), (7, 33), (32, 32), (33, 31), (37, 130), (65, 64), (100, 99)]
DTYPES = [np.uint8, np.uint16]


@pytest.fixture(autouse=True, scope="module")
def _host_build() -> None:
    library()


class Fenced:
    """An output: poisoned, with a fence on both sides that nobody may write to.

    Args:
        shape: Of the output.
        dtype: Of its elements.
        offset: Elements by which it is off 64 bytes.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, offset: int = 0) -> None:
        dtype = np.dtype(dtype)
        size = int(np.prod(shape))
        self._bytes = np.full(2 * FENCE + 64 + (size + offset) * dtype.itemsize, 0xAB, np.uint8)
        start = FENCE + (-(address(self._bytes) + FENCE)) % 64 + offset * dtype.itemsize
        self._fences = (self._bytes[:start], self._bytes[start + size * dtype.itemsize :])
        self.array: NDArray[Any] = self._bytes[start : start + size * dtype.itemsize].view(dtype).reshape(shape)
        if dtype.kind == "f":
            self.array[...] = np.nan

    @property
    def address(self) -> int:
        return address(self.array)

    def check(self) -> NDArray[Any]:
        """The output, once the fences are known to be whole."""
        for fence in self._fences:
            assert (fence == 0xAB).all(), "written outside of the output"
        return self.array


def unaligned(array: NDArray[Any], offset: int) -> NDArray[Any]:
    """A copy whose memory begins ``offset`` elements off an aligned address."""
    memory = np.empty(array.size + offset, array.dtype)
    copy = memory[offset:].reshape(array.shape)
    copy[...] = array
    return copy


def pair_of(size: tuple[int, int], dtype: DTypeLike, seed: int = 0) -> list[NDArray[Any]]:
    rng = np.random.default_rng([seed, *size])
    return [rng.integers(0, np.iinfo(np.dtype(dtype)).max + 1, (*size, 3)).astype(dtype) for _ in range(2)]


def expected_canvases(
    pair: list[NDArray[Any]], padded: tuple[int, int], grid: WindowGrid, p: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    source = PaddedPair(*pair, padded).extended((grid.rows.grid * p, grid.columns.grid * p))
    made = source.canvases([(y * p, x * p) for y, x in grid.origins()], grid.rows.window * p, MEAN, STD)
    return made["stereo"], made["center"]


def same(got: NDArray[Any], wanted: NDArray[Any]) -> None:
    """Bit for bit, with the first difference named."""
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    if not np.array_equal(got, wanted):
        at = tuple(int(i[0]) for i in np.nonzero(got != wanted))
        pytest.fail(f"{np.sum(got != wanted)} of {got.size} differ, first at {at}: {got[at]} for {wanted[at]}")


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


def features_of(grid: WindowGrid, channels: int, dtype: DTypeLike, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    g = grid.rows.window
    shapes = ((len(grid), g, 2 * g, channels), (len(grid), g, g, channels))
    stereo, center = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return stereo, center


def run_blur_logits(
    stereo: NDArray[Any],
    center: NDArray[Any],
    embeddings: NDArray[np.float32],
    grid: WindowGrid,
    size: tuple[int, int],
    ensemble: str | int = "ens2",
    prompts: Any = PROMPTS,
) -> tuple[NDArray[np.float32], int]:
    table = PromptTable.create(embeddings, prompts, ensemble)
    output, bad = Fenced(size, np.float32), Fenced((1,), np.int32)
    bad.array[0] = 0
    launch(
        launches.blur_logits(
            address(stereo) if table.dp_aware else 0,
            address(center) if table.blur_aware else 0,
            stereo.dtype,
            table,
            address(table.array),
            grid,
            output.address,
            size,
            bad.address,
        )
    )
    return output.check(), int(bad.check()[0])


def check_blur_logits(
    tokens: tuple[int, int], window: int, overlap: int, channels: int, dtype: DTypeLike, ensemble: str | int = "ens2"
) -> None:
    """Asserts that the kernel blends the CPU's logits of random features."""
    grid = WindowGrid.cover(*tokens, window=window, overlap=overlap, patch=1)
    stereo, center = features_of(grid, channels, dtype, channels)
    embeddings = np.random.default_rng(1).standard_normal((8, channels)).astype(np.float32)
    got, bad = run_blur_logits(stereo, center, embeddings, grid, tokens, ensemble)
    wanted = grid.blend(blur_logits_twin(stereo, center, embeddings, PROMPTS, ensemble))[: tokens[0], : tokens[1]]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)
    assert bad == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("channels", [1, 5, 24, 130, 264])
def test_blur_logits_equal_the_twin(channels: int, dtype: DTypeLike) -> None:
    check_blur_logits((4, 7), 3, 1, channels, dtype)


@pytest.mark.parametrize("ensemble", ["ens2", "blur-aware", "dp-aware", 0, 7])
def test_blur_logits_take_any_ensemble(ensemble: str | int) -> None:
    check_blur_logits((2, 3), 2, 1, 16, np.float16, ensemble)


@pytest.mark.parametrize(
    ("tokens", "window", "overlap"), [((3, 3), 3, 0), ((1, 9), 4, 3), ((5, 8), 3, 2), ((7, 2), 5, 1), ((6, 11), 4, 1)]
)
def test_windows_blend_as_the_grid_does(tokens: tuple[int, int], window: int, overlap: int) -> None:
    check_blur_logits(tokens, window, overlap, 4, np.float32)


def test_blur_logits_saturate_at_ten() -> None:
    prompts = [msgspec.structs.replace(p, offset=o, temperature=1e-3) for p, o in zip(PROMPTS, [0.0] * 8, strict=True)]
    grid = WindowGrid.cover(2, 2, window=2, overlap=0, patch=1)
    stereo, center = features_of(grid, 4, np.float32, 1)
    got, bad = run_blur_logits(stereo, center, np.ones((8, 4), np.float32), grid, (2, 2), 0, prompts)
    with np.errstate(over="ignore"):
        wanted = blur_logits_twin(stereo, center, np.ones((8, 4), np.float32), prompts, 0)[0]
    assert {-10.0, 10.0} == set(np.unique(wanted).tolist())
    same(got, wanted)
    assert bad == 0


def test_a_zero_feature_has_cosine_zero() -> None:
    grid = WindowGrid.cover(2, 2, window=2, overlap=0, patch=1)
    stereo, center = features_of(grid, 8, np.float16, 1)
    stereo[:], center[:] = 0, 0
    embeddings = np.random.default_rng(2).standard_normal((8, 8)).astype(np.float32)
    got, bad = run_blur_logits(stereo, center, embeddings, grid, (2, 2))
    np.testing.assert_allclose(got, blur_logits_twin(stereo, center, embeddings, PROMPTS)[0], rtol=0, atol=1e-5)
    assert bad == 0


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["stereo", "center"])
def test_blur_logits_count_nan_and_inf(poison: float, where: str) -> None:
    grid = WindowGrid.cover(3, 5, window=3, overlap=1, patch=1)
    stereo, center = features_of(grid, 8, np.float16, 1)
    (stereo if where == "stereo" else center)[0, 1, 0, 3] = poison  # window 0, token (1, 0): under one window
    embeddings = np.random.default_rng(2).standard_normal((8, 8)).astype(np.float32)
    got, bad = run_blur_logits(stereo, center, embeddings, grid, (3, 5))
    assert bad == 1
    assert np.argwhere(~np.isfinite(got)).tolist() == [[1, 0]]


def test_a_table_holds_seven_prompts_of_a_format() -> None:
    many = [PROMPTS[0]] * 8
    with pytest.raises(ValueError, match="at most 7 blur-aware prompts, got 8"):
        PromptTable.create(np.ones((8, 4), np.float32), many)
    table = PromptTable.create(np.ones((7, 4), np.float32), many[:7])
    assert (table.blur_aware, table.dp_aware, table.array.shape) == (7, 0, (7, 8))


@pytest.mark.parametrize("patch", [4, 14, 16, 32])
@pytest.mark.parametrize("size", [(1, 1), (3, 4), (17, 30), (48, 64), (49, 65), (64, 95)])
@pytest.mark.parametrize("offset", [0, 1])
def test_blur_map_equals_the_twin(size: tuple[int, int], patch: int, offset: int) -> None:
    grid = tuple(-(-n // patch) + n % 2 for n in size)
    logits = np.random.default_rng(patch).uniform(-12, 12, grid).astype(np.float32)
    output = Fenced(size, np.float32, offset)
    launch(launches.blur_map(address(logits), grid, patch, output.address, size))
    wanted = upsample_map(logits, size, patch)
    np.testing.assert_allclose(output.check(), wanted, rtol=0, atol=3e-7)
    assert ((output.array >= 0) & (output.array <= 1)).all()


def test_blur_map_is_turned() -> None:
    logits = np.random.default_rng(0).uniform(-5, 5, (4, 6)).astype(np.float32)
    whole = Fenced((90, 60), np.float32)  # upright: 6 x 4 tokens of 16 px
    launch(launches.blur_map(address(logits), (6, 4), 16, whole.address, (90, 60), strides=(1, 6)))
    np.testing.assert_allclose(whole.check(), upsample_map(logits.T, (90, 60), 16), rtol=0, atol=3e-7)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(
    ("tile", "accumulator", "at"),
    [((8, 16), (8, 16), (0, 0)), ((9, 7), (20, 21), (3, 5)), ((8, 16), (16, 32), (4, 8)), ((8, 16), (6, 24), (-3, 12)),
     ((8, 16), (12, 20), (9, -5)), ((1, 1), (3, 3), (2, 2)), ((16, 12), (4, 8), (-6, -3))],
)  # fmt: skip
def test_blend_adds_the_weighted_tile(
    tile: tuple[int, int], accumulator: tuple[int, int], at: tuple[int, int], offset: int
) -> None:
    rng = np.random.default_rng([*tile, *accumulator])
    values = unaligned(rng.standard_normal((3, *tile)).astype(np.float32), offset)
    wy, wx = (unaligned(rng.uniform(0.1, 0.9, n).astype(np.float32), offset) for n in tile)
    output = Fenced((3, *accumulator), np.float32, offset)
    output.array[:] = rng.standard_normal((3, *accumulator))
    wanted = output.array.copy()
    y, x = at
    top, left = max(y, 0), max(x, 0)
    rows, columns = slice(top, min(y + tile[0], accumulator[0])), slice(left, min(x + tile[1], accumulator[1]))
    inner = (slice(rows.start - y, rows.stop - y), slice(columns.start - x, columns.stop - x))
    weight = (wy[:, None] * wx)[inner]
    wanted[:, rows, columns] += weight * values[:, inner[0], inner[1]]
    call = launches.blend(address(values), tile, address(wy), address(wx), output.address, accumulator, at)
    launch(call)
    same(output.check(), wanted)
    assert call.minimum_bytes == 24 * weight.size


def test_blend_stores_where_no_other_tile_reaches() -> None:
    tile = np.random.default_rng(0).standard_normal((3, 4, 16)).astype(np.float32)
    wy, wx = np.ones(4, np.float32), np.ones(16, np.float32)
    wx[12:] = (0.8, 0.6, 0.4, 0.2)
    wx[1] = 0.5
    output = Fenced((3, 4, 16), np.float32)  # NaN: read nowhere but where the weights are below one
    output.array[:, :, wx < 1] = 0
    launch(launches.blend(address(tile), (4, 16), address(wy), address(wx), output.address, (4, 16), (0, 0)))
    same(output.check(), np.where(wx < 1, np.float32(0) + wx * tile, tile))


def restored_of(padded: tuple[int, int], dtype: DTypeLike) -> NDArray[np.float32]:
    """Values in and around [0, 1], many of them half way between two levels."""
    rng = np.random.default_rng(padded)
    top = np.iinfo(np.dtype(dtype)).max
    levels = rng.integers(-3, top + 4, (3, *padded)) + rng.choice([0.0, 0.5, -0.5], (3, *padded))
    restored: NDArray[np.float32] = (levels / top).astype(np.float32)
    loose = rng.random((3, *padded)) < 0.3
    restored[loose] = rng.uniform(-2, 3, int(loose.sum()))
    return restored


def run_finish(
    restored: NDArray[np.float32], image: NDArray[Any], axis: str = "horizontal", bad: int = 0
) -> tuple[int, Launch]:
    """Writes the image; the count of NaN and Inf, which begins at ``bad``, and the call."""
    count = Fenced((1,), np.int32)
    count.array[0] = bad
    along_x = image if axis == "horizontal" else image.transpose(1, 0, 2)
    padded, pixels = restored.shape[1:], Pixels.from_array(along_x)
    call = launches.finish(address(restored), padded, pixels, image.dtype, along_x.shape[:2], count.address)
    launch(call)
    return int(count.check()[0]), call


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_finish_equals_the_cpu_pipeline(size: tuple[int, int], dtype: DTypeLike, axis: str) -> None:
    padded = Padding(16).padded_size(*size)
    restored = restored_of(padded, dtype)
    wanted = to_image(restored, np.empty((*size, 3), dtype), axis)
    for offset in (0, 1, 2, 3):
        output = Fenced(wanted.shape, dtype, offset)
        bad, call = run_finish(restored, output.array, axis)
        same(output.check(), wanted)
        assert bad == 0
    assert call.minimum_bytes == 12 * padded[0] * padded[1] + wanted.nbytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_half_is_rounded_to_even(dtype: DTypeLike) -> None:
    top = np.iinfo(np.dtype(dtype)).max
    halves = (np.arange(-2, 2 * top + 6) / 2 / top).astype(np.float32)
    restored = np.zeros((3, 8, -(-halves.size // 24)), np.float32)
    restored.reshape(-1)[: halves.size] = halves
    wanted = to_image(restored, np.empty((*restored.shape[1:], 3), dtype), "horizontal")
    output = Fenced(wanted.shape, dtype)
    run_finish(restored, output.array)
    same(output.check(), wanted)


@pytest.mark.parametrize("axis", AXES)
def test_finish_writes_into_a_larger_image(axis: str) -> None:
    restored = restored_of((16, 32), np.uint8)
    view = np.empty((13, 27, 3), np.uint8)
    wanted = to_image(restored, view, axis)
    canvas = Fenced((wanted.shape[0] + 4, wanted.shape[1] + 5, 3), np.uint8)
    frame = canvas.array.copy()
    hole = (slice(1, 1 + wanted.shape[0]), slice(2, 2 + wanted.shape[1]))
    frame[hole] = wanted
    run_finish(restored, canvas.array[hole], axis)
    same(canvas.check(), frame)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("width", [32, 27])
def test_finish_counts_nan_and_inf_in_the_padding_too(axis: str, width: int) -> None:
    padded, size = (16, 32), (13, width)
    restored = restored_of(padded, np.uint8)
    restored[0, 0, 0], restored[2, 15, 31], restored[1, 12, 26], restored[1, 3, 4] = np.nan, np.inf, -np.inf, np.nan
    image = np.empty((*(size if axis == "horizontal" else size[::-1]), 3), np.uint8)
    assert run_finish(restored, image, axis, bad=5)[0] == 5 + 4  # added to, not set


def sparse(size: int) -> NDArray[np.uint8]:
    """So many zero bytes, of which memory holds only what is touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)
    except OSError as error:
        pytest.skip(f"no {size >> 30} GiB of addresses: {error}")


@pytest.mark.skipif(sys.platform != "linux", reason="maps memory without reserving it")
def test_indices_reach_past_32_bits() -> None:
    plane = 2**31 + 64
    memory = sparse(4 * (2 * plane + 64)).view(np.float32)
    restored = restored_of((4, 8), np.uint8)
    for c in range(3):
        memory[c * plane : c * plane + 32] = restored[c].ravel()
    stride = 2**31 + 1
    pixels = sparse(3 * stride + 24)
    image = np.lib.stride_tricks.as_strided(pixels, (4, 8, 3), (stride, 3, 1))
    bad = np.zeros(1, np.int32)
    launch(
        launches.finish(address(memory), (4, 8), Pixels.from_array(image), np.uint8, (4, 8), address(bad), plane=plane)
    )
    same(np.ascontiguousarray(image), to_image(restored, image, "horizontal"))

    (output,), _ = run_prepare(image, image, (4, 8), region=((0, 0), (4, 8)))
    same(output, prepare(image, image, (4, 8))[0])


def test_a_launch_of_other_types_is_refused() -> None:
    call = launches.blur_map(64, (1, 1), 16, 64, (1, 1))
    assert signature("blur_map") == "PqqiiiPii"
    with pytest.raises(TypeError, match="expected arguments PqqiiiPii of blur_map, got PqqiiiPi"):
        launch(dataclasses.replace(call, arguments=call.arguments[:-1]))


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
        (lambda: launches.blend(0, (4, 4), 0, 0, 0, (8, 8), (8, 0)), "over an accumulator of 8 x 8 px"),
        (lambda: launches.finish(0, (8, 8), PHOTO, np.uint8, (9, 8), 0), "holds 9 x 8 px, got 8 x 8"),
        (lambda: launches.finish(0, (8, 8), PHOTO, np.uint8, (8, 8), 0, plane=63), "at least 64 elements, got 63"),
        (lambda: launches.blur_map(0, (1, 1), 16, 0, (0, 4)), "at least 1 x 1 px"),
        (lambda: launches.blur_map(0, (0, 1), 16, 0, (4, 4)), "at least one token"),
    ],
)
def test_a_call_that_contradicts_itself_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_windows_not_spread_evenly_are_refused() -> None:
    rows = dataclasses.replace(GRID.rows, grid=5, origins=(0, 2, 3))
    uneven = dataclasses.replace(GRID, rows=rows)
    table = PromptTable.create(np.ones((8, 4), np.float32), PROMPTS)
    with pytest.raises(ValueError, match="spread evenly"):
        launches.blur_logits(0, 0, np.float16, table, 0, uneven, 0, (1, 1), 0)


def test_pixels_are_channels_side_by_side() -> None:
    with pytest.raises(ValueError, match="channels side by side"):
        Pixels.from_array(np.zeros((3, 4, 3), np.uint8)[..., ::-1])


@pytest.mark.slow
@pytest.mark.skipif(bool(os.environ.get(ENV_SANITIZE)), reason="runs this file once more")
def test_no_sanitizer_complains() -> None:
    compiler = shutil.which("g++")
    assert compiler is not None
    found = (
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        for name in ("libasan.so", "libstdc++.so.6")  # the latter before others throw, as OpenCV does
    )
    preload = [Path(line.strip()) for line in found]
    if not all(path.is_absolute() for path in preload):
        pytest.skip("AddressSanitizer's library is not installed")
    environment = {**os.environ, ENV_SANITIZE: "1", "ASAN_OPTIONS": "detect_leaks=0"}
    environment["LD_PRELOAD"] = " ".join(map(str, preload))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", str(Path(__file__))],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=Path(__file__).parents[3],
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
