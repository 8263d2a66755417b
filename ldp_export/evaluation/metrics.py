"""Scores of images, blur maps and disparity. PSNR and SSIM are the runtime's own: all of LDP means one thing by them.

They are those of the DPD-blur literature (Abuolaim and Brown 2020): over the three channels at once, SSIM with
scikit-image's defaults, a mean over images.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ldp_runtime.images.quality import psnr, ssim

__all__ = [
    "accuracy",
    "affine_invariant_mae",
    "affine_invariant_rmse",
    "balanced_accuracy",
    "mae",
    "masked_psnr",
    "psnr",
    "rank_disagreement",
    "rmse",
    "spearman",
    "ssim",
]

_IRLS_STEPS = 5
_IRLS_FLOOR = 1e-3

Floats = NDArray[np.float64]


def mae(image: ArrayLike, target: ArrayLike, *, data_range: float) -> float:
    """Mean absolute error over pixels and channels, as a share of the peak.

    Args:
        image: Any shape, any real dtype.
        target: The same shape.
        data_range: The peak: 255, 65535 or 1.

    Raises:
        ValueError: The shapes differ.
    """
    image, target = np.asarray(image), np.asarray(target)
    _check_shapes(image, target)
    return float(np.abs(np.subtract(image, target, dtype=np.float64)).mean() / data_range)


def rmse(image: ArrayLike, target: ArrayLike, *, data_range: float) -> float:
    """Root of the mean squared error, as a share of the peak: what the paper's tables print as MSE_rel.

    ``10^(-PSNR / 20)``; arguments and errors are those of ``mae``.
    """
    image, target = np.asarray(image), np.asarray(target)
    _check_shapes(image, target)
    return math.sqrt(float(np.mean(np.subtract(image, target, dtype=np.float64) ** 2))) / data_range


def masked_psnr(image: ArrayLike, target: ArrayLike, mask: NDArray[np.bool_], *, data_range: float) -> float:
    """PSNR in dB over the pixels of a mask; infinite where they are equal.

    Args:
        image: ``(h, w, c)``, any real dtype.
        target: The same shape.
        mask: ``(h, w)``.
        data_range: The peak: 255, 65535 or 1.

    Raises:
        ValueError: The mask is empty, or the shapes differ.
    """
    image, target = np.asarray(image), np.asarray(target)
    if not mask.any():
        raise ValueError("expected a mask with pixels in it, got an empty one")
    if image.shape != target.shape or mask.shape != image.shape[:2]:
        raise ValueError(f"expected one size, got {image.shape}, {target.shape} and a mask {mask.shape}")
    return psnr(image[mask], target[mask], data_range=data_range)


def accuracy(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Share of equal entries of two boolean arrays of one shape, in [0, 1].

    Raises:
        ValueError: The shapes differ.
    """
    _check_shapes(predicted, truth)
    return float((predicted == truth).mean())


def balanced_accuracy(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Mean of the shares of the true entries and of the false entries that are predicted right, in [0, 1].

    One half is what guessing gives, however rare one class is.

    Raises:
        ValueError: The shapes differ, or ``truth`` has one class alone.
    """
    _check_shapes(predicted, truth)
    if truth.all() or not truth.any():
        raise ValueError("expected both classes in the truth, got one")
    return float((predicted[truth].mean() + (~predicted[~truth]).mean()) / 2)


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation of two arrays of one shape, in [-1, 1]; NaN where one is constant.

    Raises:
        ValueError: The shapes differ.
    """
    a, b = np.asarray(a), np.asarray(b)
    _check_shapes(a, b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(stats.spearmanr(a.ravel(), b.ravel()).statistic)


def affine_invariant_mae(prediction: ArrayLike, truth: ArrayLike) -> float:
    """AI(1): the mean absolute error that is left after the affine map of the prediction that suits the truth best.

    ``min over a, b of mean |a prediction + b - truth|`` (Garg et al. 2019, with equal confidence everywhere), by
    iteratively reweighted least squares as the authors and Punnappurath et al. 2020 have it: five reweightings by
    ``1 / max(|residual|, 1e-3)``, so that the outcome lies a little above the minimum.

    Args:
        prediction: Any shape; where the truth is NaN it is left out.
        truth: The same shape. The error has its unit.

    Raises:
        ValueError: The shapes differ, or the truth is NaN everywhere.
    """
    x, y = _known(prediction, truth)
    residual = _affine_residual(x, y, np.ones_like(x))
    for _ in range(_IRLS_STEPS):
        residual = _affine_residual(x, y, 1 / np.maximum(np.abs(residual), _IRLS_FLOOR))
    return float(np.abs(residual).mean())


def affine_invariant_rmse(prediction: ArrayLike, truth: ArrayLike) -> float:
    """AI(2): the root mean squared error left after the best affine map of the prediction (least squares).

    Arguments and errors are those of ``affine_invariant_mae``.
    """
    x, y = _known(prediction, truth)
    return math.sqrt(float(np.mean(_affine_residual(x, y, np.ones_like(x)) ** 2)))


def rank_disagreement(prediction: ArrayLike, truth: ArrayLike) -> float:
    """``1 - |rho_s|``, rho_s being Spearman's rank correlation: 0 where one orders the pixels as the other does.

    Arguments and errors are those of ``affine_invariant_mae``; NaN where one of them is constant.
    """
    return 1 - abs(spearman(*_known(prediction, truth)))


def _known(prediction: ArrayLike, truth: ArrayLike) -> tuple[Floats, Floats]:
    """Both as vectors, without the places where the truth is NaN."""
    x, y = np.asarray(prediction, np.float64), np.asarray(truth, np.float64)
    _check_shapes(x, y)
    known = ~np.isnan(y)
    if not known.any():
        raise ValueError("expected a truth that is known somewhere, got NaN everywhere")
    return x[known], y[known]


def _affine_residual(x: Floats, y: Floats, weight: Floats) -> Floats:
    """``a x + b - y`` ``(n,)`` for the a and b of weighted least squares; a is 0 where x is constant."""
    total = weight.sum()
    dx, dy = x - (weight * x).sum() / total, y - (weight * y).sum() / total
    variance = float((weight * dx * dx).sum())
    slope = float((weight * dx * dy).sum()) / variance if variance > 0 else 0.0
    residual: Floats = slope * dx - dy
    return residual


def _check_shapes(a: NDArray[np.generic], b: NDArray[np.generic]) -> None:
    if a.shape != b.shape:
        raise ValueError(f"expected arrays of one shape, got {a.shape} and {b.shape}")
