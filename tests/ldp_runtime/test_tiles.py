from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldp_runtime.tiles import TILE_HALO, TileAxis, TileGrid, fit_tile, is_local, tile_multiple

NANO = {"encoder": [1, 1, 2], "stem": 2, "bpa": ["decoder"], "window": 8, "sca_cell": 32}
SMALL = {"encoder": [2, 2, 2, 2], "stem": 1, "bpa": ["encoder", "middle", "decoder"], "window": 16, "sca_cell": 32}


def test_the_grid_is_that_of_the_deepest_window() -> None:
    assert tile_multiple(NANO, 32, 16) == 64  # 8 positions of 8 px
    assert tile_multiple(SMALL, 32, 32) == 256  # 16 positions of 16 px, in the middle
    assert tile_multiple({**SMALL, "bpa": ["encoder"]}, 32, 32) == 128
    assert tile_multiple({**SMALL, "bpa": []}, 32, 14) == 224
    assert tile_multiple({"config": "another"}, 32, 16) == 32


def test_global_networks_are_not_local() -> None:
    assert is_local(NANO)
    assert not is_local({**NANO, "sca_cell": None})
    assert not is_local({**NANO, "window": None})
    assert is_local({**NANO, "window": None, "bpa": []})


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([32, 64]), st.integers(0, 48))
def test_tiles_cover_the_axis_with_halos(units: int, most: int, multiple: int, halo: int) -> None:
    size = 32 * units
    tile = fit_tile(size, 32 * most, multiple=multiple, halo=halo)
    if tile is None:
        assert 32 * most < multiple + 2 * halo + multiple
        return
    axis = TileAxis.spread(size, tile, multiple=multiple, halo=halo)
    assert axis.tile <= max(32 * most, 1)
    assert axis.origins[0] == 0
    assert axis.origins[-1] + tile == size
    assert all(origin % multiple == 0 for origin in axis.origins)
    gaps = np.diff(axis.origins)
    assert (gaps > 0).all()
    assert (tile - gaps >= 2 * halo).all()
    weights = axis.weights()
    total = np.zeros(size)
    for origin, weight in zip(axis.origins, weights, strict=True):
        total[origin : origin + tile] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert weights.min() >= 0
    margin = halo // 2  # the border of a tile, where its neighbours are missing, counts for nothing
    if len(axis.origins) > 1 and margin:
        assert (weights[1:, :margin] == 0).all()
        assert (weights[:-1, tile - margin :] == 0).all()


def test_weights_are_smooth() -> None:
    axis = TileAxis.spread(1024, 512, multiple=64)
    assert np.abs(np.diff(axis.weights(), axis=1)).max() < 0.05


def test_a_tile_that_does_not_end_with_the_axis() -> None:
    with pytest.raises(ValueError, match=r"shorter than the axis of 1000 px by a multiple of 64 px.* came 512"):
        TileAxis.spread(1000, 512, multiple=64)
    with pytest.raises(ValueError, match="came 128"):
        TileAxis.spread(1024, 128, multiple=64)  # no room between its halos
    assert fit_tile(1024, 160, multiple=64) is None
    assert fit_tile(1000, 512, multiple=64) == 1000 - 8 * 64


def test_tiles_of_a_local_function_blend_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    H, W = 320, 448
    grid = TileGrid.cover(H, W, (192, 256), multiple=64, halo=TILE_HALO // 2)
    whole = rng.standard_normal((3, H, W)).astype(np.float32)
    th, tw = grid.tile
    tiles = np.stack([whole[:, y : y + th, x : x + tw] for y, x in grid.origins()])
    tiles[1, :, :, :10] = 1e6  # wrong only where a tile's border is
    np.testing.assert_allclose(grid.blend(tiles), whole, atol=1e-5)
    assert len(grid) == len(tiles) > 3
