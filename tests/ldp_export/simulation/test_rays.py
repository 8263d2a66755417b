from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ldp_export.simulation import rays as simulate_rays
from ldp_export.simulation.rays import aperture_samples, simulate_pair_rays
from ldp_export.simulation.simulate import NOISE_FREE, SensorNoise, SimulatedPair, quantise, simulate_pair
from ldp_runtime.images.linear import linear_to_srgb, srgb_to_linear

Image = NDArray[np.float32]
HEIGHT, WIDTH = 48, 64


def coc_of(value: float) -> Image:
    return np.full((HEIGHT, WIDTH), value, dtype=np.float32)


def photo(sigma: float = 1.5) -> NDArray[Any]:
    noise = np.random.default_rng(0).random((HEIGHT, WIDTH, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma)
    return quantise((smooth - smooth.min()) / np.ptp(smooth), 16)


def render(image: NDArray[Any], coc: Image) -> SimulatedPair:
    return simulate_pair_rays(image, coc, noise=NOISE_FREE, bits=16)


def linear(view: NDArray[Any]) -> Image:
    return srgb_to_linear(view / np.float32(65535))


def post_before_wall() -> Image:
    coc = coc_of(4)
    coc[:, 24:40] = -3
    return coc


@pytest.mark.parametrize("radius", [0.0, 0.5, 1.5, 6.0])
def test_aperture_is_symmetrical_and_its_halves_add_up(radius: float) -> None:
    points, left, right = aperture_samples(radius)
    assert len(points) == len(left) == len(right) > 0
    assert float(np.hypot(*points.T).max()) <= 1 + 1e-6
    for weights in (left, right):
        assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
        assert float(weights.min()) > 0
    np.testing.assert_allclose(left + right, 2 / len(points), rtol=1e-4)
    mirrored = {tuple(np.round(-point, 5) + 0.0): weight for point, weight in zip(points, right, strict=True)}
    for point, weight in zip(points, left, strict=True):
        assert mirrored[tuple(np.round(point, 5) + 0.0)] == pytest.approx(weight, rel=1e-4)
    if radius > 1:
        shifts = [float((weights * points[:, 0]).sum()) for weights in (left, right)]
        moment = float(((left + right) / 2 * np.square(points).sum(1)).sum())
        # The left photodiode looks through smaller x; r is the radius of an even disk with this second moment.
        assert (shifts[1] - shifts[0]) / np.sqrt(2 * moment) == pytest.approx(0.45, abs=0.02)


def test_aperture_is_a_hexagon() -> None:
    points, *_ = aperture_samples(60.0)
    area = len(points) / (2 * np.ceil(60 / 0.6) + 1) ** 2 * 4
    assert area == pytest.approx(3 * np.sqrt(3) / 2, rel=0.02)


def test_a_scene_of_one_colour_stays_that_colour() -> None:
    image = np.full((HEIGHT, WIDTH, 3), 30000, dtype=np.uint16)
    steps = np.random.default_rng(0).uniform(-4, 4, (6, 8)).repeat(8, axis=0).repeat(8, axis=1)
    for coc in (coc_of(0), coc_of(3), post_before_wall(), steps.astype(np.float32)):
        pair = render(image, coc)
        for view in (pair.left, pair.right, pair.target):
            assert int(np.abs(view.astype(int) - 30000).max()) <= 1


def test_a_scene_in_focus_is_its_image() -> None:
    image = photo()
    pair = render(image, coc_of(0))
    np.testing.assert_array_equal(pair.left, pair.right)
    assert int(np.abs(pair.left.astype(int) - image).max()) <= 1


def test_regions_in_focus_are_identical_in_both_views() -> None:
    coc = coc_of(0)
    coc[:, 40:] = 4
    pair = simulate_pair_rays(quantise(photo() / 65535), coc, noise=NOISE_FREE)
    np.testing.assert_array_equal(pair.left[:, :40], pair.right[:, :40])
    np.testing.assert_array_equal(pair.left[:, :40], pair.target[:, :40])
    assert (pair.left[:, 46:] != pair.right[:, 46:]).mean() > 0.5


@pytest.mark.parametrize("coc", [coc_of(3), coc_of(-2), post_before_wall()], ids=["far", "near", "post"])
def test_the_views_mean_is_the_full_apertures_photo(coc: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly, at occlusions too: the views are sums of the same pinhole views."""
    pair = render(photo(), coc)
    views_mean = (linear(pair.left) + linear(pair.right)) / 2

    def whole(max_radius: float) -> tuple[Image, Image, Image]:
        points, left, right = aperture_samples(max_radius)
        return points, (left + right) / 2, (left + right) / 2

    monkeypatch.setattr(simulate_rays, "aperture_samples", whole)
    ordinary = render(photo(), coc)
    np.testing.assert_array_equal(ordinary.left, ordinary.right)
    np.testing.assert_allclose(views_mean, linear(ordinary.left), atol=1e-4)
    assert float(np.abs(linear(pair.left) - linear(pair.right)).max()) > 0.05


def test_its_photo_is_the_sum_of_shifted_images() -> None:
    image, radius = photo(), 3.0
    pair = render(image, coc_of(radius))
    points, left, right = aperture_samples(radius)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    for view, weights in ((pair.left, left), (pair.right, right)):
        expected = np.zeros((HEIGHT, WIDTH, 3))
        for (u, v), weight in zip(points, weights, strict=True):
            shifted = cv2.remap(linear(image), x - radius * u, y - radius * v, cv2.INTER_LINEAR)
            expected += weight * shifted
        inner = (slice(4, -4), slice(4, -4))
        np.testing.assert_allclose(linear(view)[inner], expected[inner], atol=0.005)


def lean(pair: SimulatedPair) -> float:
    """The shift between the views to first order: positive where content stands further right in ``L``."""
    left, right = (linear(view)[6:-6, 6:-6].mean(2).astype(np.float64) for view in (pair.left, pair.right))
    slope = np.gradient((left + right) / 2, axis=1)
    return -float((slope * (left - right)).sum() / (slope * slope).sum())


@pytest.mark.parametrize("radius", [-4.0, -1.5, 1.5, 4.0])
def test_views_shift_as_those_of_the_other_simulator(radius: float) -> None:
    image = photo(sigma=5.0)
    ours, theirs = lean(render(image, coc_of(radius))), lean(simulate_pair(image, coc_of(radius), bits=16))
    assert np.sign(ours) == np.sign(theirs) == -np.sign(radius)
    assert 0.5 < ours / theirs < 1.1  # another aperture, so another factor


def test_a_near_post_hides_what_is_behind_it() -> None:
    image = np.full((HEIGHT, WIDTH, 3), 3000, dtype=np.uint16)
    image[:, 24:40] = 60000
    coc = post_before_wall()
    coc[:, 24:40] = 0  # a sharp bright post before a blurred dark wall
    pair = render(image, coc)
    for view in (pair.left, pair.right):
        assert int(np.abs(view[:, 24:40].astype(int) - 60000).max()) <= 1
        assert int(np.abs(np.delete(view, range(24, 40), axis=1).astype(int) - 3000).max()) <= 1


def test_noise_depth_and_seed() -> None:
    image = quantise(linear_to_srgb(np.full((HEIGHT, WIDTH, 3), 0.2, np.float32)))
    pairs = [simulate_pair_rays(image, coc_of(1), noise=SensorNoise(0, 0.01), seed=s) for s in (1, 1, 2)]
    assert pairs[0].left.dtype == np.uint8
    np.testing.assert_array_equal(pairs[0].left, pairs[1].left)
    assert (pairs[0].left != pairs[2].left).mean() > 0.5
    spread = srgb_to_linear(pairs[0].left / np.float32(255)).std()
    assert float(spread) == pytest.approx(0.01, rel=0.1)
