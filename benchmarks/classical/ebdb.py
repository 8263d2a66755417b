"""EBDB's map of defocus (Karaali and Jung, "Edge-Based Defocus Blur Estimation with Adaptive Scale Selection", 2017).

At edges that Canny's detector finds at several scales, the ratio of gradients under two Gaussian kernels gives the
blur; neighbouring edge pixels are reconciled by a linear solve, and an edge-preserving filter spreads what they say
over the photo. **Approximate**: the detector is OpenCV's with Matlab's automatic thresholds, and the filter, which the
authors left out, is that of Gastal and Oliveira, "Domain Transform for Edge-Aware Image and Video Processing", 2011.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve

Map = NDArray[np.float64]
Edges = NDArray[np.bool_]

SCALES = tuple(1 + i / 2 for i in range(9))
"""Standard deviations of Canny's Gaussian, px."""
RELIABLE = 4
"""An edge counts that is found at this many of the smallest scales."""
FIRST = 1.0
"""Standard deviation of the first of the two kernels, px; that of the second is half the edge's last scale."""
MOST = 5.0
"""The largest blur, px."""
SMOOTHNESS = 10.0
_GAMMA = 2.4
_ITERATIONS = 5
_STRONG = 30_000
"""What the largest gradient is scaled to for OpenCV's detector, which takes 16-bit integers."""


def blur_map(image: Map) -> Map:
    """Standard deviation of the defocus blur, from one photo.

    Args:
        image: ``(h, w, 3)`` RGB in [0, 1].

    Returns:
        ``(h, w)`` in px, in [0, ``MOST``]; 0 everywhere where there is no edge.
    """
    linear = ((16 + image @ np.array([65.481, 128.553, 24.966])) / 255) ** _GAMMA
    found = np.stack([find_edges(linear, scale) for scale in SCALES])
    reliable: Edges = np.logical_and.reduce(found[:RELIABLE])
    if not reliable.any():
        return np.zeros(reliable.shape)
    blur = edge_blur(linear, found, reliable)
    sparse_map = np.zeros(reliable.shape)
    sparse_map[reliable] = reconcile(blur[reliable], reliable, found.sum(axis=0)[reliable])
    guide = recursive_filter(image, image, 7, 0.5)
    both = np.stack([sparse_map, reliable.astype(np.float64)], axis=2)
    spread = recursive_filter(both, guide, min(reliable.shape) / 8, 3.75)
    return np.clip(spread[..., 0] / np.maximum(spread[..., 1], np.finfo(np.float64).tiny), 0, MOST)


def find_edges(plane: Map, scale: float) -> Edges:
    """Canny's edges with Matlab's thresholds: the upper one leaves 30 % of pixels above, the lower one is 0.4 of it.

    Args:
        plane: ``(h, w)``.
        scale: Standard deviation of the Gaussian, px.

    Returns:
        ``(h, w)``.
    """
    across, down = (ndimage.gaussian_filter(plane, scale, order=order, mode="nearest") for order in ((0, 1), (1, 0)))
    strength = np.hypot(across, down)
    top = float(strength.max())
    if top < np.finfo(np.float32).eps:
        return np.zeros(plane.shape, dtype=bool)
    counts = np.histogram(strength / top, bins=64, range=(0, 1))[0]
    high = (1 + int(np.argmax(counts.cumsum() > 0.7 * plane.size))) / 64
    x, y = (np.rint(gradient * (_STRONG / top)).astype(np.int16) for gradient in (across, down))
    return cv2.Canny(x, y, 0.4 * high * _STRONG, high * _STRONG, L2gradient=True) > 0


def edge_blur(linear: Map, found: Edges, reliable: Edges) -> Map:
    """The blur at each reliable edge pixel, from the ratio R of its gradients under two kernels.

    ``sqrt((R^2 s1^2 - s2^2) / (1 - R^2))``; 0 where that is not real.

    Args:
        linear: ``(h, w)``.
        found: ``(scales, h, w)``: the edges of each scale.
        reliable: ``(h, w)``.

    Returns:
        ``(h, w)`` in px, in [0, ``MOST``]; only reliable pixels have a meaning.
    """
    lasts = np.where(found.all(axis=0), len(SCALES), np.argmin(found, axis=0)) - 1  # scale before the edge vanishes
    blur = np.zeros(linear.shape)
    for last in np.unique(lasts[reliable]):
        second = SCALES[last] / 2
        radius = 2 * math.ceil(2 * second) + 1
        ratio = np.square(_gradient(linear, FIRST, radius) / np.maximum(_gradient(linear, second, radius), 1e-12))
        with np.errstate(divide="ignore", invalid="ignore"):
            squared = (ratio * FIRST**2 - second**2) / (1 - ratio)
        here = reliable & (lasts == last)
        blur[here] = np.sqrt(np.clip(np.nan_to_num(squared[here], nan=0, posinf=MOST**2), 0, MOST**2))
    return blur


def reconcile(blur: Map, reliable: Edges, scales: NDArray[np.int_]) -> Map:
    """Makes neighbours agree along each edge: ``(2 g n + 1 + e) x - 2 g sum(neighbours' x) = (1 + e) blur``.

    Args:
        blur: ``(edge pixels,)``, row by row.
        reliable: ``(h, w)``: where they are.
        scales: ``(edge pixels,)``: the e of each, at how many scales it is an edge.

    Returns:
        ``(edge pixels,)``.
    """
    number = np.full(np.add(reliable.shape, 2), -1)
    number[1:-1, 1:-1][reliable] = np.arange(blur.size)
    rows, columns = np.nonzero(reliable)
    steps = [(dy, dx) for dy in (0, 1, 2) for dx in (0, 1, 2) if (dy, dx) != (1, 1)]
    around = np.stack([number[rows + dy, columns + dx] for dy, dx in steps])  # (8, edge pixels)
    there = around >= 0
    own = np.broadcast_to(np.arange(blur.size), around.shape)
    diagonal = sparse.diags(2 * SMOOTHNESS * there.sum(axis=0) + 1 + scales)
    pairs = sparse.coo_matrix(
        (np.full(there.sum(), -2 * SMOOTHNESS), (own[there], around[there])), shape=diagonal.shape
    )
    solved: Map = np.atleast_1d(spsolve((diagonal + pairs).tocsc(), blur * (1 + scales)))
    return solved


def recursive_filter(planes: Map, guide: Map, reach: float, contrast: float) -> Map:
    """Smooths planes but not across edges of a guide, by recursion along rows and columns in turn.

    Args:
        planes: ``(h, w, c)``.
        guide: ``(h, w, d)``.
        reach: Standard deviation along space, px.
        contrast: Standard deviation along the guide's values.

    Returns:
        ``(h, w, c)``.
    """
    distances = []
    for axis in (1, 0):
        steps = np.abs(np.diff(guide, axis=axis)).sum(axis=2)
        distances.append(np.moveaxis(1 + reach / contrast * steps, axis, 0))  # (steps along the axis, lines)
    planes = planes.astype(np.float64)
    for i in range(_ITERATIONS):
        spread = reach * math.sqrt(3) * 2 ** (_ITERATIONS - 1 - i) / math.sqrt(4**_ITERATIONS - 1)
        for axis, distance in zip((1, 0), distances, strict=True):
            weights = np.exp(-math.sqrt(2) / spread) ** distance
            lines = np.moveaxis(planes, axis, 0).copy()  # (samples along the axis, lines, c)
            for n in range(1, len(lines)):
                lines[n] += weights[n - 1][:, None] * (lines[n - 1] - lines[n])
            for n in range(len(lines) - 2, -1, -1):
                lines[n] += weights[n][:, None] * (lines[n + 1] - lines[n])
            planes = np.moveaxis(lines, 0, axis)
    return planes


def _gradient(plane: Map, sigma: float, radius: int) -> Map:
    across, down = (
        ndimage.gaussian_filter(plane, sigma, order=order, mode="reflect", radius=radius) for order in ((0, 1), (1, 0))
    )
    return np.hypot(across, down)
