import math
from typing import Any

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ldp_runtime.images.quality import center_view, psnr, ssim, view_correlation


def images(dtype: Any, shape: tuple[int, ...] = (23, 31, 3)) -> tuple[np.ndarray, np.ndarray, float]:
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(shape[0]), np.arange(shape[1]))[..., None] / sum(shape[:2])
    a = np.clip(smooth + rng.normal(0, 0.1, shape), 0, 1)
    b = np.clip(smooth + rng.normal(0, 0.1, shape), 0, 1)
    peak = float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0
    return (a * peak).astype(dtype), (b * peak).astype(dtype), peak


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
@pytest.mark.parametrize("shape", [(23, 31, 3), (7, 7, 1), (7, 40, 3)])
def test_as_scikit_image(dtype: Any, shape: tuple[int, ...]) -> None:
    a, b, peak = images(dtype, shape)
    assert psnr(a, b, data_range=peak) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=peak), rel=1e-12)
    reference = structural_similarity(a, b, channel_axis=2, data_range=peak)
    assert 0 < reference < 0.9
    assert ssim(a, b, data_range=peak) == pytest.approx(reference, abs=1e-10)


def test_equal_images() -> None:
    a, _, peak = images(np.uint8)
    assert psnr(a, a, data_range=peak) == math.inf
    assert ssim(a, a, data_range=peak) == pytest.approx(1, abs=1e-12)


def test_refuses_other_shapes() -> None:
    a, b, peak = images(np.uint8)
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="one shape"):
            metric(a, b[1:], data_range=peak)
    with pytest.raises(ValueError, match="at least 7 x 7"):
        ssim(a[:6], b[:6], data_range=peak)


def test_center_view_is_not_rounded() -> None:
    left, right = (np.full((1, 1, 3), value, np.uint16) for value in (65535, 65534))
    assert center_view(left, right).tolist() == [[[65534.5] * 3]]


def scene(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (6, 9, 3))
    return np.kron(coarse, np.ones((20, 20, 1))).astype(np.uint8)


def test_view_correlation_of_a_pair_and_of_two_photos() -> None:
    photo = scene(0)
    noise = np.random.default_rng(1).integers(-8, 8, photo.shape)
    shifted = np.clip(np.roll(photo, 3, axis=1) + noise, 0, 255).astype(np.uint8)
    assert view_correlation(photo, shifted) > 0.9
    assert view_correlation(photo, photo[:, ::-1].copy()) < 0.5
    assert abs(view_correlation(photo, scene(2))) < 0.5
    assert view_correlation(photo, 255 - photo) == pytest.approx(-1, abs=1e-4)
    sixteen = photo.astype(np.uint16) * 257
    assert view_correlation(sixteen, sixteen) == pytest.approx(1)


def test_view_correlation_of_flat_views() -> None:
    flat = np.full((40, 60, 3), 100, np.uint8)
    assert view_correlation(flat, flat + 3) == 1
    assert view_correlation(flat, scene(0)[:40, :60]) == pytest.approx(0, abs=1e-6)
    assert view_correlation(flat[:1, :1], flat[:1, :1]) == 1
