"""Which buffers a chain needs, how large they are and where they lie: all known before the first frame.

Buffers whose content is not needed at the same time share memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from ldp_runtime.bundle.engines import Shape, clip_shapes, deblur_shapes, feature_shapes
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.cuda.base import aligned
from ldp_runtime.cuda.launch import Pixels
from ldp_runtime.stages.geometry import WindowGrid, clip_batch
from ldp_runtime.stages.tiles import TileGrid

CLIP, LOGITS, HEAD, DEBLUR, FINISH = range(5)
"""The steps of a frame, in order; a buffer lives from one to another. Of tiles, each runs ``HEAD`` and ``DEBLUR``."""


@dataclass(frozen=True)
class Buffer:
    """A buffer that is asked for.

    Attributes:
        size: Bytes.
        first: The step that writes it first.
        last: The step that reads it last.
    """

    size: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether both are needed at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Layout:
    """Where buffers lie in one piece of memory.

    Attributes:
        offsets: Of each buffer in bytes, multiples of ``base.ALIGNMENT``.
        size: Bytes of the piece.
    """

    offsets: Mapping[str, int]
    size: int

    @classmethod
    def pack(cls, buffers: Mapping[str, Buffer]) -> Layout:
        """Places each buffer as low as it goes, the large ones first; those that meet do not overlap."""
        placed: dict[str, tuple[int, int]] = {}
        for name, buffer in sorted(buffers.items(), key=lambda item: (-item[1].size, item[0])):
            taken = sorted(placed[other] for other in placed if buffers[other].meets(buffer))
            start, size = 0, aligned(buffer.size)
            for low, high in taken:
                if start + size <= low:
                    break
                start = max(start, high)
            placed[name] = (start, start + size)
        size = max((high for _, high in placed.values()), default=0)
        return cls({name: low for name, (low, _) in placed.items()}, size)

    @classmethod
    def sequence(cls, sizes: Mapping[str, int]) -> Layout:
        """Places buffers one after the other, in the order given."""
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name] = end
            end += aligned(size)
        return cls(offsets, end)


@dataclass(frozen=True)
class PairForm:
    """What a chain is made for; pairs of one form share it.

    Attributes:
        size: ``(h, w)`` px of a photo as it is stored.
        dtype: uint8 or uint16.
        axis: Direction of the disparity, as for ``Deblurrer``.
        restore: Whether the restored image is wanted; else the blur map alone.
    """

    size: tuple[int, int]
    dtype: np.dtype[np.generic]
    axis: str
    restore: bool

    @property
    def along_x(self) -> tuple[int, int]:
        """``(h, w)`` of the pair turned so that its disparity runs along x."""
        h, w = self.size
        return (h, w) if self.axis == "horizontal" else (w, h)

    def pixels(self, address: int, row_stride: int, column_stride: int) -> Pixels:
        """An image as it is stored, turned so that the disparity of its pair runs along x."""
        if self.axis == "horizontal":
            return Pixels(address, row_stride, column_stride)
        return Pixels(address, column_stride, row_stride)


@dataclass(frozen=True)
class Plan:
    """The sizes of a frame.

    Attributes:
        form: What it is for.
        padded: ``(H, W)`` px of the padded pair along x.
        windows: CLIP's windows; None where the network reads no blur map.
        batch: Windows in a run of CLIP; the last run repeats windows of the one before where they do not divide.
        tiles: Tiles of the restored image; one tile is the whole.
        patch: Side of CLIP's patch in px.
        clip_shapes: Shape of each input of CLIP; empty without one.
        deblur_shapes: Shape of each input of the deblur graph.
    """

    form: PairForm
    padded: tuple[int, int]
    windows: WindowGrid | None
    batch: int
    tiles: TileGrid
    patch: int
    clip_shapes: Mapping[str, Shape]
    deblur_shapes: Mapping[str, Shape]

    @classmethod
    def create(cls, form: PairForm, manifest: Manifest, tiles: TileGrid) -> Plan:
        """The plan of a form.

        Args:
            form: What it is for.
            manifest: The bundle's.
            tiles: Tiles over the padded pair.
        """
        H, W = padded = manifest.padding.padded_size(*form.along_x)
        clip = manifest.clip
        if clip is None:
            return cls(form, padded, None, 0, tiles, 1, {}, {"pair": (1, 6, *tiles.tile)})
        windows = WindowGrid.cover(H, W, window=clip.window, overlap=clip.overlap, patch=clip.patch)
        batch = clip_batch(len(windows))
        seen = clip_shapes(batch, clip.window, manifest.canvases)
        shapes = deblur_shapes(*tiles.tile, clip.patch)
        return cls(form, padded, windows, batch, tiles, clip.patch, seen, shapes)

    @property
    def tiled(self) -> bool:
        """Whether there is more than one tile."""
        return len(self.tiles) > 1

    @property
    def tokens(self) -> tuple[int, int]:
        """``(H / p, W / p)``, the shape of the blur logits."""
        return self.padded[0] // self.patch, self.padded[1] // self.patch

    def batches(self) -> list[int]:
        """First window of each run of CLIP, all of ``batch`` windows."""
        n = len(self.windows) if self.windows is not None else 0
        return [min(first, n - self.batch) for first in range(0, n, self.batch)]

    def inputs(self) -> Layout:
        """Where the views lie, contiguous as stored."""
        view = nbytes((*self.form.size, 3), self.form.dtype)
        return Layout.sequence({"left": view, "right": view})

    def outputs(self) -> Layout:
        """Where the results lie: what is always copied to the host, then what may stay on the device."""
        h, w = self.form.size
        sizes = {"invalid": 2 * 4}
        if self.windows is not None:
            sizes |= {"logits": nbytes(self.tokens, np.float32), "map": nbytes((h, w), np.float32)}
        if self.form.restore:
            sizes["image"] = nbytes((h, w, 3), self.form.dtype)
        return Layout.sequence(sizes)

    def work(
        self,
        clip_io: DTypeLike,
        feature: tuple[int, DTypeLike],
        scratch: Mapping[str, int],
        maps: Mapping[str, int],
    ) -> Layout:
        """Where all between inputs and outputs lies.

        Args:
            clip_io: dtype of CLIP's inputs.
            feature: Length of a feature of CLIP, and its dtype.
            scratch: Bytes of scratch memory of ``"clip"``, ``"head"`` and ``"deblur"``, of those that there are.
            maps: Bytes of each map from the head of the deblur graph to the rest; empty where it is whole.
        """
        channels, features = feature
        H, W = self.tiles.tile
        buffers = {name: Buffer(nbytes(shape, clip_io), CLIP, CLIP) for name, shape in self.clip_shapes.items()}
        if self.windows is not None:
            shapes = feature_shapes(len(self.windows), self.windows.rows.window, channels, self.clip_shapes)
            buffers |= {name: Buffer(nbytes(shape, features), CLIP, LOGITS) for name, shape in shapes.items()}
            buffers["clip_scratch"] = Buffer(scratch["clip"], CLIP, CLIP)
        if self.form.restore:
            first, last = (HEAD, DEBLUR) if self.tiled else (CLIP, FINISH)
            buffers |= {
                "pair": Buffer(nbytes((6, H, W), np.float32), first, DEBLUR),
                "restored": Buffer(nbytes((3, H, W), np.float32), DEBLUR, last),
                "deblur_scratch": Buffer(scratch["deblur"], DEBLUR, DEBLUR),
            }
            if maps:  # of the whole frame, the head runs beside CLIP and the blur logits
                buffers |= {name: Buffer(size, first, DEBLUR) for name, size in maps.items()}
                buffers["head_scratch"] = Buffer(scratch["head"], first, HEAD)
        if self.form.restore and self.tiled:
            buffers["tile_row"] = Buffer(nbytes((3, H, self.padded[1]), np.float32), HEAD, FINISH)
            if self.windows is not None:
                tile_logits = nbytes(self.deblur_shapes["blur_logits"], np.float32)
                buffers["tile_logits"] = Buffer(tile_logits, HEAD, DEBLUR)
        return Layout.pack(buffers)


def nbytes(shape: Iterable[int], dtype: DTypeLike) -> int:
    """Bytes of a contiguous array."""
    return math.prod(shape) * np.dtype(dtype).itemsize
