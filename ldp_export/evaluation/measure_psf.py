"""Measures the point spread functions (PSFs) of a camera's views from pairs with sharp targets.

Within a block of the picture that lies at one depth, a view is the target convolved with the view's PSF, in linear
light. So for a textured block the PSF is the kernel that turns the target into the view: least squares over the block's
pixels, with non-negative values and a penalty on differences between neighbours. Blocks across the edge of an object,
or whose target has moved, are told by what no kernel explains of the view's fine detail, and left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ldp_export.data.base import PairSample
from ldp_runtime.images.linear import srgb_to_linear

BLOCK = 120
"""Side in px of the blocks that a PSF is solved from."""

LEAST_RADIUS, MOST_RADIUS = 2.0, 20.0
"""Below, pixels are too coarse for the shape of a PSF; above, a block takes minutes and hardly holds the kernel."""

LEAST_TEXTURE = 0.02
"""A block has texture if neighbours differ by so much on average, in linear light, along both axes."""

LEAST_EXPLAINED = 0.88
"""The share of the variance of a view's fine detail that its PSF must explain."""

MOST_BLOCKS = 48
"""So many blocks of a pair are solved, those with most texture; each takes about a second."""

_SMOOTHNESS, _RIDGE = 2e-3, 1e-4  # weights of the penalties over the mean energy of the patches
_FAINT = 0.05  # of the peak: what is fainter is noise of the solution
_FINE = 2 / 3  # of the largest radius: deviation of the Gaussian that takes the fine detail out
_STEPS = 1200

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BlockPSF:
    """The PSFs of both views in one block.

    Attributes:
        pair: Name of the pair.
        row: First row of the block in px.
        column: First column.
        left: ``(k, k)``, sum 1, of the left view.
        right: The same of the right view.
        radius: r in px: of the even disk with the second moment of both.
        shift: How much further right the centroid of the right view's PSF lies, in px: positive behind the focal plane.
    """

    pair: str
    row: int
    column: int
    left: Floats
    right: Floats
    radius: float
    shift: float

    @property
    def separation(self) -> float:
        """Distance of the centroids in units of r; see ``HalfAperturePSF.separation``."""
        return abs(self.shift) / self.radius


@dataclass(frozen=True)
class Separation:
    """What the blocks say of a camera, in units of r.

    Attributes:
        lower: The lower quartile.
        median: The middle one.
        upper: The upper quartile.
    """

    lower: float
    median: float
    upper: float


def summarise(blocks: Sequence[BlockPSF]) -> Separation:
    """The quartiles of the separations of at least one block."""
    return Separation(*(float(v) for v in np.percentile([block.separation for block in blocks], (25, 50, 75))))


def measure_pair(sample: PairSample, max_radius: float) -> Iterator[BlockPSF]:
    """Solves the PSFs of the blocks of a pair that allow it.

    Args:
        sample: The pair with its target, encoded as sRGB.
        max_radius: Largest radius in px that is looked for, at least ``LEAST_RADIUS``.

    Yields:
        A block's PSFs, where it has texture and they explain both views.

    Raises:
        ValueError: The pair has no target.
    """
    if sample.target is None:
        raise ValueError(f"expected a pair with a target, got {sample.name} without")
    left, right, target = (_linear_green(image, sample.peak) for image in (sample.left, sample.right, sample.target))
    half = int(np.ceil(1.1 * max_radius))
    height, width = target.shape
    rows, columns = (range(half, length - BLOCK - half + 1, BLOCK) for length in (height, width))
    textures = {}
    for row, column in itertools.product(rows, columns):
        sharp = target[row - half : row + BLOCK + half, column - half : column + BLOCK + half]
        textures[row, column] = min(float(np.abs(np.diff(sharp, axis=axis)).mean()) for axis in (0, 1))
    textured = [place for place, texture in textures.items() if texture >= LEAST_TEXTURE]
    for row, column in sorted(textured, key=lambda place: -textures[place])[:MOST_BLOCKS]:
        sharp = target[row - half : row + BLOCK + half, column - half : column + BLOCK + half]
        views = [view[row : row + BLOCK, column : column + BLOCK] for view in (left, right)]
        kernels = solve_block(sharp, views)
        if kernels is None:
            continue
        radius, shift = _measures(*kernels)
        if LEAST_RADIUS <= radius <= max_radius:
            yield BlockPSF(sample.name, row, column, *kernels, radius, shift)


def kernel_sheet(blocks: Sequence[BlockPSF]) -> NDArray[np.uint8]:
    """A picture ``(h, w, 3)`` of kernels, four times as large: left beside right, four blocks a row."""
    tiles = []
    for block in blocks:
        both = np.pad(np.concatenate([block.left, block.right], axis=1), 1)
        tiles.append(np.kron(both / both.max(), np.ones((4, 4))))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % 4)
    rows = [np.concatenate(tiles[i : i + 4], axis=1) for i in range(0, len(tiles), 4)]
    grey = (255 * np.concatenate(rows)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def solve_block(sharp: Floats, views: Sequence[Floats]) -> tuple[Floats, Floats] | None:
    """The kernels ``(k, k)`` that turn a sharp block into each view; None where one explains its view too little.

    Args:
        sharp: ``(n + k - 1, n + k - 1)``, the target in linear light.
        views: Both views ``(n, n)`` of its middle.
    """
    side = len(sharp) - len(views[0]) + 1
    patches = np.lib.stride_tricks.sliding_window_view(sharp, (side, side)).reshape(-1, side * side)  # (n n, k k)
    normal = patches.T @ patches
    energy = np.trace(normal) / side**2
    normal += energy * (_SMOOTHNESS * _roughness(side) + _RIDGE * np.eye(side * side))
    kernels = []
    for view in views:
        kernel = _non_negative(normal, patches.T @ view.ravel())
        rest, detail = (_fine(image, side) for image in ((patches @ kernel).reshape(view.shape) - view, view))
        if np.square(rest).mean() > (1 - LEAST_EXPLAINED) * np.square(detail).mean():
            return None
        kernel[kernel < _FAINT * kernel.max()] = 0
        kernels.append((kernel / kernel.sum()).reshape(side, side)[::-1, ::-1])
    return kernels[0], kernels[1]


def _fine(image: Floats, side: int) -> Floats:
    """An image ``(n, n)`` without what is coarser than kernels of ``side`` px."""
    return image - np.asarray(cv2.GaussianBlur(image, (0, 0), _FINE * side / 2.2), np.float64)


def _linear_green(image: NDArray[np.generic], peak: int) -> Floats:
    """The green channel ``(h, w)`` in linear light, in [0, 1]."""
    return srgb_to_linear(image[..., 1].astype(np.float32) / np.float32(peak)).astype(np.float64)


def _measures(left: Floats, right: Floats) -> tuple[float, float]:
    """The radius of both kernels' sum, and how much further right the right one's centroid lies, in px."""
    both = (left + right) / 2
    y, x = np.mgrid[: len(left), : len(left)].astype(np.float64)
    center = (both * y).sum(), (both * x).sum()
    moment = (((y - center[0]) ** 2 + (x - center[1]) ** 2) * both).sum()
    return float(np.sqrt(2 * moment)), float(((right - left) * x).sum())


def _roughness(side: int) -> Floats:
    """The sum of the squared differences between neighbours of a kernel ``(k, k)``, as a matrix ``(k k, k k)``."""
    index = np.arange(side * side).reshape(side, side)
    pairs = [(index[:, :-1], index[:, 1:]), (index[:-1], index[1:])]
    first, second = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    form = np.zeros((side * side, side * side))
    form[first, second] = form[second, first] = -1
    form[np.diag_indices(side * side)] = np.bincount(np.concatenate([first, second]), minlength=side * side)
    return form


def _non_negative(normal: Floats, right_side: Floats) -> Floats:
    """The least-squares solution without negative values, by accelerated projected gradients (Nesterov)."""
    step = 1 / np.linalg.norm(normal, 2)
    solution = ahead = np.full(len(normal), 1 / len(normal))
    momentum = 1.0
    for _ in range(_STEPS):
        better = np.maximum(ahead - step * (normal @ ahead - right_side), 0)
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = better + (momentum - 1) / following * (better - solution)
        solution, momentum = better, following
    return solution
