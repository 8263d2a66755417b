"""Scores of real photographs, whose targets are other photographs: shot in other light, and not quite from there.

Three forms of PSNR forgive that. *Matched* PSNR takes the low frequencies of an image from the target, so that light
and vignetting cancel. *Aligned* PSNR lets each block of the image shift a little, so that a moved tripod, or objects
that stand elsewhere in the blurred views than in the target, do not count as lost detail. *Registered* PSNR compares
with the target as an affine map brings it to the photo: a lens that is focused elsewhere shows the scene larger or
smaller (focus breathing), and no restoration can know that. Sharpness needs no target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ldp_export.evaluation.metrics import psnr

MATCH_SIGMA = 20.0
"""Deviation in px of the Gaussian whose output counts as low frequencies."""

BLOCK = 64
"""Side in px of the blocks that may shift."""

SHIFT_X, SHIFT_Y, SHIFT_STEP = 3.0, 1.0, 0.5
"""How far in px a block may shift along x and along y, and in what steps."""

REGISTERED_PX = 1.5e6
"""Px of the copies that are registered at most."""

_ECC_STEPS, _ECC_EPSILON = 200, 1e-6
_LEAST_COMMON = 0.8

SHARPNESS_SIGMA = 1.0
"""Deviation in px of the Gaussian that keeps noise out of the sharpness."""

Floats = NDArray[np.float32]


def unit_range(image: NDArray[np.generic], peak: float) -> Floats:
    """An image ``(h, w, c)`` in [0, peak] as float32 in [0, 1]."""
    return np.asarray(image, np.float32) / np.float32(peak)


def is_grey(image: NDArray[np.generic]) -> bool:
    """Whether the three channels of an image ``(h, w, 3)`` are one."""
    return bool((image == image[..., :1]).all())


def matched_psnr(image: Floats, target: Floats) -> float:
    """PSNR in dB after the low frequencies of an image were replaced by those of the target.

    Args:
        image: ``(h, w, c)`` in [0, 1].
        target: The same shape.
    """
    low_image, low_target = (cv2.GaussianBlur(v, (0, 0), MATCH_SIGMA).reshape(v.shape) for v in (image, target))
    return psnr(image - low_image + low_target, target, data_range=1.0)


def aligned_psnr(image: Floats, target: Floats) -> float:
    """PSNR in dB where each block of ``BLOCK`` px takes the shift of the image at which it is nearest to the target.

    Args:
        image: ``(h, w, c)`` in [0, 1]. It is shifted by bicubic interpolation and mirrored beyond its border.
        target: The same shape.
    """
    height, width = target.shape[:2]
    rows, columns = range(0, height, BLOCK), range(0, width, BLOCK)
    least = np.full((len(rows), len(columns)), np.inf)
    for dx in np.arange(-SHIFT_X, SHIFT_X + SHIFT_STEP / 2, SHIFT_STEP):
        for dy in np.arange(-SHIFT_Y, SHIFT_Y + SHIFT_STEP / 2, SHIFT_STEP):
            matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
            shifted = cv2.warpAffine(
                image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
            )
            error = np.square(shifted.reshape(target.shape) - target).sum(2, dtype=np.float64)  # (h, w)
            np.minimum(least, np.add.reduceat(np.add.reduceat(error, rows, 0), columns, 1), out=least)
    mean = float(least.sum()) / target.size
    return math.inf if mean == 0 else -10 * math.log10(mean)


@dataclass(frozen=True, eq=False)
class RegisteredTarget:
    """A target in the geometry of another photo.

    Attributes:
        target: ``(h, w, c)`` in [0, 1].
        inside: ``(h, w)``: where the target's own picture reaches.
    """

    target: Floats
    inside: NDArray[np.bool_]

    def psnr(self, image: Floats) -> float:
        """PSNR in dB of an image ``(h, w, c)`` in [0, 1], where the target reaches."""
        return psnr(image[self.inside], self.target[self.inside], data_range=1.0)


def register_target(target: Floats, restored: Floats) -> RegisteredTarget:
    """The target in the geometry of a restored photo, by the affine map that makes both correlate best.

    The map is found by OpenCV's ECC (Evangelidis and Psarakis 2008) and is at once that of the center view, which the
    photo was restored from. Where none is found that brings the target nearer, it stays as it is.

    Args:
        target: ``(h, w, c)`` in [0, 1].
        restored: The same shape.
    """
    height, width = target.shape[:2]
    scale = min(1.0, math.sqrt(REGISTERED_PX / (height * width)))
    template, moving = (
        cv2.resize(np.asarray(image.mean(2), np.float32), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for image in (restored, target)
    )
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, _ECC_STEPS, _ECC_EPSILON)
    matrix = np.eye(2, 3, dtype=np.float32)
    unmoved = RegisteredTarget(target, np.ones((height, width), np.bool_))
    try:
        cv2.findTransformECC(template, moving, matrix, cv2.MOTION_AFFINE, criteria)
    except cv2.error:  # they do not correlate
        return unmoved
    matrix[:, 2] /= scale

    def moved(image: NDArray[np.float32], interpolation: int, border: int) -> Floats:
        flags = interpolation | cv2.WARP_INVERSE_MAP
        return np.asarray(cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=border), np.float32)

    inside = moved(np.ones((height, width), np.float32), cv2.INTER_LINEAR, cv2.BORDER_CONSTANT) > 0.999
    registered = RegisteredTarget(
        moved(target, cv2.INTER_CUBIC, cv2.BORDER_REFLECT).reshape(target.shape), np.asarray(inside)
    )
    if inside.mean() < _LEAST_COMMON or registered.psnr(restored) <= unmoved.psnr(restored):
        return unmoved
    return registered


def sharpness(image: Floats) -> float:
    """Root mean square of the luminance's gradient, in percent of the peak per px: more where edges are steeper.

    Noise and false texture raise it too, so it compares two forms of one photograph, looked at together.

    Args:
        image: ``(h, w, c)`` in [0, 1].
    """
    smooth = cv2.GaussianBlur(image.mean(2), (0, 0), SHARPNESS_SIGMA)
    slopes = [cv2.Sobel(smooth, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for dx in (0, 1)]
    return 100 * math.sqrt(sum(float(np.square(slope).mean(dtype=np.float64)) for slope in slopes))
