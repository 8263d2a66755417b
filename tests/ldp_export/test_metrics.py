from __future__ import annotations

import math

import numpy as np
import pytest

from ldp_export.metrics import accuracy, balanced_accuracy, masked_psnr, psnr, spearman, ssim


def test_psnr_by_hand() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    assert psnr(image + np.uint8(51), image, data_range=255) == pytest.approx(20 * math.log10(5))
    assert psnr(image, image, data_range=255) == math.inf


def test_ssim_of_equal_and_of_flat_images() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    assert ssim(image, image, data_range=255) == pytest.approx(1)
    # Flat images have no variance, so SSIM is its luminance term.
    a, b = np.full((9, 9, 3), 100.0), np.full((9, 9, 3), 200.0)
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b, data_range=255) == pytest.approx((2 * 100 * 200 + c1) / (100**2 + 200**2 + c1))


def test_masked_psnr_counts_the_mask_alone() -> None:
    image, target = np.zeros((4, 4, 3)), np.zeros((4, 4, 3))
    image[0] = 10.0
    image[2:] = 200.0
    mask = np.zeros((4, 4), bool)
    mask[0, :] = mask[1, :] = True
    assert masked_psnr(image, target, mask, data_range=255) == pytest.approx(10 * math.log10(255**2 / 50))
    with pytest.raises(ValueError, match="empty"):
        masked_psnr(image, target, np.zeros((4, 4), bool), data_range=255)
    with pytest.raises(ValueError, match="one size"):
        masked_psnr(image, target, np.ones((3, 4), bool), data_range=255)


def test_accuracies_by_hand() -> None:
    truth = np.array([1, 1, 0, 0, 0, 0, 0, 0, 0, 0], bool)
    predicted = np.array([1, 0, 0, 0, 0, 0, 0, 0, 1, 1], bool)
    assert accuracy(predicted, truth) == pytest.approx(0.7)
    assert balanced_accuracy(predicted, truth) == pytest.approx((1 / 2 + 6 / 8) / 2)
    # Saying "sharp" everywhere is right in 80 %, and no better than a guess.
    assert accuracy(np.zeros(10, bool), truth) == pytest.approx(0.8)
    assert balanced_accuracy(np.zeros(10, bool), truth) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="both classes"):
        balanced_accuracy(predicted, np.ones(10, bool))
    with pytest.raises(ValueError, match="one shape"):
        balanced_accuracy(predicted, truth[:5])


def test_spearman_by_hand() -> None:
    a = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert spearman(a, np.exp(a)) == pytest.approx(1)
    assert spearman(a, -(a**3)) == pytest.approx(-1)
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15).
    assert spearman(a, np.array([[20.0, 10.0], [40.0, 30.0]])) == pytest.approx(0.6)
    # Ties get mean ranks: 1.5 1.5 3.5 3.5 against 1 2 3 4, Pearson of the ranks.
    assert spearman(np.array([[0.0, 0.0], [1.0, 1.0]]), a) == pytest.approx(4 / math.sqrt(4 * 5))
    assert math.isnan(spearman(a, np.ones((2, 2))))
    with pytest.raises(ValueError, match="one shape"):
        spearman(a, a.ravel())
