"""Blends tiles to the image as they come."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.stages.tiles import TileGrid


class TileBlender:
    """Blends tiles as they come, and gives out what no later tile touches: it keeps the seams, not the image."""

    def __init__(self, grid: TileGrid, channels: int = 3) -> None:
        """Takes the tiles of an image of so many channels."""
        self._grid = grid
        self._weights = grid.rows.weights(), grid.columns.weights()
        self._places = itertools.product(range(len(grid.rows.origins)), range(len(grid.columns.origins)))
        self._above = np.empty((channels, grid.rows.longest_overlap, grid.columns.size), dtype=np.float32)
        self._left = np.empty((channels, grid.rows.tile, 0), dtype=np.float32)

    def add(self, tile: NDArray[np.float32]) -> tuple[tuple[int, int], NDArray[np.float32]]:
        """Takes the next tile, in the order of ``TileGrid.origins``.

        Args:
            tile: ``(c, *grid.tile)``; overwritten.

        Returns:
            The first px ``(y, x)`` of a finished block, and the block ``(c, .., ..)``, which lies in ``tile``. Blocks
            cover the image, each px once.
        """
        rows, columns = self._grid.rows, self._grid.columns
        i, j = next(self._places)
        self._weigh(tile, i, j)
        shared_left = columns.overlap(j)
        if j:
            tile[:, :, :shared_left] += self._left
        y, x = rows.origins[i], columns.origins[j]
        shared_above = rows.overlap(i)
        # The px shared with the tile on the left have the row above in them already.
        tile[:, :shared_above, shared_left:] += self._above[:, :shared_above, x + shared_left : x + columns.tile]
        height, width = rows.tile - rows.overlap(i + 1), columns.tile - columns.overlap(j + 1)
        self._left = tile[:, :, width:].copy()
        self._above[:, : rows.overlap(i + 1), x : x + width] = tile[:, height:, :width]
        return (y, x), tile[:, :height, :width]

    def _weigh(self, tile: NDArray[np.float32], i: int, j: int) -> None:
        """Multiplies tile ``(i, j)`` by its weights, which are one where it has no neighbour."""
        rows, columns = self._grid.rows, self._grid.columns
        down, along = self._weights[0][i], self._weights[1][j]
        top, left = rows.overlap(i), columns.overlap(j)
        bottom = max(top, rows.tile - rows.overlap(i + 1))
        right = max(left, columns.tile - columns.overlap(j + 1))
        for band in (slice(top), slice(bottom, None)):
            tile[:, band] *= down[band, None] * along
        for band in (slice(left), slice(right, None)):
            tile[:, top:bottom, band] *= along[band]
