import numpy as np
import pytest

from ldp_export.simulation.optics import HalfAperturePSF, SimulationError, ThinLens, coc_from_disparity

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
        coc_from_disparity(np.full((2, 2), 5.0, np.float32), 5.0, 3.0)


# --- the point spread function ------------------------------------------------------------------------------

PSF = HalfAperturePSF()
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
