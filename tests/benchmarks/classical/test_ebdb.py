import numpy as np
import pytest
from scipy import ndimage

from benchmarks.classical.ebdb import blur_map, reconcile, recursive_filter


def encoded(linear: np.ndarray) -> np.ndarray:
    """Grey RGB whose luma of YCbCr to the power 2.4 is ``linear`` times that of white."""
    low, high = (16 / 255) ** 2.4, (235 / 255) ** 2.4
    grey = (255 * (low + (high - low) * linear) ** (1 / 2.4) - 16) / 219
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize("sigma", [1.5, 2.0, 3.0])
def test_the_blur_of_an_edge_is_found(sigma: float) -> None:
    step = np.zeros((96, 96))
    step[:, 48:] = 0.8
    found = blur_map(encoded(ndimage.gaussian_filter1d(step, sigma, axis=1)))
    np.testing.assert_allclose(found[20:-20, 44:52], sigma, rtol=0.15)


def test_two_edges_keep_their_own_blur() -> None:
    """One edge of 1.5 px, one of 3.5 px, and a sharp contrast between, across which nothing spreads."""
    step = np.zeros((96, 240))
    step[:, 60:] = 0.5
    near = ndimage.gaussian_filter1d(step, 1.5, axis=1)
    step = np.zeros((96, 240))
    step[:, 180:] = 0.5
    far = ndimage.gaussian_filter1d(step, 3.5, axis=1)
    found = blur_map(encoded(near + far))
    assert found[48, 60] < 2.2 < 2.6 < found[48, 180]


def test_a_flat_photo_has_no_blur() -> None:
    assert not blur_map(np.full((32, 40, 3), 0.5)).any()


def test_reconciling_solves_the_equations_of_each_pixel() -> None:
    rng = np.random.default_rng(0)
    reliable = rng.random((7, 9)) < 0.4
    rows, columns = np.nonzero(reliable)
    blur, scales = rng.random(rows.size), rng.integers(4, 10, rows.size)
    x = reconcile(blur, reliable, scales)
    for i in range(rows.size):
        near = [
            j for j in range(rows.size)
            if j != i and abs(rows[i] - rows[j]) <= 1 and abs(columns[i] - columns[j]) <= 1
        ]  # fmt: skip
        left = (20 * len(near) + 1 + scales[i]) * x[i] - 20 * sum(x[j] for j in near)
        assert left == pytest.approx((1 + scales[i]) * blur[i])


def test_the_filter_smooths_but_not_across_the_guides_edges() -> None:
    rng = np.random.default_rng(0)
    guide = np.zeros((20, 40, 1))
    guide[:, 20:] = 1
    planes = guide + 0.2 * rng.standard_normal(guide.shape)
    smooth = recursive_filter(planes, guide, 8, 0.02)
    assert abs(smooth[:, :20].mean()) < 0.05 and abs(smooth[:, 20:].mean() - 1) < 0.05
    assert smooth[:, :18].std() < 0.06
    blind = recursive_filter(planes, np.zeros_like(guide), 8, 0.02)
    assert blind[:, 19].mean() > 0.3
    constant = recursive_filter(np.ones((5, 6, 2)), guide[:5, :6], 3, 1)
    np.testing.assert_allclose(constant, 1)
