"""The stages of a frame on the compute stream, and the memory between them.

A frame is ``prepare`` and CLIP (batch by batch), ``blur_logits``, the deblur engine (whole or tile by tile),
``blur_map`` and ``finish``. Where the deblur engine has a head, which needs no blur map, and there is one tile, the
head runs on a stream beside CLIP: CLIP is bound by arithmetic and the head by memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.bundle.engines import feature_shapes
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.cuda import launches
from ldp_runtime.cuda.base import Engine, EngineContext, HostMemory, Memory, Stream
from ldp_runtime.cuda.engine_io import ReadyEngines
from ldp_runtime.cuda.launch import Pixels
from ldp_runtime.cuda.plan import Plan, nbytes
from ldp_runtime.cuda.preparation import Canvases, PairRegion, prepare
from ldp_runtime.cuda.prompt_table import PromptTable
from ldp_runtime.cuda.slot import Frame, Marks, Streams


class FrameStages:
    """Enqueues pairs of one form; holds all their memory but that of the frames in flight.

    Attributes:
        plan: The sizes.
        table: The bundle's prompts; None where the network reads no blur map.
        engines: The engines, ready for the plan's shapes.
        layout: Where all between inputs and outputs lies.
    """

    def __init__(
        self,
        streams: Streams,
        plan: Plan,
        manifest: Manifest,
        table: PromptTable | None,
        clip: Engine | None,
        deblur: Sequence[Engine],
    ) -> None:
        """Allocates everything and makes the engines ready.

        Args:
            streams: Those of the device.
            plan: The sizes.
            manifest: The bundle's.
            table: The bundle's prompts; None where the network reads no blur map.
            clip: CLIP's engine; None where the network reads no blur map.
            deblur: The deblur engine, or its head and the rest; none where the blur map alone is wanted.

        Raises:
            BundleError: The engines are not those of the chain.
            BackendError: The engines do not take the plan's shapes.
            OutOfDeviceMemoryError: There is not enough memory.
        """
        self.plan, self.table = plan, table
        self._streams, self._stream, self._clip_spec = streams, streams.compute, manifest.clip
        self.engines = ReadyEngines.open(plan, table, clip, deblur)
        features = table.channels if table is not None else 0, self.engines.feature_dtype
        self.layout = plan.work(self.engines.canvas_dtype, features, self.engines.scratch, self.engines.maps)
        self._work = streams.allocate(self.layout.size)
        self._staged: list[HostMemory] = []  # what constants are copied from while frames before are at work
        self._table_memory = self._constant(table.array) if table is not None else None
        rows, columns = plan.tiles.rows.weights(), plan.tiles.columns.weights()
        self._weights = (self._constant(rows), self._constant(columns)) if plan.tiled else None

    def enqueue(self, frame: Frame, marks: Marks) -> None:
        """Enqueues a frame; ``marks`` are set between its stages."""
        plan, stream = self.plan, self._stream
        marks.restart()
        stream.zero(frame.invalid, 2 * 4)
        engines = self.engines
        if engines.clip is not None:
            self._enqueue_blur_logits(frame, engines.clip, marks)
        if engines.deblur is not None:
            if plan.tiled:
                self._enqueue_tiles(frame, engines.deblur, marks)
            else:
                if engines.clip is None:
                    self._prepare(frame, PairRegion(self._at("pair"), (0, 0), plan.padded), None)
                    marks.end("prepare")
                if engines.head is not None:
                    stream.join(self._streams.beside)
                engines.deblur.enqueue(stream, self._deblur_addresses(frame.logits), self._at("deblur_scratch"))
                marks.end("deblur")
        if engines.clip is not None:
            h, w = plan.tokens
            grid, strides = ((h, w), None) if plan.form.axis == "horizontal" else ((w, h), (1, w))
            stream.launch(launches.blur_map(frame.logits, grid, plan.patch, frame.map, plan.form.size, strides=strides))
        if engines.deblur is not None and not plan.tiled:
            self._finish(frame, self._at("restored"), 0, plan.padded[0], plan.padded[0])
        marks.end("finish")

    def _enqueue_blur_logits(self, frame: Frame, clip: EngineContext, marks: Marks) -> None:
        plan, spec, table, windows = self.plan, self._clip_spec, self.table, self.plan.windows
        assert spec is not None
        assert table is not None
        assert windows is not None
        assert self._table_memory is not None
        shapes = feature_shapes(1, windows.rows.window, table.channels, plan.clip_shapes)
        inputs = {name: self._at(name) for name in plan.clip_shapes}
        outputs = {name: self._at(name) for name in shapes}
        reads_whole = self.engines.deblur is not None and not plan.tiled
        whole = PairRegion(self._at("pair"), (0, 0), plan.padded) if reads_whole else None
        for first in plan.batches():
            canvases = Canvases(
                inputs.get("stereo", 0),
                inputs.get("center", 0),
                self.engines.canvas_dtype,
                windows,
                plan.patch,
                spec.mean,
                spec.std,
                first,
                plan.batch,
            )
            self._prepare(frame, whole, canvases)
            marks.end("prepare")
            if whole is not None and self.engines.head is not None:
                self._streams.beside.join(self._stream)
                self._enqueue_head(self.engines.head, self._streams.beside)
            whole = None  # written with the first batch
            written = {
                name: at + first * nbytes(shapes[name], self.engines.feature_dtype) for name, at in outputs.items()
            }
            clip.enqueue(self._stream, inputs | written, self._at("clip_scratch"))
            marks.end("clip")
        self._stream.launch(
            launches.blur_logits(
                outputs.get("stereo_features", 0),
                outputs.get("center_features", 0),
                self.engines.feature_dtype,
                table,
                self._table_memory.address,
                windows,
                frame.logits,
                plan.tokens,
                frame.invalid,
            )
        )
        marks.end("blur_logits")

    def _enqueue_tiles(self, frame: Frame, deblur: EngineContext, marks: Marks) -> None:
        """Restores tile by tile. One row of tiles is kept at a time: what the next one shares moves to its top."""
        plan, stream = self.plan, self._stream
        assert self._weights is not None
        weights_y, weights_x = (memory.address for memory in self._weights)
        rows, columns = plan.tiles.rows, plan.tiles.columns
        th, tw = plan.tiles.tile
        W = plan.padded[1]
        tile_row = self._at("tile_row")
        stream.zero(tile_row, nbytes((3, th, W), np.float32))
        addresses = self._deblur_addresses(self._at("tile_logits") if self.engines.clip is not None else 0)
        for i, y in enumerate(rows.origins):
            for j, x in enumerate(columns.origins):
                self._prepare(frame, PairRegion(self._at("pair"), (y, x), (th, tw)), None)
                marks.end("prepare")
                if self.engines.clip is not None:
                    p, tokens = plan.patch, plan.tokens[1]
                    source = frame.logits + 4 * (y // p * tokens + x // p)
                    stream.copy_rows(
                        addresses["blur_logits"], 4 * (tw // p), source, 4 * tokens, 4 * (tw // p), th // p
                    )
                if self.engines.head is not None:
                    self._enqueue_head(self.engines.head, stream)
                deblur.enqueue(stream, addresses, self._at("deblur_scratch"))
                marks.end("deblur")
                weight_y, weight_x = weights_y + 4 * th * i, weights_x + 4 * tw * j
                stream.launch(
                    launches.blend(addresses["restored"], (th, tw), weight_y, weight_x, tile_row, (th, W), (0, x))
                )
                marks.end("finish")
            shared = rows.overlap(i + 1)
            self._finish(frame, tile_row, y, th - shared, th)
            if shared:
                self._move_up(tile_row, th, th - shared)
            marks.end("finish")

    def _move_up(self, tile_row: int, height: int, finished: int) -> None:
        """Moves the rows below the ``finished`` ones to the top of each plane, and zeroes what follows them."""
        row = 4 * self.plan.padded[1]
        for plane in range(tile_row, tile_row + 3 * height * row, height * row):
            for first in range(finished, height, finished):  # no piece overlaps the place that it goes to
                size = min(finished, height - first) * row
                self._stream.copy(plane + (first - finished) * row, plane + first * row, size)
            self._stream.zero(plane + (height - finished) * row, finished * row)

    def _finish(self, frame: Frame, restored: int, y: int, rows: int, plane_rows: int) -> None:
        """Writes some rows of the image.

        Args:
            frame: The frame.
            restored: Address of the first of the rows of ``(3, plane_rows, W)`` float32.
            y: That row in the padded pair.
            rows: Their number; those beyond the image are only checked.
            plane_rows: Rows of a plane.
        """
        form, W = self.plan.form, self.plan.padded[1]
        h, w = form.along_x
        image = form.pixels(frame.image, 3 * form.size[1], 3)
        image = Pixels(
            image.address + y * image.row_stride * form.dtype.itemsize, image.row_stride, image.column_stride
        )
        self._stream.launch(
            launches.finish(
                restored,
                (rows, W),
                image,
                form.dtype,
                (min(rows, h - y), w),
                frame.invalid + 4,
                plane=plane_rows * W,
            )
        )

    def _enqueue_head(self, head: EngineContext, stream: Stream) -> None:
        head.enqueue(stream, {name: self._at(name) for name in ("pair", *self.engines.maps)}, self._at("head_scratch"))

    def _deblur_addresses(self, logits: int) -> dict[str, int]:
        addresses = {name: self._at(name) for name in ("pair", *self.engines.maps, "restored")}
        return addresses if self.engines.clip is None else addresses | {"blur_logits": logits}

    def _prepare(self, frame: Frame, pair: PairRegion | None, canvases: Canvases | None) -> None:
        plan = self.plan
        self._stream.launch(
            prepare(
                frame.left,
                frame.right,
                plan.form.dtype,
                plan.form.along_x,
                plan.padded,
                pair=pair,
                canvases=canvases,
            )
        )

    def _at(self, name: str) -> int:
        return self._work.address + self.layout.offsets[name]

    def _constant(self, array: NDArray[Any]) -> Memory:
        """A copy of an array on the device, for work on the compute stream."""
        memory, staged = self._streams.allocate(array.nbytes), self._streams.device.allocate_host(array.nbytes)
        np.copyto(staged.array[: array.nbytes].view(array.dtype).reshape(array.shape), array)
        self._stream.copy(memory.address, staged.address, array.nbytes)
        self._staged.append(staged)
        return memory
