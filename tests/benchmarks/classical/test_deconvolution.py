import cv2
import numpy as np
import pytest
from scipy import ndimage

from benchmarks.classical import deconvolution
from benchmarks.classical.deconvolution import deconvolve, gaussian, shrink, taper, transfer


def picture() -> np.ndarray:
    """``(80, 112, 3)`` in [0, 1], with edges and texture."""
    photo = cv2.imread("samples/motorcycle/left.png")[100:180, 200:312, ::-1]
    return np.ascontiguousarray(photo) / 255.0


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(a - b).mean()))


def test_it_gains_where_blur_is_gaussian_and_leaves_the_rest() -> None:
    sharp = picture()
    blurred = np.rint(ndimage.gaussian_filter(sharp, (2, 2, 0), mode="nearest") * 255) / 255
    sigma = np.zeros(sharp.shape[:2])
    sigma[:, :56] = 2.0
    mixed = np.where(sigma[..., None] > 0, blurred, sharp)
    restored = deconvolve(mixed, sigma)
    assert psnr(restored[8:-8, 8:48], sharp[8:-8, 8:48]) > psnr(mixed[8:-8, 8:48], sharp[8:-8, 8:48]) + 1
    np.testing.assert_array_equal(restored[:, 56:], sharp[:, 56:])
    wrong = deconvolve(mixed, np.where(sigma > 0, 4.0, 0.0))
    assert psnr(wrong[8:-8, 8:48], sharp[8:-8, 8:48]) < psnr(restored[8:-8, 8:48], sharp[8:-8, 8:48]) - 2


@pytest.mark.parametrize("beta", deconvolution.STEPS)
def test_shrinking_minimises_its_function(beta: float) -> None:
    v = np.array([-2.0, -0.3, -1e-3, 0.0, 0.02, 0.7])
    grid = np.linspace(-2.5, 2.5, 500_001)
    cost = np.abs(grid) ** 1.5 + beta / 2 * np.square(grid - v[:, None])
    np.testing.assert_allclose(shrink(v, beta), grid[cost.argmin(axis=1)], atol=2e-5)


def test_the_solution_of_one_step_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one beta, x minimises lambda / 2 |k * x - y|^2 + beta / 2 |grad x - w|^2, w that of the blurred planes."""
    monkeypatch.setattr(deconvolution, "STEPS", (3.0,))
    monkeypatch.setattr(deconvolution, "_TAPERS", 0)
    rng = np.random.default_rng(0)
    kernel = gaussian(0.1)
    assert len(kernel) == 1
    y = rng.random((1, 6, 9))
    x = deconvolution.deconvolve_evenly(y, kernel)[0]
    gradient = deconvolution.FIDELITY * (x - y[0])
    for axis in (0, 1):
        w = shrink(y[0] - np.roll(y[0], 1, axis), 3.0)
        miss = (x - np.roll(x, 1, axis)) - w
        gradient += 3.0 * (miss - np.roll(miss, -1, axis))
    np.testing.assert_allclose(gradient, 0, atol=1e-10)


def test_transfer_is_circular_convolution() -> None:
    plane = np.random.default_rng(0).random((12, 15))
    kernel = np.array([0.2, 0.5, 0.3])
    for axis, expected in ((0, "0"), (1, "1"), (None, "both")):
        axes = (0, 1) if axis is None else (axis,)
        slow = plane
        for each in axes:
            slow = 0.2 * np.roll(slow, -1, each) + 0.5 * slow + 0.3 * np.roll(slow, 1, each)
        found = np.fft.irfft2(transfer(kernel, plane.shape, axis) * np.fft.rfft2(plane), s=plane.shape)
        np.testing.assert_allclose(found, slow, atol=1e-12, err_msg=expected)


def test_a_kernel_is_trimmed_to_what_double_precision_holds() -> None:
    assert len(gaussian(0.0)) == len(gaussian(0.11)) == 1
    assert len(gaussian(2.0)) == 2 * 16 + 1
    assert len(gaussian(7.0)) == 101
    assert gaussian(2.0).sum() == pytest.approx(1)


def test_tapered_borders_continue_on_the_other_side() -> None:
    planes = np.zeros((1, 60, 60))
    planes[:, :, 30:] = 1
    tapered = taper(planes, gaussian(2.0))
    assert abs(tapered[0, 30, 0] - tapered[0, 30, -1]) < 0.3
    np.testing.assert_allclose(tapered[0, 30, 20], planes[0, 30, 20], atol=1e-2)
