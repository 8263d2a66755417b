"""Random apertures as real dual-pixel cameras show them, and fast blurring with their point spread functions.

Measured point spread functions of a photodiode are whole disks that are brighter on one side, by about 3 to 1, with the
centroids of the two views 0.40 to 0.50 r apart (r: radius of the circle of confusion), not the halves of a disk, which
would lie 0.85 r apart. An aperture here is the light that each photodiode sees across it: any shape, sampled on a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft

from ldp_export.simulation.optics import FloatArray

EXTENT = 1.8
"""The grid of an aperture reaches so many radii from its centre."""

SEPARATIONS = (0.25, 0.70)
"""Least and largest distance of the two views' centroids, in radii."""

_SAMPLES = 181
_GRID = np.linspace(-EXTENT, EXTENT, _SAMPLES, dtype=np.float32)
_LINEAR, _LEVELS = 5.0, 10.0
"""Blurs are rendered at the radii ``5 sinh(k / 10)``: 0.5 px apart where small, a tenth of the radius where large."""


@dataclass(frozen=True)
class Layer:
    """One surface of a scene, known also where nearer layers hide it.

    Attributes:
        color: ``(h, w, 3)`` linear light.
        alpha: ``(h, w)`` coverage in [0, 1].
        coc: Signed CoC radius in pixels: ``(h, w)`` and smooth, or one number.
    """

    color: FloatArray
    alpha: FloatArray
    coc: FloatArray | float


@dataclass(frozen=True, eq=False)
class Aperture:
    """What the photodiodes see of the lens.

    Attributes:
        left: ``(n, n)``, light of the left photodiode over ``[-EXTENT, EXTENT]^2`` radii, as a point behind the focal
            plane shows it.
        right: The same of the right photodiode.
        shift: Misalignment in px: the left view lies half of it higher than it should, the right view half lower.
    """

    left: FloatArray
    right: FloatArray
    shift: float = 0.0

    def views(self, radius: float) -> tuple[FloatArray, FloatArray]:
        """Left and right kernels ``(k, k)``, each summing to one, for a signed CoC radius in px.

        Before the focal plane the image of the aperture is upside down. Sampling by a tent keeps centroids exact.
        """
        lights = (self.left, self.right) if radius >= 0 else (self.left[::-1, ::-1], self.right[::-1, ::-1])
        used = np.abs(_GRID)[(self.left + self.right).max(0) > 1e-3 * self.left.max()].max()
        half = int(np.ceil(abs(radius) * used + abs(self.shift) / 2)) or 1
        pixels = np.arange(-half, half + 1, dtype=np.float32)[:, None]
        across = _GRID * np.float32(abs(radius))
        kernels = []
        for light, shift in zip(lights, (-self.shift / 2, self.shift / 2), strict=True):
            rows, columns = (np.maximum(0, 1 - np.abs(pixels - a)) for a in (across + np.float32(shift), across))
            kernel = rows @ light @ columns.T
            kernels.append(kernel / kernel.sum())
        return kernels[0], kernels[1]

    def disparity(self, radius: float) -> float:
        """DP disparity ``j - k`` of Eq. 1 in px (x in the left view minus x in the right) of a point's centroid."""
        left, right = (float((light.sum(0) * _GRID).sum() / light.sum()) for light in (self.left, self.right))
        return radius * (left - right)


def random_aperture(rng: np.random.Generator, misaligned: bool = True, separation: float | None = None) -> Aperture:
    """Draws rim, stretch, vignetting, rotation, unevenness, and how the photodiodes share the light.

    Args:
        rng: Source of all draws.
        misaligned: The views may stand up to half a pixel apart across the disparity.
        separation: Distance of the views' centroids over the radius of an even disk with the aperture's second moment,
            from 0 to the largest of ``SEPARATIONS``; None draws it.
    """
    x, y = _GRID[None, :], _GRID[:, None]
    order = float(np.exp(rng.uniform(np.log(4), np.log(30))))
    stretch = rng.uniform(0.85, 1.0) if rng.random() < 0.3 else 1.0
    square = x**2 + (y / np.float32(stretch)) ** 2
    light = 1 / (1 + np.minimum(square, 100.0) ** order)  # Butterworth, as Abuolaim et al. 2021 fit to real sensors
    if rng.random() < 0.6:  # spherical aberration: a dim or bright rim
        light *= 1 + rng.uniform(-0.6, 0.9) * np.clip(square, 0, 1.3)
    if rng.random() < 0.35:  # off axis the barrel cuts the aperture
        angle, away, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.6), rng.uniform(0.95, 1.25)
        cut = (x - away * np.cos(angle)) ** 2 + (y - away * np.sin(angle)) ** 2
        light /= 1 + np.minimum(cut / size**2, 100.0) ** order
    if rng.random() < 0.4:
        coarse = rng.standard_normal((5, 5)).astype(np.float32)
        light *= np.exp(0.15 * cv2.resize(coarse, (_SAMPLES, _SAMPLES), interpolation=cv2.INTER_CUBIC))
    if separation is not None:
        moment = (light * (x**2 + y**2)).sum() / light.sum()
        separation *= float(np.sqrt(2 * moment))  # of the grid's radii
    share = _random_share(rng, light, x, y, separation)
    shift = rng.uniform(-0.5, 0.5) if misaligned and rng.random() < 0.25 else 0.0
    left, right = ((light * part).astype(np.float32) for part in (share, 1 - share))
    return Aperture(left, right, shift)


def _random_share(
    rng: np.random.Generator, light: NDArray[np.float64], x: FloatArray, y: FloatArray, separation: float | None
) -> NDArray[np.float64]:
    """The left photodiode's share ``(n, n)`` of the light: a soft step or ramp across the aperture, over crosstalk."""
    if separation is None:
        drawn = rng.normal(0.45, 0.04) if rng.random() < 0.7 else rng.uniform(*SEPARATIONS)
        separation = float(np.clip(drawn, *SEPARATIONS))
    angle = rng.normal(0, 0.06) if rng.random() < 0.5 else 0.0  # the split turns a little over the field
    along = x * np.cos(angle) + y * np.sin(angle) - (rng.normal(0, 0.05) if rng.random() < 0.3 else 0.0)
    softness = float(np.exp(rng.uniform(np.log(0.03), np.log(0.5))))
    while True:
        step = 1 / (1 + np.exp(np.clip(along / softness, -60, 60)))
        left, right = ((light * part * x).sum() / (light * part).sum() for part in (step, 1 - step))
        largest = float(right - left)  # of this step without crosstalk
        if largest >= separation or softness < 0.05:
            break
        softness *= 0.7
    crosstalk = max(0.0, 1 - separation / largest) / 2
    return np.asarray(crosstalk + (1 - 2 * crosstalk) * step)


def render_wrapped(layers: Sequence[Layer], aperture: Aperture) -> tuple[FloatArray, FloatArray]:
    """Blurs each layer, with its coverage, by the kernels of its CoC and lays it over what is behind; in Fourier space.

    Args:
        layers: Far to near; the farthest covers the frame.
        aperture: Its kernels.

    Returns:
        Left and right views ``(h, w, 3)`` in linear light. The frame wraps around: a margin of ``EXTENT`` radii is
        invalid.
    """
    views: list[FloatArray] = []
    for layer in layers:
        alpha = layer.alpha[..., None]
        image = layer.color if not views else np.concatenate([layer.color * alpha, alpha], axis=-1)
        blurred = _blur(np.ascontiguousarray(image.transpose(2, 0, 1), np.float32), np.asarray(layer.coc), aperture)
        if views:
            views = [view * (1 - np.clip(b[3:], 0, 1)) + b[:3] for view, b in zip(views, blurred, strict=True)]
        else:
            views = blurred
    left, right = (np.ascontiguousarray(view.transpose(1, 2, 0)) for view in views)
    return left, right


def _blur(image: FloatArray, coc: FloatArray, aperture: Aperture) -> list[FloatArray]:
    """Both views ``(c, h, w)`` of an image blurred with a CoC that varies, interpolated between constant ones."""
    size = image.shape[1:]
    spectrum = fft.rfft2(image)
    if np.ptp(coc) < 1e-3:
        radii, weights = [float(coc.mean())], [np.float32(1)]
    else:
        position = _LEVELS * np.arcsinh(coc / _LINEAR)
        levels = range(int(np.floor(position.min())), int(np.ceil(position.max())) + 1)
        radii = [_LINEAR * float(np.sinh(k / _LEVELS)) for k in levels]
        weights = [np.maximum(0, 1 - np.abs(position - k)) for k in levels]
    views = [np.zeros_like(image) for _ in range(2)]
    for radius, weight in zip(radii, weights, strict=True):
        if not np.any(weight):
            continue
        for view, kernel in zip(views, aperture.views(radius), strict=True):
            half = kernel.shape[0] // 2
            whole = np.zeros(size, np.float32)
            whole[: 2 * half + 1, : 2 * half + 1] = kernel
            whole = np.roll(whole, (-half, -half), (0, 1))
            view += weight * fft.irfft2(spectrum * fft.rfft2(whole), size)
    return views
