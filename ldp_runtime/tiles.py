"""Tiles of a pair that is too large for the deblur graph in one piece, and the weights that blend them.

Tiles lie on a grid on which the network computes what it computes in the full frame: windows of attention and cells
of pooling begin where they would. What is left is the border of a tile, where its neighbours are missing; tiles
share a halo there, and its outer part counts for nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TILE_HALO = 64
"""Neighbouring tiles share at least this many px on each side of a seam."""


def tile_multiple(network: Mapping[str, Any], padding: int, patch: int) -> int:
    """The grid that tile origins lie on, in px.

    Args:
        network: The manifest's ``network``.
        padding: The manifest's ``padding.multiple`` in px.
        patch: Side of CLIP's patch in px.

    Returns:
        The smallest common multiple of the padding rule, the patch, the cells that channel attention pools over and
        the deepest attention window. A network with global attention or pooling has no such grid: its tiles differ
        from its full frame, see ``is_local``.
    """
    sides = [padding, patch]
    levels = len(network.get("encoder", ()))
    stride = int(network.get("stem", 1)) << levels  # px of one position at the deepest scale
    if (cell := network.get("sca_cell")) is not None:
        sides.append(int(cell))
    window = network.get("window")
    if window is not None:
        sides += [int(window) * (stride if place == "middle" else stride // 2) for place in network.get("bpa", ())]
    return math.lcm(*sides)


def is_local(network: Mapping[str, Any]) -> bool:
    """Whether the network sees a bounded neighbourhood of each pixel, so that tiles can agree with the full frame.

    Args:
        network: The manifest's ``network``.
    """
    attends = bool(network.get("bpa"))
    return network.get("sca_cell", 0) is not None and not (attends and network.get("window", 0) is None)


def fit_tile(size: int, most: int, *, multiple: int, halo: int = TILE_HALO) -> int | None:
    """The longest tile with which an axis can be covered by tiles of one length.

    Args:
        size: The axis in px.
        most: A tile may not be longer, in px.
        multiple: Tiles begin at multiples of this many px.
        halo: Px at a seam, on each side, that neighbours share at least.

    Returns:
        The tile in px, ``size`` if that is allowed; None where none is long enough for its halos.
    """
    if most >= size:
        return size
    tile = size - -(-(size - most) // multiple) * multiple
    return tile if tile >= multiple + 2 * halo else None


@dataclass(frozen=True)
class TileAxis:
    """The tiles along one axis.

    Attributes:
        size: The axis in px.
        tile: A tile in px, at most ``size``.
        origins: First px of each tile, rising from 0 to ``size - tile``, all of them multiples of the grid's multiple.
        halo: Px at a seam, on each side, that neighbours share at least.
    """

    size: int
    tile: int
    origins: tuple[int, ...]
    halo: int

    @classmethod
    def spread(cls, size: int, tile: int, *, multiple: int, halo: int = TILE_HALO) -> TileAxis:
        """The fewest tiles that cover the axis, spread evenly.

        Args:
            size: The axis in px.
            tile: A tile in px, at most ``size``; ``fit_tile`` finds one.
            multiple: Tiles begin at multiples of this many px.
            halo: Px at a seam, on each side, that neighbours share at least.

        Raises:
            ValueError: The tile does not end where the axis ends, or is not longer than its halos.
        """
        steps, per_tile = (size - tile) // multiple, (tile - 2 * halo) // multiple
        if tile > size or (size - tile) % multiple or (steps and per_tile < 1):
            raise ValueError(
                f"expected a tile that is shorter than the axis of {size} px by a multiple of {multiple} px, and "
                f"longer than that and two halos of {halo} px, came {tile}"
            )
        gaps = -(-steps // per_tile) if steps else 0
        origins = [steps * i // gaps * multiple for i in range(gaps + 1)] if gaps else [0]
        return cls(size, tile, tuple(origins), halo)

    def weights(self) -> NDArray[np.float32]:
        """Blend weights: one inside, zero at a seam's outer half halo, a raised cosine between; normalised.

        Returns:
            ``(len(origins), tile)`` float32 in [0, 1]; over the whole axis the weights of a px sum to one.
        """
        weights = np.ones((len(self.origins), self.tile))
        for i, (here, following) in enumerate(itertools.pairwise(self.origins)):
            overlap = here + self.tile - following
            margin = self.halo // 2
            rise = np.clip((np.arange(overlap) + 0.5 - margin) / (overlap - 2 * margin), 0, 1)
            ramp = 0.5 - 0.5 * np.cos(np.pi * rise)
            weights[i + 1, :overlap] *= ramp
            weights[i, self.tile - overlap :] *= ramp[::-1]
        total = np.zeros(self.size)
        for origin, weight in zip(self.origins, weights, strict=True):
            total[origin : origin + self.tile] += weight
        normalised = [w / total[o : o + self.tile] for o, w in zip(self.origins, weights, strict=True)]
        return np.stack(normalised).astype(np.float32)


@dataclass(frozen=True)
class TileGrid:
    """The tiles of a padded pair.

    Attributes:
        rows: Tiles along y.
        columns: Tiles along x.
    """

    rows: TileAxis
    columns: TileAxis

    @classmethod
    def cover(cls, H: int, W: int, tile: tuple[int, int], *, multiple: int, halo: int = TILE_HALO) -> TileGrid:
        """Tiles over ``H`` x ``W`` px.

        Args:
            H: Height of the padded pair in px.
            W: Width of it.
            tile: Height and width of a tile in px.
            multiple: Tiles begin at multiples of this many px, see ``tile_multiple``.
            halo: Px at a seam, on each side, that neighbours share at least.

        Raises:
            ValueError: The sizes contradict each other.
        """
        rows, columns = (
            TileAxis.spread(size, side, multiple=multiple, halo=halo) for size, side in zip((H, W), tile, strict=True)
        )
        return cls(rows, columns)

    def __len__(self) -> int:
        return len(self.rows.origins) * len(self.columns.origins)

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width of a tile in px."""
        return self.rows.tile, self.columns.tile

    def origins(self) -> list[tuple[int, int]]:
        """First px ``(y, x)`` of each tile, row by row."""
        return [(y, x) for y in self.rows.origins for x in self.columns.origins]

    def blend(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Blends tiles into the whole, so that no seam shows. The twin of what the CUDA chain does tile by tile.

        Args:
            tiles: ``(len(self), c, *self.tile)``, in the order of ``origins``.

        Returns:
            ``(c, H, W)`` float32.
        """
        th, tw = self.tile
        wy, wx = self.rows.weights(), self.columns.weights()
        whole = np.zeros((tiles.shape[1], self.rows.size, self.columns.size), dtype=np.float32)
        places = [(i, j) for i in range(len(wy)) for j in range(len(wx))]
        for (i, j), (y, x), tile in zip(places, self.origins(), tiles, strict=True):
            whole[:, y : y + th, x : x + tw] += wy[i][:, None] * wx[j] * tile
        return whole
