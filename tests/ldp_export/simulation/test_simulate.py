from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from ldp_export.simulation.simulate import (
    NOISE_FREE,
    HalfAperturePSF,
    Layer,
    SensorNoise,
    SimulationError,
    ThinLens,
    coc_from_disparity,
    fill_disparity_holes,
    linear_to_srgb,
    quantise,
    render_image,
    render_views,
    simulate_pair,
    srgb_to_linear,
)
from ldp_runtime.errors import LDPError

Image = NDArray[np.float32]
PSF = HalfAperturePSF()


def full(shape: tuple[int, ...], value: float) -> Image:
    return np.full(shape, value, dtype=np.float32)


def texture(height: int, width: int, sigma: float = 1.0, seed: int = 0) -> Image:
    """Smooth random colours ``(h, w, 3)``, linear light in [0.1, 0.9]."""
    noise = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    return np.float32(0.1) + np.float32(0.8) * (smooth - smooth.min()) / np.ptp(smooth)


def mean(views: tuple[Image, Image]) -> Image:
    return (views[0] + views[1]) / 2


def rms(difference: Any) -> float:
    return float(np.sqrt(np.square(difference).mean()))


# --- light --------------------------------------------------------------------------------------------------


def test_known_values_of_srgb() -> None:
    encoded = np.array([0.0, 0.04045, 0.5, 128 / 255, 1.0], dtype=np.float32)
    np.testing.assert_allclose(srgb_to_linear(encoded), [0, 0.0031308, 0.2140411, 0.2158605, 1], atol=1e-6)
    np.testing.assert_allclose(
        linear_to_srgb(np.array([0, 0.0031308, 0.18, 0.5, 1], np.float32)),
        [0, 0.04045, 0.4613561, 0.7353570, 1],
        atol=1e-6,
    )


def test_srgb_round_trip() -> None:
    values = np.linspace(0, 1, 65536, dtype=np.float32)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-6)
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(quantise(linear_to_srgb(srgb_to_linear(codes / np.float32(255)))), codes)


def test_encoding_clamps() -> None:
    np.testing.assert_allclose(linear_to_srgb(np.array([-0.5, 1.5], np.float32)), [0, 1], atol=1e-6)


# --- the thin lens ------------------------------------------------------------------------------------------


def test_coc_of_a_thin_lens_by_hand() -> None:
    # 50 mm f/2 focused at 1 m: aperture 25 mm, image distance 1000 * 50 / 950 = 52.6316 mm. A point at 2 m
    # images at 2000 * 50 / 1950 = 51.2821 mm; on the sensor its cone is
    # 25 * (52.6316 - 51.2821) / 51.2821 = 0.65789 mm wide, which on 5 um pixels is a radius of 65.789 px.
    lens = ThinLens(focal_length=50, f_number=2, focus_distance=1000, pixel_pitch=5)
    assert float(lens.coc_radius(np.float32(2000))) == pytest.approx(65.789, abs=1e-2)


def test_coc_is_signed_zero_in_focus_and_finite_at_infinity() -> None:
    lens = ThinLens(focal_length=35, f_number=4, focus_distance=2000, pixel_pitch=6)
    radii = lens.coc_radius(np.array([[1000, 2000, 4000, np.inf]]))
    assert radii.dtype == np.float32
    assert radii[0, 0] < 0 == radii[0, 1] < radii[0, 2] < radii[0, 3]
    # At infinity: f^2 / (N (s - f)) / 2, in px.
    assert float(radii[0, 3]) == pytest.approx(35**2 / (4 * 1965) / 2 / 0.006, rel=1e-6)
    assert float(radii[0, 0]) == pytest.approx(-float(radii[0, 3]), rel=1e-6)  # 1 - s / z = -1 at half the distance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"focal_length": 0}, "focal_length must be a positive number, got 0"),
        ({"f_number": -1}, "f_number must be a positive number, got -1"),
        ({"pixel_pitch": float("nan")}, "pixel_pitch must be a positive number, got nan"),
        ({"focus_distance": float("inf")}, "focus_distance must be a positive number, got inf"),
        ({"focus_distance": 40}, "focus distance 40 mm must exceed the focal length 50 mm"),
    ],
)
def test_impossible_lenses(changes: dict[str, float], message: str) -> None:
    values = {"focal_length": 50, "f_number": 2, "focus_distance": 1000, "pixel_pitch": 5, **changes}
    with pytest.raises(SimulationError, match=message):
        ThinLens(**values)


@pytest.mark.parametrize("depth", [0.0, -3.0, float("nan")])
def test_depth_must_be_positive(depth: float) -> None:
    with pytest.raises(SimulationError, match="every depth must be positive; fill the holes"):
        ThinLens(50, 2, 1000, 5).coc_radius(np.array([1000.0, depth]))


def test_coc_from_disparity() -> None:
    coc = coc_from_disparity(np.array([[10.0, 30.0, 50.0, 20.0]]), 30.0, 6.0)
    np.testing.assert_allclose(coc, [[6, 0, -6, 3]])
    # Far (small disparity) is positive, as for the lens; and both are affine in inverse depth.
    lens = ThinLens(50, 8, 1000, 5)
    depth = np.array([[800.0, 1000.0, 1500.0, 4000.0]])
    of_lens = lens.coc_radius(depth)
    np.testing.assert_allclose(coc_from_disparity(1e5 / depth, 100.0, float(np.abs(of_lens).max())), of_lens, atol=1e-4)


def test_coc_from_disparity_refuses_holes_and_flat_scenes() -> None:
    with pytest.raises(SimulationError, match="NaN or infinite values; fill its holes first"):
        coc_from_disparity(np.array([[1.0, np.nan]]), 1.0, 3.0)
    with pytest.raises(SimulationError, match="nothing would be blurred"):
        coc_from_disparity(full((2, 2), 5), 5.0, 3.0)


# --- the point spread function ------------------------------------------------------------------------------

RADII = (0.1, 0.25, 0.5, 0.8, 1.0, 1.7, 3.0, 6.0, 12.0)
PSFS = (PSF, HalfAperturePSF(order=3, softness=0.05, crosstalk=0.0), HalfAperturePSF(2.0, 0.4, 0.2))


@pytest.mark.parametrize("radius", [*RADII, 0.0])
@pytest.mark.parametrize("psf", PSFS)
def test_views_kernels_sum_to_one_mirror_and_swap(psf: HalfAperturePSF, radius: float) -> None:
    left, right = psf.views(radius)
    assert left.shape == right.shape
    assert left.shape[0] == left.shape[1]
    assert left.shape[0] % 2 == 1
    for kernel in (left, right):
        assert kernel.dtype == np.float32
        assert float(kernel.min()) >= 0
        assert float(kernel.sum(dtype=np.float64)) == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(left, right[:, ::-1])
    np.testing.assert_allclose(left, left[::-1], atol=1e-7)
    swapped = psf.views(-radius)
    np.testing.assert_array_equal(swapped[0], right)
    np.testing.assert_array_equal(swapped[1], left)


def test_no_radius_is_the_unit_impulse() -> None:
    for kernel in PSF.views(0.0):
        np.testing.assert_array_equal(kernel, [[1]])


@pytest.mark.parametrize("psf", PSFS)
def test_centroid_shift_is_proportional_to_the_radius_also_below_a_pixel(psf: HalfAperturePSF) -> None:
    ratios = [psf.disparity(radius) / radius for radius in RADII]
    np.testing.assert_allclose(ratios, np.mean(ratios), rtol=0.01)
    # Behind the focal plane the left view's light lies at smaller x, and the sign changes with the radius's.
    assert max(ratios) < -0.3
    for radius in RADII:
        assert psf.disparity(-radius) == pytest.approx(-psf.disparity(radius), abs=1e-6)


def test_the_disk_is_butterworths_and_the_half_plane_a_soft_step() -> None:
    """A large kernel, read at its samples, against the formula of the docstring."""
    psf, radius = HalfAperturePSF(order=4, softness=0.2, crosstalk=0.1), 20.0
    left, right = psf.views(radius)
    half = left.shape[0] // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1] / radius
    disk = 1 / (1 + np.hypot(x, y) ** 8)
    np.testing.assert_allclose(left + right, disk / disk.sum() * 2, atol=0.03 * float((left + right).max()))
    middle = (left - right)[half] / (left + right)[half]
    expected = 0.8 * (2 / (1 + np.exp(x[half] / 0.2)) - 1)
    np.testing.assert_allclose(middle[half - 20 : half + 21], expected[half - 20 : half + 21], atol=0.01)


# --- one surface --------------------------------------------------------------------------------------------


def test_separation_is_that_of_the_centroids_in_radii_of_an_even_disk() -> None:
    assert PSF.separation == pytest.approx(0.45, abs=0.002)
    half_disks = HalfAperturePSF(order=200, softness=1e-3, crosstalk=0.0)
    assert half_disks.separation == pytest.approx(8 / (3 * np.pi), abs=0.003)  # a half disk's centroid: 4 r / (3 pi)
    for psf in PSFS:
        for separation in (0.0, 0.25, 0.45):
            assert psf.with_separation(separation).separation == pytest.approx(separation, abs=1e-3)
    assert half_disks.with_separation(0.7).crosstalk == pytest.approx((1 - 0.7 * 3 * np.pi / 8) / 2, abs=0.002)
    for impossible in (0.9, -0.1, float("nan")):
        with pytest.raises(SimulationError, match="expected a separation of the views from 0 to 0"):
            PSF.with_separation(impossible)


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
    of_layer = render_views([Layer(image, full((24, 32), 1), radius)], PSF)
    of_image = render_image(image, full((24, 32), radius), PSF)
    np.testing.assert_allclose(mean(of_layer), photo, atol=1e-5)
    # render_image renders radii in steps of 0.25 px and interpolates between them.
    np.testing.assert_allclose(mean(of_image), photo, atol=1e-5 if radius % 0.25 == 0 else 3e-4)
    for left, right in (of_layer, of_image):
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
    for views in (
        render_image(image, coc, PSF),
        render_views([Layer(image, full((20, 48), 1), coc)], PSF),
        render_views([Layer(image, full((20, 48), 1), coc)], PSF, step=0.25),
    ):
        for view, exact in zip(views, expected, strict=True):
            assert rms(view - exact) < 0.02 * blur
            assert float(np.abs(view - exact).max()) < 0.01


@pytest.mark.parametrize("slope", [0.0, 0.05, 0.3])
def test_a_surface_of_one_colour_stays_that_colour_however_it_slants(slope: float) -> None:
    y, x = np.mgrid[0:40, 0:56].astype(np.float32)
    coc = np.clip(slope * (x - 28) + 0.5 * slope * (y - 20), -6, 6)
    for value in (0.02, 0.7):
        for views in (
            render_image(full((40, 56, 3), value), coc, PSF),
            render_views([Layer(full((40, 56, 3), value), full((40, 56), 1), coc)], PSF),
        ):
            for view in views:
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


@pytest.mark.parametrize(("front", "back"), [(0.0, 4.0), (-4.0, 0.0), (-2.0, 3.0)])
def test_the_views_mean_at_occlusions(front: float, back: float) -> None:
    """The mean is the ordinary photo wherever one of two surfaces is sharp, and always away from their edges.

    Where both are blurred, the mean of two composites is not the composite of the means: with coverages a_L
    and a_R of the front and views B_L and B_R of the back, photo - mean = (a_L - a_R) (B_L - B_R) / 4. The
    views are no worse for it: one composite of the full aperture leaves out that each half has its own
    occlusion.
    """
    color = texture(SIZE, SIZE)
    alpha = full((SIZE, SIZE), 0)
    alpha[:, POST] = 1
    layers = [Layer(texture(SIZE, SIZE, seed=1), full((SIZE, SIZE), 1), back), Layer(color, alpha, front)]
    photo = render_views(layers, HalfAperturePSF(crosstalk=0.5))[0]  # both photodiodes see the whole aperture
    views_mean = mean(render_views(layers, PSF))
    coverages = render_views([Layer(alpha[..., None].repeat(3, axis=2), alpha, front)], PSF)
    backs = render_views(layers[:1], PSF)
    gap = (coverages[0] - coverages[1]) * (backs[0] - backs[1]) / 4
    np.testing.assert_allclose(photo - views_mean, gap, atol=2e-6)
    away = np.r_[0 : POST.start - 6, POST.stop + 6 : SIZE]
    np.testing.assert_allclose(views_mean[:, away], photo[:, away], atol=1e-5)
    if front == 0 or back == 0:
        np.testing.assert_allclose(views_mean, photo, atol=1e-5)
    assert float(np.abs(gap).max()) < 0.05


def test_the_views_mean_of_an_image_with_depth_is_the_photo_away_from_edges() -> None:
    image, coc = post_scene(texture(SIZE, SIZE), slant(-2, 0), texture(SIZE, SIZE, seed=1), slant(3, 0))
    views_mean = mean(render_image(image, coc, PSF))
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


# --- layers -------------------------------------------------------------------------------------------------


def test_layers_lie_over_each_other_far_to_near() -> None:
    shape = (8, 12)
    alpha = full(shape, 0)
    alpha[:, 6:] = 1
    half = full(shape, 0.25)
    colors = [full((*shape, 3), value) for value in (0.2, 0.6, 1.0)]
    layers = [
        Layer(colors[0], full(shape, 1), 0.0),
        Layer(colors[1], alpha, 0.0),
        Layer(colors[2], half, 0.0),
    ]
    for view in render_views(iter(layers), PSF):
        np.testing.assert_allclose(view[:, :6], 0.25 + 0.75 * 0.2, atol=1e-6)
        np.testing.assert_allclose(view[:, 6:], 0.25 + 0.75 * 0.6, atol=1e-6)


def test_the_farthest_layer_counts_as_covering_the_frame() -> None:
    for view in render_views([Layer(full((4, 4, 3), 0.5), full((4, 4), 0.3), 2.0)], PSF):
        np.testing.assert_allclose(view, 0.5, atol=1e-6)


def test_a_scene_without_layers_is_an_error() -> None:
    with pytest.raises(SimulationError, match="at least one layer"):
        render_views([], PSF)


def test_a_number_and_a_map_of_it_are_the_same_coc() -> None:
    image, alpha = texture(16, 16), full((16, 16), 1)
    number, constant = (render_views([Layer(image, alpha, coc)], PSF) for coc in (1.3, full((16, 16), 1.3)))
    np.testing.assert_allclose(number, constant, atol=1e-6)


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


# --- holes of disparity maps --------------------------------------------------------------------------------


def test_holes_take_the_farther_of_their_neighbours_in_the_row() -> None:
    nan, inf = np.nan, np.inf
    disparity = np.array(
        [
            [5, nan, nan, 9, 7],
            [nan, 4, 6, 0, inf],
            [8, -1, 3, nan, 2],
            [nan, nan, nan, nan, nan],
            [1, 1, 1, 1, 1],
        ],
        dtype=np.float32,
    )
    filled = fill_disparity_holes(disparity)
    assert filled.dtype == np.float32
    assert filled[:3].tolist() == [[5, 5, 5, 9, 7], [4, 4, 6, 6, 6], [8, 3, 3, 2, 2]]
    # A row without any value takes the nearest value of the map: here from the row below or the row above.
    assert all(value in (filled[2, j], 1) for j, value in enumerate(filled[3]))


def test_a_map_without_holes_stays_as_it_is() -> None:
    disparity = np.random.default_rng(0).uniform(1, 9, (5, 6)).astype(np.float32)
    np.testing.assert_array_equal(fill_disparity_holes(disparity), disparity)


def test_a_map_of_holes_is_an_error() -> None:
    with pytest.raises(SimulationError, match="no valid"):
        fill_disparity_holes(np.array([[0.0, np.nan], [-1.0, np.inf]]))
