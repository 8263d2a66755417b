"""Tiles of a pair that is too large for the deblur graph in one piece, and the weights that blend them.

Tiles lie on a grid on which the network computes what it computes in the full frame: windows of attention and cells
of pooling begin where they would. What is left is the border of a tile, where its neighbours are missing; tiles
share a halo there, and its outer part counts for nothing.

Tiles save memory, not time: networks take the same time per px in large pieces and in small ones (measured: within 15 %
from 256 to 2048 px), and tiles compute their halos twice. So a pair goes in one piece while its memory is bounded.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.errors import LDPError

TILE_HALO = 96
"""Neighbouring tiles share at least this many px on each side of a seam.

Chosen for ldp-nano on its sample: the restored image differs from that of one piece by at most 0.31 / 255, RMS
0.004 / 255 (tiles of 512 px, FP32), less than what 8 bits round away. 64 px: 1.3 and 0.021; 128 px: 0.06 and 0.001.
``python -m benchmarks scaling`` measures it.
"""

BLEND = 64
"""Px over which a tile goes over into the next, at most; what else they share is too near to a border to count."""

TILE_BYTES = 1 << 30
"""Memory of the network for a tile that is chosen here: a 102-megapixel 8-bit pair is to stay below 3 GiB in all."""

WHOLE_BYTES = 1 << 31
"""Memory of the network up to which a pair goes in one piece, where that is chosen here."""

AUTO = "auto"
OFF = "off"

_OUT_OF_MEMORY = (
    "bad_alloc",
    "out of memory",
    "allocate memory",
    "not enough memory",
    "alloc_failed",
    "resource temporarily unavailable",  # OpenVINO, when there is no room for a thread's stack
)


class TileError(LDPError):
    """A pair cannot be restored in tiles of that size."""


def check_tile(tile: int | str, multiple: int, halo: int = TILE_HALO) -> int | str:
    """Checks the size of tiles that the user asks for.

    Args:
        tile: Longest side in px, ``"auto"`` or ``"off"``.
        multiple: Tiles begin at multiples of this many px, see ``tile_multiple``.
        halo: See ``tile_halo``.

    Raises:
        TileError: It is none of these, or too short for its halos.
    """
    least = least_side(multiple, halo)
    if tile in (AUTO, OFF) or (isinstance(tile, int) and tile >= least):
        return tile
    raise TileError(f"expected tiles of {AUTO}, {OFF} or at least {least} px for this bundle, got {tile}")


def least_side(multiple: int, halo: int = TILE_HALO) -> int:
    """Tiles of at most this many px cover an axis of any length; ``multiple`` and ``halo`` as for ``even_tile``."""
    return 2 * (multiple + halo)


def tilings(
    H: int,
    W: int,
    tile: int | str,
    network: Mapping[str, Any],
    multiple: int,
    *,
    whole_first: bool = False,
    engine_sizes: Iterable[tuple[int, int, int]] = (),
) -> Iterator[TileGrid]:
    """The tiles to restore a pair in: the first choice, and after it smaller and smaller ones if that fails.

    ``"auto"`` takes one piece up to ``WHOLE_BYTES`` of memory, which is 6.7 megapixels for nano and 1.97 for small,
    and above that tiles of at most ``TILE_BYTES``; a network whose tiles differ from the whole goes in one piece as
    long as memory is free for it, and always where it resizes a tile to the size of the whole.

    Args:
        H: Height of the padded pair in px.
        W: Width of it.
        tile: Longest side in px, ``"auto"``, or ``"off"`` for one piece and nothing else.
        network: The manifest's ``network``.
        multiple: Tiles begin at multiples of this many px, see ``tile_multiple``.
        whole_first: ``"auto"`` begins with one piece whatever its size: memory that is not there is found out.
        engine_sizes: Height and width of further tiles, and the multiple that they begin at: engines for one size.
    """
    if tile == AUTO and network.get("works_at"):
        tile = OFF
    whole = TileGrid.cover(H, W, (H, W), multiple=multiple)
    cost, halo = bytes_per_pixel(network), tile_halo(network)
    least, needed = least_side(multiple, halo), H * W * cost
    asked = tile if isinstance(tile, int) else None
    fits = whole_first or needed <= WHOLE_BYTES or (not is_local(network) and needed <= free_memory())
    if tile == OFF or (tile == AUTO and fits):
        yield whole
    if tile == OFF:
        return
    side = asked or max(least, 4 * halo, math.isqrt(TILE_BYTES // cost))
    while True:
        grid = TileGrid.even(H, W, side, multiple=multiple, halo=halo)
        if grid is not None:
            yield grid
        if side == least:
            break
        side = max(least, side // 2)
    for height, width, step in engine_sizes:
        if asked is not None and max(height, width) > asked:
            continue
        rows, columns = (fit_tile(n, most, multiple=step, halo=halo) for n, most in ((H, height), (W, width)))
        if rows is not None and columns is not None:
            yield TileGrid.cover(H, W, (rows, columns), multiple=step, halo=halo)


def describe_tiles(
    tiles: TileGrid, size: tuple[int, int], network: Mapping[str, Any], reason: str | None
) -> tuple[str, ...]:
    """What the user should know of the tiles that a pair was restored in, sentences.

    Args:
        tiles: The tiles.
        size: Width and height of the pair in px.
        network: The manifest's ``network``.
        reason: Why it was not restored in the larger pieces that were tried first; None where none were.
    """
    pieces = f"{len(tiles)} blended tiles of {tiles.tile[1]} x {tiles.tile[0]} px"
    notes = []
    if reason is not None:
        notes.append(f"{reason}; a pair of {size[0]} x {size[1]} px was restored in {pieces}")
    if len(tiles) > 1 and not is_local(network):
        notes.append(f"{pieces} differ from the whole: this network pools or attends over all it sees")
    return tuple(notes)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that there was not enough memory; backends say it in words."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY):
        return True
    return error.__cause__ is not None and ran_out_of_memory(error.__cause__)  # whose words are not cut


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
    bounded = network.get("sca_cell", 0) is not None and network.get("halo", 0) is not None
    return bounded and not (attends and network.get("window", 0) is None)


def tile_halo(network: Mapping[str, Any]) -> int:
    """Px that neighbouring tiles share on each side of a seam, at least: the network's own, else ``TILE_HALO``.

    Args:
        network: The manifest's ``network``.
    """
    return int(network.get("halo") or TILE_HALO)


def free_memory() -> float:
    """Bytes of memory that programs can still have; infinite where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return math.inf
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return 1024.0 * int(found[1]) if found else math.inf


def bytes_per_pixel(network: Mapping[str, Any]) -> int:
    """Memory that a network takes for each px of what it restores at once, about.

    Measured with OpenVINO in bf16: 320 for nano, 1090 for small; ONNX Runtime in FP32 takes 385 for nano.

    Args:
        network: The manifest's ``network``, which may name the figure; one without a width is taken for nano.
    """
    if "memory" in network:
        return int(network["memory"])
    channels = int(network.get("width", 8)) / int(network.get("stem", 1)) ** 2  # of the widest scale, per px
    return 64 + round(32 * channels)


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


def even_tile(size: int, most: int, *, multiple: int, halo: int = TILE_HALO) -> int | None:
    """The shortest tile that covers an axis in as few tiles as the longest does, so that they overlap little.

    Args:
        size: The axis in px.
        most: A tile may not be longer, in px.
        multiple: Tiles begin at multiples of this many px.
        halo: Px at a seam, on each side, that neighbours share at least.

    Returns:
        The tile in px, ``size`` if that is allowed; None where none is long enough for its halos.
    """
    tile = fit_tile(size, most, multiple=multiple, halo=halo)
    if tile is None or tile == size:
        return tile
    count = len(TileAxis.spread(size, tile, multiple=multiple, halo=halo).origins)
    while (count - 1) * ((tile - multiple - 2 * halo) // multiple * multiple) >= size - tile + multiple:
        tile -= multiple
    return tile


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
                f"longer than that and two halos of {halo} px, got {tile}"
            )
        gaps = -(-steps // per_tile) if steps else 0
        origins = [steps * i // gaps * multiple for i in range(gaps + 1)] if gaps else [0]
        return cls(size, tile, tuple(origins), halo)

    def overlap(self, i: int) -> int:
        """Px that tile ``i`` shares with the one before it; 0 for the first, and for one after the last."""
        return self.origins[i - 1] + self.tile - self.origins[i] if 0 < i < len(self.origins) else 0

    @property
    def longest_overlap(self) -> int:
        """The most px that two neighbours share."""
        return max(self.overlap(i) for i in range(len(self.origins)))

    def weights(self) -> NDArray[np.float32]:
        """Blend weights: one inside, zero at a tile's border, a raised cosine over ``BLEND`` px between; normalised.

        At least half of the halo counts for nothing.

        Returns:
            ``(len(origins), tile)`` float32 in [0, 1]; over the whole axis the weights of a px sum to one.
        """
        weights = np.ones((len(self.origins), self.tile))
        for i, (here, following) in enumerate(itertools.pairwise(self.origins)):
            overlap = here + self.tile - following
            blend = min(BLEND, overlap - self.halo)
            rise = np.clip((np.arange(overlap) + 0.5 - (overlap - blend) / 2) / blend, 0, 1)
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

    @classmethod
    def even(cls, H: int, W: int, most: int, *, multiple: int, halo: int = TILE_HALO) -> TileGrid | None:
        """The fewest tiles of sides of at most ``most`` px, as small as that allows; None where that is too short.

        Args:
            H: Height of the padded pair in px.
            W: Width of it.
            most: The longest side of a tile in px.
            multiple: Tiles begin at multiples of this many px, see ``tile_multiple``.
            halo: Px at a seam, on each side, that neighbours share at least.
        """
        th, tw = (even_tile(size, most, multiple=multiple, halo=halo) for size in (H, W))
        return None if th is None or tw is None else cls.cover(H, W, (th, tw), multiple=multiple, halo=halo)
