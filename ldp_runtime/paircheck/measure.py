"""What a pair is like, measured on a reduced copy: exposure, shifts along both axes, coding.

A dual-pixel pair differs by shifts along one axis that vary from block to block, and by nothing along the other. So
each axis is tried: blocks shift freely along it, all by one amount across it. The axis that leaves less is the true
one, and the common shift across it is a misalignment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ldp_runtime.images.linear import linear_to_srgb, srgb_to_linear
from ldp_runtime.images.quality import view_correlation
from ldp_runtime.paircheck.coding import Coding, find_coding

AREA = 40_000
"""Px of the reduced copy, about."""

BLOCK = 12
"""Side in px of a block of the reduced copy."""

REACH = 8
"""Largest shift in px of the reduced copy: 2 to 4 % of the width of a photo."""

LEAST_SHIFT = 0.7
"""Shift in px, at least, to speak of the direction of a disparity."""

_SMOOTH = 23  # px of the box whose mean is taken off: light falls off towards the corners of a view
_LEAST_TEXTURE = 4e-6  # mean square of a block's gradients
_ROUNDS = 2
_LEAST_BLOCKS = 4

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Shifts:
    """Shifts between the views along one axis, block by block.

    Attributes:
        along: ``(rows, columns)`` float32, px of the full picture; positive where content lies further right (or
            down) in the right view.
        across: The shift that all blocks share along the other axis, in px of the full picture.
        weight: ``(rows, columns)`` float32, how much a block says; 0 where it has no texture.
        left_over: Mean square difference of the views with these shifts undone.
        at_rest: The same with the shift across alone undone.
    """

    along: Floats
    across: float
    weight: Floats
    left_over: float
    at_rest: float

    def extent(self) -> float:
        """The size of the shifts along the axis in px: percentile 95 over the blocks by weight."""
        return weighted_quantile(np.abs(self.along), self.weight, 0.95)

    @property
    def uniform(self) -> bool:
        """Whether the blocks shift further across the axis, all alike, than along it."""
        return abs(self.across) > max(LEAST_SHIFT, self.extent())

    @property
    def textured(self) -> int:
        """Blocks that say anything."""
        return int((self.weight > 0).sum())


@dataclass(frozen=True)
class Measurement:
    """What a pair is like.

    Attributes:
        coding: How the values of the pair are coded.
        ratio: Linear light of the right view over that of the left.
        correlation: Of the details of both views at rest, -1 to 1.
        matched: What shifts along one axis explain of the details, a share; 1 is all.
        asymmetry: 0 for two views; about 1 where the left is the sum and the right one of its parts, about -1 where
            it is the other way round. Counts on an exact match of the exposures.
        sharper: How much sharper the right view is than the left along x than along y: log of a ratio of energies.
            One half of a blurred pair is sharper along x than the sum of both.
        horizontal: Shifts for a disparity along x.
        vertical: Shifts for a disparity along y.
        likeness: Correlation of the views at 16 px, where a disparity hardly matters, -1 to 1.
        identical: The views are equal.
        scale: Px of the full picture per px of the reduced copy.
    """

    coding: Coding
    ratio: float
    correlation: float
    matched: float
    asymmetry: float
    sharper: float
    horizontal: Shifts
    vertical: Shifts
    likeness: float
    identical: bool
    scale: int

    def shifts(self, axis: str) -> Shifts:
        """The shifts for a disparity along ``"horizontal"`` or ``"vertical"``."""
        return self.horizontal if axis == "horizontal" else self.vertical


def measure(left: NDArray[Any], right: NDArray[Any], *, linear: bool | None = None) -> Measurement:
    """Measures a pair.

    Args:
        left: ``(h, w, 3)`` uint8 or uint16.
        right: The other view, of the same shape and dtype.
        linear: Whether the values are linear light, where the file says so; None judges by the picture.
    """
    h, w = left.shape[:2]
    scale = min(max(1, round((h * w / AREA) ** 0.5)), h, w)
    grey = [_reduced(view, scale) for view in (left, right)]
    coding = find_coding(left, right, grey[0], linear=linear)
    light = [view / np.float32(coding.full) for view in grey]
    if not coding.linear:
        light = [srgb_to_linear(view) for view in light]
    ratio = _exposure_ratio(*light)
    light[1] /= np.float32(ratio)
    a, b = (_details(_whole_blocks(linear_to_srgb(view))) for view in light)
    along = [_energies(view) for view in (a, b)]
    cov, va, vb = (_dot(x, y) / a.size + 1e-12 for x, y in ((a, b), (a, a), (b, b)))
    horizontal = _find_shifts(a, b, scale)
    vertical = _find_shifts(np.ascontiguousarray(a.T), np.ascontiguousarray(b.T), scale)
    return Measurement(
        coding=coding,
        ratio=ratio,
        correlation=cov / (va * vb) ** 0.5,
        matched=1 - min(horizontal.left_over, vertical.left_over) / (va + vb),
        asymmetry=(cov / va - cov / vb) / max(1 - cov * cov / (va * vb), 1e-3),
        sharper=float(np.log(along[1] / along[0])),
        horizontal=horizontal,
        vertical=Shifts(vertical.along.T, vertical.across, vertical.weight.T, vertical.left_over, vertical.at_rest),
        likeness=view_correlation(*(view[..., None] / np.float32(coding.full) for view in grey)),
        identical=bool(np.array_equal(grey[0], grey[1]) and np.array_equal(left, right)),
        scale=scale,
    )


def weighted_quantile(values: NDArray[Any], weights: NDArray[Any], quantile: float) -> float:
    """A quantile of values by weight; 0 where no weight is positive."""
    order = np.argsort(values, axis=None)
    total = np.cumsum(weights.ravel()[order], dtype=np.float64)
    if not len(total) or total[-1] <= 0:
        return 0.0
    return float(values.ravel()[order][np.searchsorted(total, quantile * total[-1])])


def _reduced(view: NDArray[Any], n: int) -> Floats:
    """Grey of a copy at 1/n of the size, ``(h // n, w // n)`` float32, at the scale of the view's values."""
    h, w = (side // n * n for side in view.shape[:2])
    whole = np.ascontiguousarray(view[:h, :w] if n > 1 else view, dtype=view.dtype.newbyteorder("="))
    small = cv2.resize(whole, (w // n, h // n), interpolation=cv2.INTER_AREA) if n > 1 else whole
    return np.asarray(cv2.transform(small.astype(np.float32), np.full((1, 3), 1 / 3, np.float32)), np.float32)


def _whole_blocks(view: Floats) -> Floats:
    h, w = view.shape
    return view[: h // BLOCK * BLOCK or h, : w // BLOCK * BLOCK or w]


def _exposure_ratio(a: Floats, b: Floats) -> float:
    """Linear light of ``b`` over that of ``a``: the median over blocks that are neither dark nor clipped."""
    blocks = (max(1, a.shape[1] // BLOCK), max(1, a.shape[0] // BLOCK))
    means = [cv2.resize(view, blocks, interpolation=cv2.INTER_AREA).ravel() for view in (a, b)]
    usable = (np.minimum(*means) > 0.002) & (np.maximum(*means) < 0.8)
    if usable.sum() < max(_LEAST_BLOCKS, 0.05 * usable.size):
        return 1.0
    return float(np.exp(np.median(np.log(means[1][usable] / means[0][usable]))))


def _details(view: Floats) -> Floats:
    smooth = cv2.GaussianBlur(view, (0, 0), 0.7)
    return np.subtract(smooth, cv2.blur(smooth, (_SMOOTH, _SMOOTH)), dtype=np.float32)


def _energies(details: Floats) -> float:
    """Energy of the differences along x over that of those along y."""
    x, y = (cv2.Sobel(details, cv2.CV_32F, dx, dy, scale=1 / 8) for dx, dy in ((1, 0), (0, 1)))
    return (_dot(x, x) + 1e-6) / (_dot(y, y) + 1e-6)


def _dot(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Sum of products. No BLAS: between loops its threads spin, which on a busy machine takes seconds."""
    return float(cv2.sumElems(cv2.multiply(x, y))[0])


def _block_means(values: NDArray[Any]) -> Floats:
    """Means of blocks ``(h / BLOCK, w / BLOCK)``; several times as quick as a resize. No BLAS, see ``_dot``."""
    h, w = values.shape
    sums = values.reshape(h // BLOCK, BLOCK, w).sum(axis=1)
    means: Floats = sums.reshape(len(sums), w // BLOCK, BLOCK).sum(axis=2)
    means *= np.float32(1 / BLOCK**2)
    return means


def _find_shifts(a: Floats, b: Floats, scale: float) -> Shifts:
    """Shifts along x by block, and the one along y that all share; the views at the reduced scale."""
    if min(a.shape) < 2 * BLOCK or min(a.shape) % BLOCK or max(a.shape) <= REACH:
        nothing = np.zeros((1, 1), np.float32)
        return Shifts(nothing, 0.0, nothing, np.inf, np.inf)
    gx, gy = (cv2.Sobel(a, cv2.CV_32F, dx, dy, scale=1 / 8) for dx, dy in ((1, 0), (0, 1)))
    xx, xy, yy = _block_means(gx * gx), _block_means(gx * gy), _block_means(gy * gy)
    det = xx * yy - xy * xy  # small where edges have one direction: there shifts along x and y cannot be told apart
    corners = (yy > _LEAST_TEXTURE) & (det > 0.1 * xx * yy)
    at_x, at_y = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in a.shape[::-1]))
    across = 0.0
    costs = _costs(a, b)
    for _ in range(_ROUNDS if corners.sum() >= _LEAST_BLOCKS else 0):
        along, _ = _minima(costs)
        field = cv2.resize(along, a.shape[::-1], interpolation=cv2.INTER_NEAREST)
        warped = cv2.remap(b, at_x + field, at_y + np.float32(across), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        rest = a - warped
        bx, by = _block_means(gx * rest), _block_means(gy * rest)
        step = np.clip((xx * by - xy * bx)[corners] / det[corners], -3, 3)
        across += (change := weighted_quantile(step, np.sqrt((det / np.maximum(xx, 1e-12))[corners]), 0.5))
        if abs(change) < 0.02:
            break
        costs = _costs(a, _moved_along_y(b, across))
    along, left_over = _minima(costs)
    return Shifts(
        along * np.float32(scale),
        across * scale,
        np.where(xx > _LEAST_TEXTURE, np.sqrt(xx), 0).astype(np.float32),
        float(left_over.mean()),
        float(costs[REACH].mean()),
    )


def _moved_along_y(view: Floats, dy: float) -> Floats:
    """The view with its content moved up by ``dy`` px."""
    if not dy:
        return view
    matrix = np.array([[1, 0, 0], [0, 1, dy]], np.float32)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(view, matrix, view.shape[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT), np.float32
    )


def _costs(a: Floats, b: Floats) -> Floats:
    """Mean square differences of blocks ``(2 REACH + 1, rows, columns)`` for shifts along x from -REACH to REACH."""
    w = a.shape[1]
    padded = cv2.copyMakeBorder(b, 0, 0, REACH, REACH, cv2.BORDER_REFLECT)
    costs = []
    for s in range(2 * REACH + 1):
        difference = cv2.subtract(a, padded[:, s : s + w])
        costs.append(_block_means(cv2.multiply(difference, difference)))
    return np.stack(costs)


def _minima(costs: Floats) -> tuple[Floats, Floats]:
    """The shift of lowest cost and that cost, by a parabola through three costs."""
    at = np.clip(costs.argmin(0), 1, len(costs) - 2)
    before, here, after = (np.take_along_axis(costs, (at + d)[None], 0)[0] for d in (-1, 0, 1))
    curve = np.maximum(before - 2 * here + after, 1e-12)
    step = np.clip((before - after) / (2 * curve), -1, 1)
    return (at + step - REACH).astype(np.float32), np.maximum(here - 0.25 * (before - after) * step, 0)


def smoothness(view: NDArray[Any], reach: float) -> float:
    """The exponent with which differences grow from 1 px to ``reach`` px: about 1 if sharp, 2 if smooth.

    0 where the picture is too small.
    """
    k = min(round(abs(reach)), min(view.shape[:2]) // 2)
    if k < 2:
        return 0.0
    step = max(1, min(view.shape[:2]) // 200)
    rows, columns = view[::step, :, 1].astype(np.float32), view[:, ::step, 1].T.astype(np.float32)
    growth = [float(sum(((v[:, n:] - v[:, :-n]) ** 2).mean(dtype=np.float64) for v in (rows, columns))) for n in (1, k)]
    return float(np.log(max(growth[1], 1e-9) / max(growth[0], 1e-9)) / np.log(k))
