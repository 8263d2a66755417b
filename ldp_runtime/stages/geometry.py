"""Sizes: the padding rule, the windows that CLIP sees, and the weights that blend them. Numpy only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

PADDING_MODE = "reflect-101"

ENGINE_CLIP_BATCH = 64
"""The most windows that a CLIP engine runs at once."""


class Padding(Struct, frozen=True, forbid_unknown_fields=True):
    """The size rule of the network: height and width are multiples of ``multiple``, padded bottom and right.

    Attributes:
        multiple: Both padded sides are multiples of this many px.
        mode: The border rule; ``"reflect-101"`` is the only one.
        least: Both padded sides are at least this many px, rounded up to ``multiple``.
    """

    multiple: Annotated[int, Meta(ge=1, le=4096)]
    mode: str = PADDING_MODE
    least: Annotated[int, Meta(ge=1, le=4096)] = 1

    def padded_size(self, h: int, w: int) -> tuple[int, int]:
        """The smallest allowed size that holds an image of ``h`` x ``w`` px.

        Args:
            h: Height in px, at least 1.
            w: Width in px, at least 1.

        Returns:
            ``(H, W)`` in px.
        """
        m = self.multiple
        return -(-max(h, self.least) // m) * m, -(-max(w, self.least) // m) * m


def padding_multiple(*multiples: int) -> int:
    """The smallest ``Padding.multiple``: a common multiple of 16 px and these, the network's own and CLIP's patch."""
    return math.lcm(16, *multiples)


def reflect_indices(n: int, size: int) -> NDArray[np.intp]:
    """Source positions of an axis of ``n`` samples continued to ``size`` by reflection without edge repeat.

    Positions run ``0 .. n-1, n-2 .. 0, 1 ..`` (reflect-101), as often as it takes; one sample is repeated.

    Args:
        n: Samples present, at least 1.
        size: Samples wanted, at least ``n``.

    Returns:
        ``(size,)`` indices into the axis.
    """
    period = max(2 * (n - 1), 1)
    index = np.arange(size, dtype=np.intp) % period
    return np.minimum(index, period - index) if n > 1 else index


def fill_reflect(planes: NDArray[np.float32], h: int, w: int) -> None:
    """Fills the padding of ``planes`` in place from the image in its top left corner (reflect-101, iterated).

    Args:
        planes: ``(..., H, W)``, of which ``[..., :h, :w]`` holds the image; the rest is overwritten.
        h: Height of the image in px, ``1 <= h <= H``.
        w: Width of the image in px, ``1 <= w <= W``.
    """
    H, W = planes.shape[-2:]
    if w < W:
        planes[..., :h, w:] = planes[..., :h, reflect_indices(w, W)[w:]]
    if h < H:
        planes[..., h:, :] = planes[..., reflect_indices(h, H)[h:], :]


def pad_reflect(planes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Pads the last two axes bottom and right to ``size`` (reflect-101, iterated).

    Args:
        planes: ``(..., h, w)``.
        size: ``(H, W)`` in px, neither smaller than the image.

    Returns:
        ``(..., H, W)``; ``planes`` itself where there is nothing to pad.
    """
    h, w = planes.shape[-2:]
    if (h, w) == size:
        return planes
    padded = np.empty((*planes.shape[:-2], *size), dtype=planes.dtype)
    padded[..., :h, :w] = planes
    fill_reflect(padded, h, w)
    return padded


@dataclass(frozen=True)
class WindowAxis:
    """The windows along one axis, in tokens of the patch grid.

    Attributes:
        grid: Tokens along the axis.
        window: Tokens of a window, at most ``grid``.
        origins: First token of each window, rising from 0 to ``grid - window``.
    """

    grid: int
    window: int
    origins: tuple[int, ...]

    @classmethod
    def spread(cls, grid: int, window: int, overlap: int) -> WindowAxis:
        """The fewest windows that cover the axis, spread evenly, sharing at least ``overlap`` tokens.

        Args:
            grid: Tokens along the axis, at least ``window``.
            window: Tokens of a window.
            overlap: Tokens that neighbours share at least, ``0 <= overlap < window``.

        Raises:
            ValueError: The sizes contradict each other.
        """
        if not 0 <= overlap < window <= grid:
            raise ValueError(
                f"expected 0 <= overlap < window <= grid, got overlap {overlap}, window {window}, grid {grid}"
            )
        count = -(-(grid - overlap) // (window - overlap))
        origins = tuple(i * (grid - window) // (count - 1) for i in range(count)) if count > 1 else (0,)
        return cls(grid, window, origins)

    def weights(self) -> NDArray[np.float32]:
        """Blend weights: a triangle over each window, normalised so that every token's weights sum to one.

        Returns:
            ``(len(origins), window)`` float32 in (0, 1].
        """
        rise = np.arange(1, self.window + 1, dtype=np.float64)
        triangle = np.minimum(rise, rise[::-1])
        total = np.zeros(self.grid)
        for origin in self.origins:
            total[origin : origin + self.window] += triangle
        return np.stack([triangle / total[o : o + self.window] for o in self.origins]).astype(np.float32)


@dataclass(frozen=True)
class WindowGrid:
    """The windows of CLIP over a padded pair.

    Attributes:
        rows: Windows along y.
        columns: Windows along x.
    """

    rows: WindowAxis
    columns: WindowAxis

    @classmethod
    def cover(cls, H: int, W: int, *, window: int, overlap: int, patch: int) -> WindowGrid:
        """Windows of ``window`` x ``window`` px over ``H`` x ``W`` px, on the patch grid.

        Args:
            H: Height in px, a multiple of ``patch``; sides shorter than ``window`` count as ``window``.
            W: Width in px, likewise.
            window: Side of a window in px, a multiple of ``patch``.
            overlap: Neighbours share at least this many px (rounded up to the patch grid).
            patch: Side of a patch in px.
        """
        g, shared = window // patch, -(-overlap // patch)
        axes = [WindowAxis.spread(max(side // patch, g), g, shared) for side in (H, W)]
        return cls(*axes)

    def __len__(self) -> int:
        return len(self.rows.origins) * len(self.columns.origins)

    def origins(self) -> list[tuple[int, int]]:
        """First token ``(y, x)`` of each window, row by row."""
        return [(y, x) for y in self.rows.origins for x in self.columns.origins]

    def blend(self, fields: NDArray[np.float32]) -> NDArray[np.float32]:
        """Blends one value per token and window into one per token, so that no seam shows.

        Args:
            fields: ``(len(self), g, g)``, in the order of ``origins``.

        Returns:
            ``(rows.grid, columns.grid)`` float32.
        """
        g = self.rows.window
        wy, wx = self.rows.weights(), self.columns.weights()
        weights = (wy[:, None, :, None] * wx[None, :, None, :]).reshape(-1, g, g)
        blended = np.zeros((self.rows.grid, self.columns.grid), dtype=np.float32)
        for (y, x), field, weight in zip(self.origins(), fields, weights, strict=True):
            blended[y : y + g, x : x + g] += weight * field
        return blended


def clip_batch(windows: int, limit: int = ENGINE_CLIP_BATCH) -> int:
    """Windows in a batch where they are run in the fewest equal batches; the last one may have a few to spare.

    Args:
        windows: Windows in all, at least 1.
        limit: The most that one batch may hold, at least 1.

    Raises:
        ValueError: A number is below 1.
    """
    if windows < 1 or limit < 1:
        raise ValueError(f"expected at least 1 window and 1 a batch, got {windows} and {limit}")
    batches = -(-windows // limit)
    return -(-windows // batches)
