from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from ldp_export.simulation.optics import HalfAperturePSF, SimulationError
from ldp_export.simulation.simulate import NOISE_FREE, SensorNoise, quantise, render_image, simulate_pair
from ldp_runtime.errors import LDPError
from ldp_runtime.images.linear import linear_to_srgb, srgb_to_linear

Image = NDArray[np.float32]
PSF = HalfAperturePSF()


def full(shape: tuple[int, ...], value: float) -> Image:
    return np.full(shape, value, dtype=np.float32)


def texture(height: int, width: int, sigma: float = 1.0, seed: int = 0) -> Image:
    """Smooth random colours ``(h, w, 3)``, linear light in [0.1, 0.9]."""
    noise = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    return np.float32(0.1) + np.float32(0.8) * (smooth - smooth.min()) / np.ptp(smooth)


def rms(difference: Any) -> float:
    return float(np.sqrt(np.square(difference).mean()))


# --- one surface --------------------------------------------------------------------------------------------


def full_aperture(radius: float, psf: HalfAperturePSF = PSF) -> NDArray[np.float64]:
    """The full aperture's PSF: the disk alone, sampled through the same tent filter by loops."""
    reach = radius * 10 ** (1 / psf.order)
    samples = np.linspace(-reach, reach, max(25, 2 * int(np.ceil(reach * 5)) + 1))
    half = int(np.ceil(reach))
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    for y in samples:
        for x in samples:
            light = 1 / (1 + (np.hypot(x, y) / radius) ** (2 * psf.order))
            row, column = int(np.floor(y)), int(np.floor(x))
            for i, wy in ((row, 1 - y + row), (row + 1, y - row)):
                for j, wx in ((column, 1 - x + column), (column + 1, x - column)):
                    if abs(i) <= half and abs(j) <= half:
                        kernel[i + half, j + half] += wy * wx * light
    return kernel / kernel.sum()


def slow_blur(image: Image, kernel: NDArray[Any]) -> NDArray[np.float64]:
    """Scatters every pixel by the kernel, edges reflected (101)."""
    half = kernel.shape[0] // 2
    padded = np.pad(image.astype(np.float64), ((half, half), (half, half), (0, 0)), mode="reflect")
    out = np.zeros(image.shape)
    for a in range(-half, half + 1):
        for b in range(-half, half + 1):
            rows, columns = half - a, half - b
            shifted = padded[rows : rows + image.shape[0], columns : columns + image.shape[1]]
            out += kernel[a + half, b + half] * shifted
    return out


@pytest.mark.parametrize("radius", [-3.0, 0.6, 2.25])
def test_the_views_mean_is_the_ordinary_defocused_photo(radius: float) -> None:
    image = texture(24, 32)
    photo = slow_blur(image, full_aperture(abs(radius)))
    left, right = render_image(image, full((24, 32), radius), PSF)
    # Radii are rendered in steps of 0.25 px and interpolated between them.
    np.testing.assert_allclose((left + right) / 2, photo, atol=1e-5 if radius % 0.25 == 0 else 3e-4)
    assert float(np.abs(left - right).max()) > 0.02  # and each view is not the photo


@pytest.mark.parametrize("radius", [-3.0, 2.25])
def test_each_view_is_the_image_scattered_by_its_kernel(radius: float) -> None:
    image = texture(24, 32)
    views = render_image(image, full((24, 32), radius), PSF)
    for view, kernel in zip(views, PSF.views(radius), strict=True):
        np.testing.assert_allclose(view, slow_blur(image, kernel), atol=1e-5)


def measured_shift(left: Image, right: Image, reach: float) -> float:
    """How much further right content stands in the left view, in px, where the views match best."""
    margin = int(np.ceil(reach)) + 3
    shifts = np.arange(-reach, reach + 0.01, 0.1)
    errors = [
        rms((ndimage.shift(right[..., 1], (0, d), order=3, mode="nearest") - left[..., 1])[:, margin:-margin]) ** 2
        for d in shifts
    ]
    best = int(np.clip(np.argmin(errors), 1, len(errors) - 2))
    before, at, after = errors[best - 1 : best + 2]
    return float(shifts[best] + 0.05 * (before - after) / (before - 2 * at + after))


def test_measured_shift_is_proportional_to_the_signed_coc() -> None:
    image = quantise(linear_to_srgb(texture(48, 96, sigma=4.0)), 16)
    shifts = {}
    for radius in (-6, -4, -2, -1, -0.5, 0.5, 1, 2, 4, 6):
        pair = simulate_pair(image, full((48, 96), radius), bits=16)
        left, right = (srgb_to_linear(view / np.float32(65535)) for view in (pair.left, pair.right))
        shifts[radius] = measured_shift(left, right, 6.5)
    ratios = np.array([shift / radius for radius, shift in shifts.items()])
    # Matching weighs the kernels' shapes too, so it is a little more than the centroids' distance.
    np.testing.assert_allclose(ratios, PSF.disparity(1.0), rtol=0.12)
    assert all((shift < 0) == (radius > 0) for radius, shift in shifts.items())


def test_a_varying_coc_is_the_gather_of_each_pixels_own_kernel() -> None:
    image = texture(20, 48)
    coc = np.linspace(-3, 3, 48, dtype=np.float32)[None].repeat(20, axis=0)
    half = 6
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), mode="reflect")
    expected = np.zeros((2, *image.shape))
    for i, j in np.ndindex(20, 48):
        for view, kernel in zip(expected, PSF.views(coc[i, j]), strict=True):
            reach = kernel.shape[0] // 2
            around = padded[i + half - reach : i + half + reach + 1, j + half - reach : j + half + reach + 1]
            view[i, j] = np.einsum("abc,ab->c", around, kernel[::-1, ::-1])
    blur = rms(expected[0] - image)
    for view, exact in zip(render_image(image, coc, PSF), expected, strict=True):
        assert rms(view - exact) < 0.02 * blur
        assert float(np.abs(view - exact).max()) < 0.01


@pytest.mark.parametrize("slope", [0.0, 0.05, 0.3])
def test_a_surface_of_one_colour_stays_that_colour_however_it_slants(slope: float) -> None:
    y, x = np.mgrid[0:40, 0:56].astype(np.float32)
    coc = np.clip(slope * (x - 28) + 0.5 * slope * (y - 20), -6, 6)
    for value in (0.02, 0.7):
        for view in render_image(full((40, 56, 3), value), coc, PSF):
            np.testing.assert_allclose(view, value, atol=1e-5)


def test_one_colour_stays_across_edges_of_depth_too() -> None:
    """No dark or doubled seam where layers meet: whatever lies before and behind has the same colour."""
    coc = np.random.default_rng(0).uniform(-4, 4, (6, 8)).repeat(7, axis=0).repeat(7, axis=1).astype(np.float32)
    for view in render_image(full((*coc.shape, 3), 0.4), coc, PSF):
        np.testing.assert_allclose(view, 0.4, atol=1e-5)


# --- two surfaces: a post before a background ---------------------------------------------------------------

SIZE = 64
POST = slice(26, 42)


def aperture(psf: HalfAperturePSF, count: int = 27) -> list[tuple[float, float, float, float]]:
    """Points (u, v) of the aperture, in units of the radius, with the left and right photodiodes' light."""
    axis = np.linspace(-1, 1, count) * 10 ** (1 / psf.order)
    points = []
    for u in axis:
        for v in axis:
            disk = 1 / (1 + np.hypot(u, v) ** (2 * psf.order))
            step = 1 / (1 + np.exp(np.clip(u / psf.softness, -60, 60)))
            if disk > 1e-3:
                shares = (psf.crosstalk + (1 - 2 * psf.crosstalk) * s for s in (step, 1 - step))
                points.append((u, v, *(disk * share for share in shares)))
    totals = np.sum(points, axis=0)
    return [(u, v, left / totals[2], right / totals[3]) for u, v, left, right in points]


def through_pinholes(
    front: Image, front_coc: Image, back: Image, back_coc: Image
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The post before the background as each point of the aperture sees it, summed: right by construction.

    Seen from (u, v), content at p with radius c stands at p + c (u, v). What the post hides is known here.
    """
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    mask = full((SIZE, SIZE), 0)
    mask[:, POST] = 1

    def seen(image: Image, coc: Image, u: float, v: float) -> Image:
        columns, rows = (x - coc * u).astype(np.float32), (y - coc * v).astype(np.float32)
        return cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)

    views = np.zeros((2, SIZE, SIZE, 3))
    for u, v, *shares in aperture(PSF):
        covered = seen(mask, front_coc, u, v)[..., None]
        pinhole = covered * seen(front, front_coc, u, v) + (1 - covered) * seen(back, back_coc, u, v)
        for view, share in zip(views, shares, strict=True):
            view += share * pinhole
    return views[0], views[1]


def post_scene(front: Image, front_coc: Image, back: Image, back_coc: Image) -> tuple[Image, Image]:
    """Image and CoC map of the post before the background, as ``render_image`` takes them."""
    image, coc = back.copy(), back_coc.copy()
    image[:, POST], coc[:, POST] = front[:, POST], front_coc[:, POST]
    return image, coc


def slant(centre: float, range_: float) -> Image:
    """A radius that grows from top to bottom of the frame by ``range_``."""
    return (full((SIZE, SIZE), centre) + np.linspace(-0.5, 0.5, SIZE, dtype=np.float32)[:, None] * range_).astype(
        np.float32
    )


def shades(top: float, bottom: float) -> Image:
    return np.linspace(top, bottom, SIZE, dtype=np.float32)[:, None, None] * full((SIZE, SIZE, 3), 1)


@pytest.mark.parametrize(
    ("front", "front_coc", "back", "back_coc"),
    [
        pytest.param(shades(0.9, 0.9), slant(-4, 0), shades(0.1, 0.1), slant(4, 0), id="both blurred"),
        pytest.param(shades(0.1, 0.1), slant(0, 0), shades(0.9, 0.9), slant(5, 0), id="front sharp"),
        pytest.param(shades(0.9, 0.9), slant(-5, 0), shades(0.1, 0.1), slant(0, 0), id="back sharp"),
        pytest.param(shades(0.9, 0.9), slant(-4, 3), shades(0.1, 0.1), slant(4, 0), id="slanted post"),
        pytest.param(shades(0.5, 0.5), slant(-4, 0), shades(0.1, 0.9), slant(4, -4), id="slanted back"),
        pytest.param(shades(0.3, 0.9), slant(-3, 3), shades(0.9, 0.1), slant(3, 3), id="both slanted"),
    ],
)
def test_occlusion_is_that_of_the_aperture(front: Image, front_coc: Image, back: Image, back_coc: Image) -> None:
    image, coc = post_scene(front, front_coc, back, back_coc)
    views = render_image(image, coc, PSF)
    for view, expected in zip(views, through_pinholes(front, front_coc, back, back_coc), strict=True):
        # The aperture's samples stand up to 0.5 px apart, which shows most at hard edges.
        error = (view - expected)[4:-4]
        assert rms(error) < 0.002
        assert float(np.abs(error).max()) < 0.03


def test_no_light_of_a_sharp_bright_post_bleeds_into_the_blurred_dark_behind_it() -> None:
    image, coc = post_scene(shades(1, 1), slant(0, 0), shades(0.05, 0.05), slant(5, 0))
    for view in render_image(image, coc, PSF):
        np.testing.assert_allclose(np.delete(view, range(POST.start, POST.stop), axis=1), 0.05, atol=1e-4)
        np.testing.assert_allclose(view[:, POST], 1, atol=1e-6)
    # Negative control: blurring each pixel's surroundings by its own radius does bleed.
    naive = slow_blur(image, PSF.views(5.0)[0])
    assert float(naive[:, : POST.start].max()) > 0.3


def test_no_light_of_a_blurred_bright_background_bleeds_over_a_sharp_dark_post() -> None:
    image, coc = post_scene(shades(0.02, 0.02), slant(0, 0), shades(0.9, 0.9), slant(6, 0))
    for view in render_image(image, coc, PSF):
        np.testing.assert_allclose(view[:, POST], 0.02, atol=1e-5)
        np.testing.assert_allclose(np.delete(view, range(POST.start, POST.stop), axis=1), 0.9, atol=1e-4)


def test_a_blurred_post_spreads_over_the_sharp_background_by_its_coverage() -> None:
    image, coc = post_scene(shades(1, 1), slant(-5, 0), shades(0, 0), slant(0, 0))
    mask = (coc < 0).astype(np.float32)[..., None].repeat(3, axis=2)
    for view, kernel in zip(render_image(image, coc, PSF), PSF.views(-5.0), strict=True):
        np.testing.assert_allclose(view, slow_blur(mask, kernel), atol=1e-5)


def test_the_views_mean_of_an_image_with_depth_is_the_photo_away_from_edges() -> None:
    image, coc = post_scene(texture(SIZE, SIZE), slant(-2, 0), texture(SIZE, SIZE, seed=1), slant(3, 0))
    views_mean = np.mean(render_image(image, coc, PSF), axis=0)
    for radius, columns in ((3.0, np.r_[0 : POST.start - 8, POST.stop + 8 : SIZE]), (2.0, np.r_[31:37])):
        photo = slow_blur(image, full_aperture(radius))
        np.testing.assert_allclose(views_mean[:, columns], photo[:, columns], atol=1e-5)


def test_regions_in_focus_are_identical_in_both_views_and_sharp() -> None:
    image = quantise(linear_to_srgb(texture(48, 96)))
    coc = full((48, 96), 0)
    coc[:, 60:] = 4  # behind: never gets over what is in focus
    coc[:, :20] = -4  # before: spreads by its reach
    for bits in (8, 16):
        pair = simulate_pair(image, coc, bits=bits)
        in_focus = slice(20 + 6, 60)
        np.testing.assert_array_equal(pair.left[:, in_focus], pair.right[:, in_focus])
        np.testing.assert_array_equal(pair.left[:, in_focus], pair.target[:, in_focus])
        for blurred in (slice(0, 20), slice(66, 96)):
            assert (pair.left[:, blurred] != pair.right[:, blurred]).mean() > 0.5


# --- the sensor ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", [0.0, 0.05, 0.8])
def test_noise_has_the_statistics_it_says(signal: float) -> None:
    noise = SensorNoise(shot=0.002, read=0.01)
    noisy = noise.add(full((400, 400, 3), signal), np.random.default_rng(1)).astype(np.float64)
    variance = 0.002 * signal + 0.01**2
    count = noisy.size
    assert abs(noisy.mean() - signal) < 5 * np.sqrt(variance / count)
    assert noisy.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / count))
    standard = (noisy - signal) / np.sqrt(variance)
    assert abs((standard**3).mean()) < 0.05  # Gaussian: symmetrical
    assert (standard**4).mean() == pytest.approx(3, abs=0.1)


def test_noise_free_changes_nothing() -> None:
    image = texture(4, 4)
    assert NOISE_FREE.add(image, np.random.default_rng(0)) is image


def test_noise_of_the_views_is_independent_and_fixed_by_the_seed() -> None:
    image = np.full((64, 64, 3), 120, dtype=np.uint8)
    arguments = {"noise": SensorNoise(1e-3, 1e-2), "bits": 16}
    first, again, other = (simulate_pair(image, full((64, 64), 0), seed=seed, **arguments) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.left, again.left)
    np.testing.assert_array_equal(first.right, again.right)
    assert (first.left != other.left).mean() > 0.9
    left, right = (view.astype(np.float64) - view.mean() for view in (first.left, first.right))
    assert abs((left * right).mean() / np.sqrt((left**2).mean() * (right**2).mean())) < 0.05
    np.testing.assert_array_equal(first.target, np.uint16(120 * 257))  # the target has none


def test_quantise_rounds_half_to_even_and_clamps() -> None:
    values = np.array([-0.1, 0, 0.5 / 255, 1.5 / 255, 254.4 / 255, 1, 1.2])
    codes = quantise(values)
    assert codes.dtype == np.uint8
    assert codes.tolist() == [0, 0, 0, 2, 254, 255, 255]
    deep = quantise(np.array([0.5, 1.0]), 16)
    assert deep.dtype == np.uint16
    assert deep.tolist() == [32768, 65535]
    with pytest.raises(SimulationError, match="bits must be 8 or 16, got 12"):
        quantise(values, 12)


def test_bit_depths_in_and_out() -> None:
    encoded = linear_to_srgb(texture(16, 24))
    coc = full((16, 24), 2)
    deep, shallow = quantise(encoded, 16), quantise(encoded, 8)
    for image, bits in ((deep, 16), (deep, 8), (shallow, 8), (shallow, 16)):
        pair = simulate_pair(image, coc, bits=bits)
        for view in (pair.left, pair.right, pair.target):
            assert view.dtype == (np.uint8 if bits == 8 else np.uint16)
            assert view.shape == (16, 24, 3)
        scale, own = 2**bits - 1, np.iinfo(image.dtype).max
        assert float(np.abs(pair.target / scale - image / own).max()) <= 0.5 / scale + 1e-7
        assert pair.coc.dtype == np.float32
        np.testing.assert_array_equal(pair.coc, coc)
    fine = simulate_pair(deep, coc, bits=16).left
    np.testing.assert_allclose(fine / 65535, simulate_pair(deep, coc).left / 255, atol=0.5 / 255 + 1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 3)])
def test_images_smaller_than_the_blur(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 90, dtype=np.uint8)
    pair = simulate_pair(image, full(shape, 7))
    for view in (pair.left, pair.right):
        np.testing.assert_array_equal(view, image)


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "coc", "message"),
    [
        (
            np.zeros((4, 4), np.uint8),
            full((4, 4), 0),
            r"must be \(h, w, 3\) uint8 or uint16, got \(4, 4\) uint8",
        ),
        (np.zeros((4, 4, 4), np.uint8), full((4, 4), 0), r"got \(4, 4, 4\) uint8"),
        (np.zeros((4, 4, 3), np.float32), full((4, 4), 0), r"got \(4, 4, 3\) float32"),
        (np.zeros((4, 4, 3), np.uint8), full((4, 5), 0), r"the image's size \(4, 4\), got \(4, 5\)"),
        (np.zeros((4, 4, 3), np.uint8), full((4, 4), np.nan), "the CoC map has NaN or infinite values"),
    ],
)
def test_input_that_does_not_fit(image: Any, coc: Image, message: str) -> None:
    with pytest.raises(SimulationError, match=message) as caught:
        simulate_pair(image, coc)
    assert isinstance(caught.value, LDPError)
