import math

import numpy as np
import pytest
from scipy.optimize import linprog

from ldp_export.evaluation.metrics import (
    accuracy,
    affine_invariant_mae,
    affine_invariant_rmse,
    balanced_accuracy,
    mae,
    masked_psnr,
    psnr,
    rank_disagreement,
    rmse,
    spearman,
)


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


def test_mae_and_rmse_by_hand() -> None:
    image, target = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)
    image[0, 0], target[1, 1] = 51, 102  # one difference of 0.2, one of -0.4, in units of the peak
    assert mae(image, target, data_range=255) == pytest.approx(0.15)
    assert rmse(image, target, data_range=255) == pytest.approx(math.sqrt((0.04 + 0.16) / 4))
    assert rmse(image, target, data_range=255) == pytest.approx(10 ** (-psnr(image, target, data_range=255) / 20))
    # The paper's large model on DPD-blur: 27.24 dB beside 0.043.
    assert round(10 ** (-27.24 / 20), 3) == 0.043
    for score in (mae, rmse):
        with pytest.raises(ValueError, match="one shape"):
            score(image, target[:1], data_range=255)


def test_affine_invariance_by_hand() -> None:
    x = np.array([0.0, 1.0, 2.0, 3.0])
    assert affine_invariant_mae(x, 5 - 2 * x) == pytest.approx(0, abs=1e-12)
    assert affine_invariant_rmse(x, 5 - 2 * x) == pytest.approx(0, abs=1e-12)
    # One point of five is off a line: the absolute error leaves the line alone, the squared one does not.
    x, y = np.arange(5.0), np.array([0.0, 1.0, 7.0, 3.0, 4.0])
    assert affine_invariant_mae(x, y) == pytest.approx(5 / 5, rel=0.01)
    assert affine_invariant_rmse(x, y) == pytest.approx(math.sqrt((4 * 1 + 16) / 5))  # the line is y = x + 1
    # A constant prediction leaves the median and the mean of the truth.
    assert affine_invariant_mae(np.ones(5), y) == pytest.approx(np.abs(y - 3).mean(), rel=1e-2)
    assert affine_invariant_rmse(np.ones(5), y) == pytest.approx(y.std())


def test_affine_invariant_mae_is_near_its_minimum() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=60)
    y = 0.7 * x - 0.2 + rng.standard_t(2, 60) * 0.1
    # min sum t with t >= +-(a x + b - y), over a, b and t
    rows = np.stack([x, np.ones_like(x)], 1)
    constraints = np.block([[rows, -np.eye(60)], [-rows, -np.eye(60)]])
    best = linprog(np.r_[0, 0, np.ones(60)], constraints, np.r_[y, -y], bounds=[(None, None)] * 2 + [(0, None)] * 60)
    assert best.fun / 60 <= affine_invariant_mae(x, y) <= 1.02 * best.fun / 60
    assert affine_invariant_mae(3 * x - 1, y) == pytest.approx(affine_invariant_mae(x, y))
    assert affine_invariant_mae(x, 10 * y) == pytest.approx(10 * affine_invariant_mae(x, y), rel=0.02)


def test_unknown_truth_is_left_out() -> None:
    x, y = np.arange(6.0), np.array([0.0, 2.0, 4.0, 6.0, 8.0, np.nan])
    assert affine_invariant_mae(x, y) == affine_invariant_rmse(x, y) == pytest.approx(0)
    assert rank_disagreement(x, y) == pytest.approx(0)
    for score in (affine_invariant_mae, affine_invariant_rmse, rank_disagreement):
        with pytest.raises(ValueError, match="NaN everywhere"):
            score(x, np.full(6, np.nan))
        with pytest.raises(ValueError, match="one shape"):
            score(x, y[:5])


def test_rank_disagreement_by_hand() -> None:
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([20.0, 10.0, 40.0, 30.0])
    assert rank_disagreement(a, b) == pytest.approx(0.4)
    assert rank_disagreement(a, -b) == pytest.approx(0.4)
    assert math.isnan(rank_disagreement(a, np.ones(4)))
