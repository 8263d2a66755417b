"""Scores of images and blur maps. PSNR and SSIM are the runtime's own, so that all of LDP means one thing by them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ldp_runtime.quality import psnr, ssim

__all__ = ["accuracy", "balanced_accuracy", "masked_psnr", "psnr", "spearman", "ssim"]


def masked_psnr(image: ArrayLike, target: ArrayLike, mask: NDArray[np.bool_], *, data_range: float) -> float:
    """PSNR in dB over the pixels of a mask; infinite where they are equal.

    Args:
        image: `(h, w, c)`, any real dtype.
        target: The same shape.
        mask: `(h, w)`.
        data_range: The peak: 255, 65535 or 1.

    Raises:
        ValueError: The mask is empty, or the shapes differ.
    """
    image, target = np.asarray(image), np.asarray(target)
    if not mask.any():
        raise ValueError("expected a mask with pixels in it, came an empty one")
    if image.shape != target.shape or mask.shape != image.shape[:2]:
        raise ValueError(f"expected one size, came {image.shape}, {target.shape} and a mask {mask.shape}")
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
        ValueError: The shapes differ, or `truth` has one class alone.
    """
    _check_shapes(predicted, truth)
    if truth.all() or not truth.any():
        raise ValueError("expected both classes in the truth, came one")
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


def _check_shapes(a: NDArray[np.generic], b: NDArray[np.generic]) -> None:
    if a.shape != b.shape:
        raise ValueError(f"expected arrays of one shape, came {a.shape} and {b.shape}")
