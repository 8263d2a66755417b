import numpy as np
import pytest

from ldp_runtime.stages.geometry import Padding, WindowAxis, WindowGrid, fill_reflect, pad_reflect, reflect_indices


@pytest.mark.parametrize(
    ("size", "padded"), [((1, 1), (32, 32)), ((32, 64), (32, 64)), ((33, 31), (64, 32)), ((500, 741), (512, 768))]
)
def test_padded_size_is_the_next_multiple(size: tuple[int, int], padded: tuple[int, int]) -> None:
    assert Padding(32).padded_size(*size) == padded


def test_padded_sides_are_not_shorter_than_the_least() -> None:
    assert Padding(16, least=72).padded_size(1, 100) == (80, 112)


@pytest.mark.parametrize("n", [2, 3, 5, 17, 32])
def test_reflection_equals_numpy_also_when_iterated(n: int) -> None:
    for size in (n, n + 1, 2 * n - 1, 2 * n, 5 * n + 3):
        np.testing.assert_array_equal(reflect_indices(n, size), np.pad(np.arange(n), (0, size - n), mode="reflect"))


@pytest.mark.parametrize("size", [(50, 33), (20, 40), (33, 2), (2, 33), (3, 3), (64, 40)])
def test_padding_equals_numpy_reflect(size: tuple[int, int]) -> None:
    h, w = size
    H, W = Padding(32).padded_size(h, w)
    planes = np.random.default_rng(0).random((6, h, w), dtype=np.float32)
    expected = np.pad(planes, ((0, 0), (0, H - h), (0, W - w)), mode="reflect")
    np.testing.assert_array_equal(pad_reflect(planes, (H, W)), expected)
    filled = np.full((6, H, W), np.nan, dtype=np.float32)
    filled[:, :h, :w] = planes
    fill_reflect(filled, h, w)
    np.testing.assert_array_equal(filled, expected)


@pytest.mark.parametrize("size", [(1, 45), (45, 1), (1, 1)])
def test_strips_of_one_pixel_repeat_their_edge(size: tuple[int, int]) -> None:
    h, w = size
    planes = np.random.default_rng(0).random((h, w), dtype=np.float32)
    padded = pad_reflect(planes, (64, 64))
    rows, columns = (np.pad(np.arange(n), (0, 64 - n), mode="reflect" if n > 1 else "edge") for n in size)
    np.testing.assert_array_equal(padded, planes[rows][:, columns])


def test_nothing_to_pad_is_no_copy() -> None:
    planes = np.zeros((6, 32, 32), dtype=np.float32)
    assert pad_reflect(planes, (32, 32)) is planes


@pytest.mark.parametrize("window", [4, 7, 16])
@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_windows_cover_overlap_and_are_as_few_as_can_be(window: int, overlap: int) -> None:
    for grid in range(window, 70):
        axis = WindowAxis.spread(grid, window, overlap)
        steps = np.diff(axis.origins)
        assert axis.origins[0] == 0
        assert axis.origins[-1] == grid - window
        assert (steps > 0).all()
        assert (steps <= window - overlap).all(), (grid, axis)
        assert steps.max(initial=0) - steps.min(initial=window) <= 1, f"uneven: {axis}"
        assert (len(axis.origins) - 1) * (window - overlap) + window < grid + (window - overlap), (
            f"one fewer would do: {axis}"
        )


@pytest.mark.parametrize(("grid", "window", "overlap"), [(3, 4, 0), (8, 4, 4), (8, 4, -1)])
def test_impossible_windows_are_refused(grid: int, window: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"overlap {overlap}, window {window}, grid {grid}"):
        WindowAxis.spread(grid, window, overlap)


def test_weights_sum_to_one_at_every_token() -> None:
    for grid in (16, 17, 40, 61):
        axis = WindowAxis.spread(grid, 16, 4)
        total = np.zeros(grid)
        for origin, weights in zip(axis.origins, axis.weights(), strict=True):
            assert (weights > 0).all()
            total[origin : origin + 16] += weights
        np.testing.assert_allclose(total, 1, atol=1e-6)


def test_cover_counts_short_sides_as_one_window() -> None:
    grid = WindowGrid.cover(32, 512, window=256, overlap=64, patch=16)
    assert (grid.rows.grid, grid.columns.grid) == (16, 32)
    assert grid.origins() == [(0, 0), (0, 8), (0, 16)]
    assert len(grid) == 3


def test_overlap_is_rounded_up_to_the_patch_grid() -> None:
    grid = WindowGrid.cover(64, 1024, window=64, overlap=17, patch=16)
    assert np.diff(grid.columns.origins).max() <= 2  # two tokens of 16 px shared, not one


def test_blend_keeps_a_constant_and_a_shared_field() -> None:
    grid = WindowGrid.cover(160, 272, window=64, overlap=16, patch=16)
    field = np.random.default_rng(0).standard_normal((10, 17)).astype(np.float32)
    for whole in (np.full((10, 17), -7.25, np.float32), field):
        windows = np.stack([whole[y : y + 4, x : x + 4] for y, x in grid.origins()])
        np.testing.assert_allclose(grid.blend(windows), whole, atol=2e-6)


def test_blend_hides_the_seam_between_windows_that_disagree() -> None:
    grid = WindowGrid.cover(256, 448, window=256, overlap=64, patch=16)
    assert grid.origins() == [(0, 0), (0, 12)]
    windows = np.stack([np.zeros((16, 16), np.float32), np.ones((16, 16), np.float32)])
    row = grid.blend(windows)[3]
    np.testing.assert_allclose(row, [*[0] * 12, 0.2, 0.4, 0.6, 0.8, *[1] * 12], atol=1e-6)
