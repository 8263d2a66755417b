"""PSNR and SSIM of images, and how well two views match, with NumPy and OpenCV alone."""

from __future__ import annotations

import math

import cv2
import numpy as np

SSIM_WINDOW = 7
"""Side in px of the uniform window of SSIM; smaller images have no SSIM."""

Quality = dict[str, dict[str, float | None]]
"""``center_view`` and ``restored`` -> ``psnr_db`` (None: infinite, equal images), ``ssim`` (None: too small)."""

_CORRELATION_SIDE = 16
_FLAT_STD = 1 / 512


def center_view(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The mean of both views, ``(h, w, 3)`` float32 in the range of the views, not rounded."""
    return (left.astype(np.float32) + right.astype(np.float32)) / 2


def psnr(image: np.ndarray, target: np.ndarray, *, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB, infinite for equal images.

    Args:
        image: Any shape, any real dtype.
        target: The same shape.
        data_range: The peak: 255, 65535 or 1.

    Raises:
        ValueError: The shapes differ.
    """
    _check_shapes(image, target)
    mse = np.mean(np.subtract(image, target, dtype=np.float64) ** 2)
    return math.inf if mse == 0 else 10 * math.log10(data_range**2 / mse)


def ssim(image: np.ndarray, target: np.ndarray, *, data_range: float) -> float:
    """Structural similarity, the mean over pixels and channels (Wang et al. 2004).

    The same as ``skimage.metrics.structural_similarity(..., channel_axis=2)`` with its defaults: uniform
    7 x 7 window, sample covariance, K1 = 0.01, K2 = 0.03, in float64, without the 3 px at the border.

    Args:
        image: ``(h, w, c)``, any real dtype, at least 7 x 7 px.
        target: The same shape.
        data_range: The peak: 255, 65535 or 1.

    Raises:
        ValueError: The shapes differ or the images are too small.
    """
    _check_shapes(image, target)
    if image.ndim != 3 or min(image.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"expected (h, w, c) of at least {SSIM_WINDOW} x {SSIM_WINDOW} px, got {image.shape}")
    samples = SSIM_WINDOW**2
    to_sample_covariance = samples / (samples - 1)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    inner = slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2))

    def local_mean(x: np.ndarray) -> np.ndarray:
        return cv2.blur(x, (SSIM_WINDOW, SSIM_WINDOW))[inner, inner]

    means = []
    for channel in range(image.shape[2]):
        x, y = (np.ascontiguousarray(a[..., channel], dtype=np.float64) for a in (image, target))
        ux, uy = local_mean(x), local_mean(y)
        vx = to_sample_covariance * (local_mean(x * x) - ux * ux)
        vy = to_sample_covariance * (local_mean(y * y) - uy * uy)
        vxy = to_sample_covariance * (local_mean(x * y) - ux * uy)
        similarity = (2 * ux * uy + c1) * (2 * vxy + c2) / ((ux * ux + uy * uy + c1) * (vx + vy + c2))
        means.append(float(similarity.mean()))
    return sum(means) / len(means)


def against_target(left: np.ndarray, right: np.ndarray, restored: np.ndarray, target: np.ndarray) -> Quality:
    """PSNR and SSIM of the center view and of the restored image; all ``(h, w, 3)`` of one integer dtype."""
    data_range = float(np.iinfo(restored.dtype).max)
    values: Quality = {}
    for name, image in {"center_view": center_view(left, right), "restored": restored}.items():
        decibel = psnr(image, target, data_range=data_range)
        large = min(restored.shape[:2]) >= SSIM_WINDOW
        values[name] = {
            "psnr_db": decibel if math.isfinite(decibel) else None,
            "ssim": ssim(image, target, data_range=data_range) if large else None,
        }
    return values


def view_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """How well two views match: normalised cross-correlation of their greys, scaled down to 16 px.

    At that size a disparity of a few per cent of the width, far more than dual pixels give, hardly matters,
    and noise averages out.

    Args:
        left: ``(h, w, c)`` uint8, uint16 or float32 in [0, 1].
        right: The same shape and dtype.

    Returns:
        From -1 to 1; 1 when both are so flat that there is nothing to compare.
    """
    height, width = left.shape[:2]
    scale = min(1.0, _CORRELATION_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = []
    for view in (left, right):
        grey = cv2.resize(view, size, interpolation=cv2.INTER_AREA).reshape(*size[::-1], -1).mean(2, dtype=np.float64)
        small.append((grey - grey.mean()) / (np.iinfo(view.dtype).max if view.dtype.kind == "u" else 1))
    a, b = small
    if max(a.std(), b.std()) < _FLAT_STD:
        return 1.0
    return float((a * b).sum() / max(math.sqrt((a * a).sum() * (b * b).sum()), np.finfo(np.float64).tiny))


def _check_shapes(image: np.ndarray, target: np.ndarray) -> None:
    if image.shape != target.shape:
        raise ValueError(f"expected images of one shape, got {image.shape} and {target.shape}")
