import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ldp_export.simulation.apertures import SEPARATIONS, Aperture, Layer, random_aperture, render_wrapped
from ldp_export.simulation.optics import FloatArray
from tests.ldp_export.simulation.layers import composite

SEEDS = range(60)


def centroid(kernel: FloatArray) -> NDArray[np.float64]:
    """Column and row of the centre of mass, from the middle."""
    half = kernel.shape[0] // 2
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
    return np.array([(kernel * columns).sum(), (kernel * rows).sum()]) / kernel.sum()


def textured(rng: np.random.Generator, side: int) -> FloatArray:
    return cv2.GaussianBlur(rng.random((side, side, 3), dtype=np.float32), (0, 0), 1.0)


def constant(side: int, value: float) -> FloatArray:
    return np.full((side, side), value, dtype=np.float32)


def test_separations_are_those_of_real_cameras() -> None:
    """0.42 to 0.50 r on a Canon, 0.40 to 0.46 r on a Pixel 4; a half disk has 0.85 r."""
    found = np.array([-random_aperture(np.random.default_rng(seed)).disparity(1.0) for seed in range(200)])
    assert found.min() > SEPARATIONS[0] - 0.05
    assert found.max() < SEPARATIONS[1] + 0.05
    assert 0.40 < np.median(found) < 0.50
    assert ((found > 0.38) & (found < 0.52)).mean() > 0.6


def test_a_view_is_a_whole_disk_brighter_on_one_side() -> None:
    ratios = []
    for seed in SEEDS:
        left = random_aperture(np.random.default_rng(seed), misaligned=False).views(12.0)[0]
        half = left.shape[1] // 2
        ratios.append(float(left[:, :half].sum() / left[:, half + 1 :].sum()))
    assert 2 < np.median(ratios) < 4.5
    assert min(ratios) > 1


@pytest.mark.parametrize("radius", [0.3, 3.0, 17.5])
def test_views_lie_apart_by_the_disparity(radius: float) -> None:
    """Behind the focal plane L's light lies at smaller x; before it, at larger x."""
    for seed in SEEDS:
        aperture = random_aperture(np.random.default_rng(seed), misaligned=False)
        for signed in (radius, -radius):
            left, right = (centroid(kernel) for kernel in aperture.views(signed))
            assert (left - right)[0] == pytest.approx(aperture.disparity(signed), abs=1e-3 * radius)
        assert aperture.disparity(radius) < 0 < aperture.disparity(-radius)


def test_no_blur_is_the_impulse_and_a_shift_moves_the_views_apart() -> None:
    drawn = random_aperture(np.random.default_rng(1), misaligned=False)
    for kernel in drawn.views(0.0):
        assert kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] == pytest.approx(1.0, abs=1e-6)
    shifted = Aperture(drawn.left, drawn.right, shift=0.5)
    for radius in (0.0, 4.0):
        before, after = drawn.views(radius), shifted.views(radius)
        moved = [centroid(b) - centroid(a) for a, b in zip(before, after, strict=True)]
        assert np.allclose(moved, [[0, -0.25], [0, 0.25]], atol=1e-3)


def test_rendering_equals_convolution_and_composition() -> None:
    """Against a slow transcription: every layer by its kernel, over what lies behind."""
    rng = np.random.default_rng(3)
    side, margin = 96, 30
    aperture = random_aperture(rng)
    alpha = np.zeros((side, side), np.float32)
    cv2.circle(alpha, (48, 48), 14, 1.0, -1)
    layers = [Layer(textured(rng, side), constant(side, 1), 9.0), Layer(textured(rng, side), alpha, -6.0)]
    inner = np.s_[margin:-margin, margin:-margin]
    for view, wanted in zip(render_wrapped(layers, aperture), composite(layers, aperture), strict=True):
        assert np.abs(view - wanted)[inner].max() < 1e-4


def test_a_slanted_surface_lies_between_its_levels() -> None:
    rng = np.random.default_rng(4)
    side, inner = 128, np.s_[40:-40, 40:-40]
    aperture, image = random_aperture(rng, misaligned=False), textured(rng, side)
    slanted = np.repeat(np.linspace(4, 12, side, dtype=np.float32)[None], side, axis=0)
    found = render_wrapped([Layer(image, constant(side, 1), slanted)], aperture)[0]
    column = 64
    radius = float(slanted[0, column])
    exact = render_wrapped([Layer(image, constant(side, 1), radius)], aperture)[0]
    difference = np.abs(found - exact)[:, column][inner[0]].max()
    blurred_away = np.abs(found - image)[:, column][inner[0]].max()
    assert difference < 0.06 * blurred_away, (difference, blurred_away)


@pytest.mark.parametrize("separation", [0.25, 0.45])
def test_a_separation_that_is_asked_for_is_that_of_every_aperture(separation: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        aperture = random_aperture(rng, misaligned=False, separation=separation)
        left, right = aperture.views(12.0)
        both = (left + right) / 2
        y, x = np.indices(both.shape) - len(both) // 2
        radius = np.sqrt(2 * (both * (x**2 + y**2)).sum())
        assert ((right - left) * x).sum() / radius == pytest.approx(separation, abs=0.02)
