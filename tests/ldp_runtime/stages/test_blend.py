import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldp_runtime.stages.blend import TileBlender
from ldp_runtime.stages.tiles import TileGrid, fit_tile


def blend(grid: TileGrid, tiles: np.ndarray) -> np.ndarray:
    """Tiles ``(n, c, th, tw)`` in the order of ``origins``, weighted and summed to ``(c, H, W)``."""
    (th, tw), wy, wx = grid.tile, grid.rows.weights(), grid.columns.weights()
    whole = np.zeros((tiles.shape[1], grid.rows.size, grid.columns.size), dtype=np.float32)
    for k, ((y, x), tile) in enumerate(zip(grid.origins(), tiles, strict=True)):
        whole[:, y : y + th, x : x + tw] += wy[k // len(wx)][:, None] * wx[k % len(wx)] * tile
    return whole


def test_tiles_of_a_local_function_blend_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    H, W = 320, 448
    grid = TileGrid.cover(H, W, (192, 256), multiple=64, halo=32)
    whole = rng.standard_normal((3, H, W)).astype(np.float32)
    th, tw = grid.tile
    tiles = np.stack([whole[:, y : y + th, x : x + tw] for y, x in grid.origins()])
    tiles[1, :, :, :10] = 1e6  # wrong only where a tile's border is
    np.testing.assert_allclose(blend(grid, tiles), whole, atol=1e-5)
    assert len(grid) == len(tiles) > 3


@settings(max_examples=100)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), st.sampled_from([0, 4, 8]))
def test_tiles_blended_as_they_come_are_the_blend(h: int, w: int, th: int, tw: int, halo: int) -> None:
    sides = [fit_tile(8 * n, 8 * most, multiple=8, halo=halo) for n, most in ((h, th), (w, tw))]
    if None in sides:
        return
    grid = TileGrid.cover(8 * h, 8 * w, (sides[0] or 0, sides[1] or 0), multiple=8, halo=halo)
    tiles = np.random.default_rng(0).standard_normal((len(grid), 2, *grid.tile)).astype(np.float32)
    expected = blend(grid, tiles)
    blender = TileBlender(grid, 2)
    got = np.full_like(expected, np.nan)
    for tile in tiles:
        (y, x), block = blender.add(tile)
        target = got[:, y : y + block.shape[1], x : x + block.shape[2]]
        assert np.isnan(target).all(), "a px got twice"
        target[...] = block
    np.testing.assert_allclose(got, expected, atol=1e-5)  # NaN where a px never got


@pytest.mark.parametrize("tile", [512, 576, 1024])  # neighbours share a part, most, or all but nothing of a tile
def test_weights_of_one_need_no_product(tile: int) -> None:
    grid = TileGrid.cover(1024, 1280, (tile, 512), multiple=64)
    blender = TileBlender(grid)
    rng = np.random.default_rng(0)
    for i, down in enumerate(grid.rows.weights()):
        for j, along in enumerate(grid.columns.weights()):
            values = rng.standard_normal((3, *grid.tile)).astype(np.float32)
            expected = values * (down[:, None] * along)
            blender._weigh(values, i, j)
            np.testing.assert_array_equal(values, expected)


def test_a_blender_keeps_the_seams_alone() -> None:
    grid = TileGrid.cover(2048, 1024, (512, 512), multiple=64)
    blender = TileBlender(grid)
    for _ in range(len(grid)):
        blender.add(np.zeros((3, *grid.tile), np.float32))
        kept = blender._above.nbytes + blender._left.nbytes
        assert kept <= 4 * 3 * (grid.rows.longest_overlap * 1024 + grid.columns.longest_overlap * 512)
