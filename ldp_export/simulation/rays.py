"""A second, independent DP simulator, for testing only: it must never render training data.

``simulate.py`` blurs layers with a Butterworth disk, stepped across its middle, and lays them over each other. Here
only the cutting into layers is the same: the aperture is a rotated hexagon whose sensitivity to left and right falls
off linearly across it, and the views are sums of pinhole views, one for each point of the aperture, each composited
with hard occlusion. A network that has learned the optics rather than one renderer's habits does well on both. The rule
was frozen before any network was trained; the slope of the sensitivity was set later, to what cameras show.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ldp_export.simulation.apertures import Layer
from ldp_export.simulation.optics import FloatArray
from ldp_export.simulation.simulate import SensorNoise, SimulatedPair, quantise
from ldp_runtime.images.linear import linear_to_srgb, srgb_to_linear

APERTURE_ROTATION = np.deg2rad(11.0)
SENSITIVITY_SLOPE = 0.49
"""Of the left photodiode across the half-aperture, clipped to the floor below. Like the other simulator's
``HalfAperturePSF`` it puts the centroids of the views 0.45 r apart."""

SENSITIVITY_FLOOR = 0.04


def aperture_samples(max_radius: float, spacing: float = 0.6) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Points of the hexagonal aperture and the weights of the left and right photodiodes.

    Args:
        max_radius: Largest CoC radius in pixels, which fixes how densely the aperture is sampled.
        spacing: Distance between neighbouring samples at that radius, in pixels.

    Returns:
        Points ``(n, 2)`` as (u, v) inside the unit disk, symmetrical about the origin; weights ``(n,)`` left and right,
        each summing to 1.
    """
    count = 2 * max(1, int(np.ceil(max_radius / spacing))) + 1
    axis = np.linspace(-1, 1, count)
    u, v = (a.ravel() for a in np.meshgrid(axis, axis))
    inside = np.ones_like(u, dtype=bool)
    for k in range(6):
        angle = APERTURE_ROTATION + k * np.pi / 3
        inside &= u * np.cos(angle) + v * np.sin(angle) <= np.cos(np.pi / 6) + 1e-9
    u, v = u[inside], v[inside]
    left = np.clip(0.5 - SENSITIVITY_SLOPE * u, SENSITIVITY_FLOOR, 1 - SENSITIVITY_FLOOR)
    right = 1 - left
    points = np.stack([u, v], axis=1).astype(np.float32)
    return points, (left / left.sum()).astype(np.float32), (right / right.sum()).astype(np.float32)


def layers_from_image(image: FloatArray, coc: FloatArray, step: float = 0.5, same: float = 1.0) -> Iterator[Layer]:
    """Cuts an image ``(h, w, 3)`` (linear) with a CoC map ``(h, w)`` into layers of constant CoC, far to near.

    A layer covers its own pixels and all nearer ones, so that neighbouring layers of one slanted surface overlap and
    leave no dark seam between them. Behind a nearer *surface* (|difference of radius| > ``same``) the layer's colour is
    continued from its own nearest pixel, so that no light of an occluder bleeds into what lies behind it. Beside
    silhouettes over slanted ground that continuation is coarse and leaves faint halos that no camera makes; they stay
    as they are, since the rule is frozen.
    """
    index = np.rint(coc / step).astype(np.int32)
    for k in range(int(index.max()), int(index.min()) - 1, -1):
        if not (index == k).any():
            continue
        covered = index <= k
        own = np.abs(coc - k * step) <= max(same, step)
        hidden = covered & ~own
        color = image
        if hidden.any():
            rows, columns = ndimage.distance_transform_edt(~own, return_distances=False, return_indices=True)
            color = np.where(hidden[..., None], image[rows, columns], image)
        yield Layer(color, covered.astype(np.float32), k * step)


def simulate_pair_rays(
    image: NDArray[np.uint8],
    coc: FloatArray,
    *,
    noise: SensorNoise,
    seed: int = 0,
    bits: int = 8,
) -> SimulatedPair:
    """Like ``simulate.simulate_pair``, with the aperture-sampled rule: the same arguments, units and result."""
    encoded = image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    layers = list(layers_from_image(srgb_to_linear(encoded), coc))
    rgba = [np.dstack([layer.color, layer.alpha]).astype(np.float32) for layer in layers]
    height, width = coc.shape
    left = np.zeros((height, width, 3), dtype=np.float32)
    right = np.zeros_like(left)
    points, left_weights, right_weights = aperture_samples(float(np.abs(coc).max()))
    for (u, v), left_weight, right_weight in zip(points, left_weights, right_weights, strict=True):
        pinhole = rgba[0][..., :3]
        for i, layer in enumerate(layers):
            moved = _translate(rgba[i], float(layer.coc) * u, float(layer.coc) * v)
            visible = np.where(moved[..., 3:] >= 0.5, np.float32(1), np.float32(0)) if i else np.float32(1)
            pinhole = visible * moved[..., :3] + (1 - visible) * pinhole
        left += left_weight * pinhole
        right += right_weight * pinhole
    rng = np.random.default_rng(seed)
    views = [quantise(linear_to_srgb(noise.add(view, rng)), bits) for view in (left, right)]
    return SimulatedPair(views[0], views[1], quantise(encoded, bits), coc.astype(np.float32))


def _translate(image: FloatArray, dx: float, dy: float) -> FloatArray:
    matrix = np.array([[1, 0, dx], [0, 1, dy]], dtype=np.float32)
    size = (image.shape[1], image.shape[0])
    moved = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(moved, np.float32)
