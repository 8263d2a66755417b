"""The kernels behind the networks, built for the host, against their NumPy twins; see ``fenced`` for their outputs."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from ldp_runtime.chain import AXES
from ldp_runtime.cuda import launches
from ldp_runtime.cuda.launch import Launch, Pixels
from ldp_runtime.cuda.prompt_table import PromptTable
from ldp_runtime.stages.blur_map import blur_logits as blur_logits_twin
from ldp_runtime.stages.blur_map import upsample_map
from ldp_runtime.stages.geometry import Padding, WindowGrid
from tests.ldp_runtime.cuda.fenced import DTYPES, SIZES, Fenced, same, sparse, unaligned
from tests.ldp_runtime.cuda.host_build import ENV_SANITIZE, address, launch, signature
from tests.ldp_runtime.tiny_bundle import tiny_manifest
from tests.ldp_runtime.whole import to_image

PROMPTS = tiny_manifest().prompts


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


def test_a_launch_of_other_types_is_refused() -> None:
    call = launches.blur_map(64, (1, 1), 16, 64, (1, 1))
    assert signature("blur_map") == "PqqiiiPii"
    with pytest.raises(TypeError, match="expected arguments PqqiiiPii of blur_map, got PqqiiiPi"):
        launch(dataclasses.replace(call, arguments=call.arguments[:-1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: launches.blend(0, (4, 4), 0, 0, 0, (8, 8), (8, 0)), "over an accumulator of 8 x 8 px"),
        (lambda: launches.finish(0, (8, 8), Pixels(64, 96), np.uint8, (9, 8), 0), "holds 9 x 8 px, got 8 x 8"),
        (
            lambda: launches.finish(0, (8, 8), Pixels(64, 96), np.uint8, (8, 8), 0, plane=63),
            "at least 64 elements, got 63",
        ),
        (lambda: launches.blur_map(0, (1, 1), 16, 0, (0, 4)), "at least 1 x 1 px"),
        (lambda: launches.blur_map(0, (0, 1), 16, 0, (4, 4)), "at least one token"),
    ],
)
def test_a_call_that_contradicts_itself_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_windows_not_spread_evenly_are_refused() -> None:
    grid = WindowGrid.cover(32, 32, window=32, overlap=0, patch=16)
    uneven = dataclasses.replace(grid, rows=dataclasses.replace(grid.rows, grid=5, origins=(0, 2, 3)))
    table = PromptTable.create(np.ones((8, 4), np.float32), PROMPTS)
    with pytest.raises(ValueError, match="spread evenly"):
        launches.blur_logits(0, 0, np.float16, table, 0, uneven, 0, (1, 1), 0)


@pytest.mark.slow
@pytest.mark.skipif(bool(os.environ.get(ENV_SANITIZE)), reason="runs these files once more")
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
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("preparation", "launches")]
    environment = {**os.environ, ENV_SANITIZE: "1", "ASAN_OPTIONS": "detect_leaks=0"}
    environment["LD_PRELOAD"] = " ".join(map(str, preload))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", *files],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=Path(__file__).parents[3],
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
