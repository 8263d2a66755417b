"""All stages of pairs of one form on one device, from the pixels of a pair to those of its result.

A frame is ``prepare`` and CLIP (batch by batch), ``blur_logits``, the deblur engine (whole or tile by tile),
``blur_map`` and ``finish``. Copies from and to the host run on streams of their own, so that those of one pair
overlap with the work on another. A frame that comes again at the same addresses is captured as a CUDA graph the
second time (TensorRT wants a run before a capture) and launched as a whole from then on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.bundle.engines import feature_shapes
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.cuda import launches
from ldp_runtime.cuda.arrays import DeviceArray, DeviceView
from ldp_runtime.cuda.base import Engine, EngineContext, Event, Graph, HostMemory, Memory
from ldp_runtime.cuda.collecting import collecting_nothing
from ldp_runtime.cuda.engine_io import check_io
from ldp_runtime.cuda.launch import Pixels
from ldp_runtime.cuda.plan import Plan, nbytes
from ldp_runtime.cuda.preparation import Canvases, PairRegion, prepare
from ldp_runtime.cuda.prompt_table import PromptTable
from ldp_runtime.cuda.slot import Frame, Marks, Slot, Streams
from ldp_runtime.errors import BackendError, NumericsError, one_line
from ldp_runtime.result import PendingResult, Result

_FIX_NUMERICS = "use a CPU backend with precision fp32, and if that does not help the bundle is at fault"


class FrameRunner:
    """Runs pairs of one form, with all their memory but that of the frames in flight."""

    def __init__(
        self,
        streams: Streams,
        plan: Plan,
        manifest: Manifest,
        table: PromptTable | None,
        clip: Engine | None,
        deblur: Engine | None,
        lock: threading.RLock,
    ) -> None:
        """Allocates everything and makes the engines ready.

        Args:
            streams: Those of the device.
            plan: The sizes.
            manifest: The bundle's.
            table: The bundle's prompts; None where the network reads no blur map.
            clip: CLIP's engine; None where the network reads no blur map.
            deblur: The deblur engine; None where the blur map alone is wanted.
            lock: Held while the runner's own state changes, never while it waits for the device.

        Raises:
            BundleError: The engines are not those of the chain.
            BackendError: The engines do not take the plan's shapes.
            OutOfDeviceMemoryError: There is not enough memory.
        """
        self.plan = plan
        self._device, self._streams, self._clip_spec, self._table = streams.device, streams, manifest.clip, table
        self._lock = lock
        opened_clip = (clip, clip.context(plan.clip_shapes)) if clip is not None else None
        opened_deblur = (deblur, deblur.context(plan.deblur_shapes)) if deblur is not None else None
        self._canvas_dtype, self._feature_dtype = check_io(plan, table, opened_clip, opened_deblur)
        self._clip, self._deblur = (
            opened[1] if opened is not None else None for opened in (opened_clip, opened_deblur)
        )
        features = table.channels if table is not None else 0, self._feature_dtype
        scratch = [context.scratch if context is not None else 0 for context in (self._clip, self._deblur)]
        self._layout = plan.work(self._canvas_dtype, features, *scratch)
        self._work = streams.allocate(self._layout.size)
        self._staged: list[HostMemory] = []  # what constants are copied from while frames before are at work
        self._table_memory = self._constant(table.array) if table is not None else None
        rows, columns = plan.tiles.rows.weights(), plan.tiles.columns.weights()
        self._weights = (self._constant(rows), self._constant(columns)) if plan.tiled else None
        self._free: list[Slot] = []
        self._capturable = True
        self._notes: tuple[str, ...] = ()
        self._ran = False

    def submit(
        self, left: NDArray[Any] | DeviceView, right: NDArray[Any] | DeviceView, fields: dict[str, Any]
    ) -> PendingResult:
        """Enqueues a frame.

        Args:
            left: The left view as stored, of the plan's form; on the host or, like ``right``, on the device.
            right: The right view.
            fields: Further arguments of its ``Result``; ``timings`` are those before the frame.

        Returns:
            The frame in flight. Views on the host may be overwritten at once, views on the device when it is done.

        Raises:
            BackendError: The device or an engine refused.
            OutOfDeviceMemoryError: There is not enough memory.
        """
        resident = isinstance(left, DeviceView)
        slot = next((slot for slot in self._free if slot.resident == resident), None)
        if slot is None:
            slot = Slot(self.plan, self._streams, resident)
        else:
            self._free.remove(slot)
        try:
            if isinstance(left, DeviceView) and isinstance(right, DeviceView):
                return self._submit_resident(slot, left, right, fields)
            assert isinstance(left, np.ndarray)
            assert isinstance(right, np.ndarray)
            return self._submit_staged(slot, left, right, fields)
        except BaseException:
            with contextlib.suppress(BackendError):
                self._streams.sync()  # the slot goes: nothing may be at work on it
            raise

    def _submit_staged(
        self, slot: Slot, left: NDArray[Any], right: NDArray[Any], fields: dict[str, Any]
    ) -> PendingResult:
        form, streams = self.plan.form, self._streams
        assert slot.host_in is not None
        assert slot.device_in is not None
        pixels = []
        for name, source in (("left", left), ("right", right)):
            start, size = slot.inputs.offsets[name], nbytes(source.shape, form.dtype)
            staged = slot.host_in.array[start : start + size].view(form.dtype)
            np.copyto(staged.reshape(source.shape), source)
            if name == "left":
                streams.upload.record(slot.upload_began)
            address = slot.device_in.address + start
            streams.upload.copy(address, slot.host_in.address + start, size)  # goes on while the other view is staged
            pixels.append(self._along_x(address, 3 * form.size[1], 3))
        streams.upload.record(slot.uploaded)
        streams.compute.wait(slot.uploaded)
        names = ("invalid", "logits", "map", "image")
        self._run(Frame(pixels[0], pixels[1], *(slot.output(name) for name in names)), slot)
        h, w = form.size

        def results() -> tuple[Any, Any]:
            image = slot.host("image", (h, w, 3), form.dtype).copy() if form.restore else None
            blur_map = slot.host("map", (h, w), np.float32).copy() if self._table is not None else None
            return image, blur_map

        return self._pending(slot, results, {"upload": (slot.upload_began, slot.uploaded)}, fields)

    def _submit_resident(
        self, slot: Slot, left: DeviceView, right: DeviceView, fields: dict[str, Any]
    ) -> PendingResult:
        form = self.plan.form
        h, w = form.size
        blur_map = self._new_array((h, w), np.dtype(np.float32)) if self._table is not None else None
        image = self._new_array((h, w, 3), form.dtype) if form.restore else None
        pixels = []
        for name, view in (("left", left), ("right", right)):
            stored = view.pixels(name)
            pixels.append(self._along_x(stored.address, stored.row_stride, stored.column_stride))
        addresses = (array.address if array is not None else 0 for array in (blur_map, image))
        self._run(Frame(pixels[0], pixels[1], slot.output("invalid"), slot.output("logits"), *addresses), slot)
        inputs = [left, right]  # kept alive until the frame is done

        def results() -> tuple[Any, Any]:
            inputs.clear()
            return image, blur_map

        return self._pending(slot, results, {}, fields)

    def _new_array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        return DeviceArray(self._device, self._streams.allocate(nbytes(shape, dtype)), shape, dtype)

    def _pending(
        self,
        slot: Slot,
        results: Callable[[], tuple[Any, Any]],
        spans: dict[str, tuple[Event, Event]],
        fields: dict[str, Any],
    ) -> PendingResult:
        """Enqueues the copy back."""
        streams, notes = self._streams, fields["notes"] + self._notes
        streams.compute.record(slot.computed)
        streams.download.wait(slot.computed)
        streams.download.record(slot.download_began)
        streams.download.copy(slot.host_out.address, slot.device_out.address, slot.downloaded_size)
        streams.download.record(slot.downloaded)
        spans["download"] = (slot.download_began, slot.downloaded)

        def wait() -> None:
            self._device.activate()
            slot.downloaded.sync()

        def release() -> None:
            with contextlib.suppress(BackendError):
                slot.downloaded.sync()  # after Ctrl-C the device may still be at work; else this returns at once
            self._free.append(slot)  # without the lock: a result that goes unasked for may go in any thread

        def finish() -> Result:
            try:
                wait()
                self._first_run_over()
                self._check_numbers(slot)
                logits = None
                if self._table is not None:
                    logits = slot.host("logits", self.plan.tokens, np.float32)
                    logits = (logits if self.plan.form.axis == "horizontal" else logits.T).copy()
                image, blur_map = results()
                seconds = {name: end.seconds_since(start) for name, (start, end) in spans.items()}
                timings = {name: seconds[name] for name in ("upload",) if name in seconds}
                timings |= slot.marks.seconds() | {"download": seconds["download"]}
                everything = fields | {"timings": fields["timings"] | timings, "notes": notes}
                return Result(restored=image, blur_map=blur_map, blur_logits=logits, **everything)
            finally:
                release()

        def cancel() -> None:
            self._device.activate()
            release()

        return PendingResult(finish, cancel)

    def _first_run_over(self) -> None:
        with self._lock:
            if not self._ran:
                self._ran = True
                for context in (self._clip, self._deblur):
                    if context is not None:
                        context.ran()

    def _check_numbers(self, slot: Slot) -> None:
        logits, restored = (int(count) for count in slot.host("invalid", (2,), np.int32))
        if logits:
            raise NumericsError(
                f"expected finite blur logits, got NaN or Inf in {logits} of {np.prod(self.plan.tokens)}; "
                f"{_FIX_NUMERICS}"
            )
        if restored:
            raise NumericsError(
                f"expected finite numbers in the restored image, got NaN or Inf in {restored} of "
                f"{3 * np.prod(self.plan.padded)}; {_FIX_NUMERICS}"
            )

    # --- a frame

    def _run(self, frame: Frame, slot: Slot) -> None:
        """Enqueues a frame: as it is the first time, captured the second, as a graph from then on."""
        graph = slot.graphs.get(frame)
        if graph is None and self._capturable and frame in slot.seen:
            graph = self._capture(frame, slot)
        if graph is None:
            slot.note(frame)
            self._enqueue(frame, slot.marks)
            return
        slot.graphs.move_to_end(frame)
        graph.launch(self._streams.compute)

    def _capture(self, frame: Frame, slot: Slot) -> Graph | None:
        stream = self._streams.compute
        reason = "an engine cannot be captured"
        if all(context is None or context.capturable(stream) for context in (self._clip, self._deblur)):
            for _ in range(2):  # another thread may have spoilt the first
                try:
                    with collecting_nothing():
                        stream.begin_capture()
                        try:
                            self._enqueue(frame, slot.marks)
                        finally:
                            graph = stream.end_capture()
                except BackendError as error:
                    reason = one_line(error)
                else:
                    slot.keep(frame, graph)
                    return graph
        self._capturable = False
        self._notes = (f"pairs of this size run without a CUDA graph, which is slower: {reason}",)
        return None

    def _enqueue(self, frame: Frame, marks: Marks) -> None:
        plan, stream = self.plan, self._streams.compute
        marks.restart()
        stream.zero(frame.invalid, 2 * 4)
        if self._clip is not None:
            self._enqueue_blur_logits(frame, self._clip, marks)
        if self._deblur is not None:
            if plan.tiled:
                self._enqueue_tiles(frame, self._deblur, marks)
            else:
                if self._clip is None:
                    self._prepare(frame, PairRegion(self._at("pair"), (0, 0), plan.padded), None)
                    marks.end("prepare")
                self._deblur.enqueue(stream, self._deblur_addresses(frame.logits), self._at("deblur_scratch"))
                marks.end("deblur")
        if self._clip is not None:
            h, w = plan.tokens
            grid, strides = ((h, w), None) if plan.form.axis == "horizontal" else ((w, h), (1, w))
            stream.launch(launches.blur_map(frame.logits, grid, plan.patch, frame.map, plan.form.size, strides=strides))
        if self._deblur is not None and not plan.tiled:
            self._finish(frame, self._at("restored"), 0, plan.padded[0], plan.padded[0])
        marks.end("finish")

    def _enqueue_blur_logits(self, frame: Frame, clip: EngineContext, marks: Marks) -> None:
        plan, spec, table, windows = self.plan, self._clip_spec, self._table, self.plan.windows
        assert spec is not None
        assert table is not None
        assert windows is not None
        assert self._table_memory is not None
        shapes = feature_shapes(1, windows.rows.window, table.channels, plan.clip_shapes)
        inputs = {name: self._at(name) for name in plan.clip_shapes}
        outputs = {name: self._at(name) for name in shapes}
        reads_whole = self._deblur is not None and not plan.tiled
        whole = PairRegion(self._at("pair"), (0, 0), plan.padded) if reads_whole else None
        for first in plan.batches():
            canvases = Canvases(
                inputs.get("stereo", 0),
                inputs.get("center", 0),
                self._canvas_dtype,
                windows,
                plan.patch,
                spec.mean,
                spec.std,
                first,
                plan.batch,
            )
            self._prepare(frame, whole, canvases)
            whole = None  # written with the first batch
            marks.end("prepare")
            written = {name: at + first * nbytes(shapes[name], self._feature_dtype) for name, at in outputs.items()}
            clip.enqueue(self._streams.compute, inputs | written, self._at("clip_scratch"))
            marks.end("clip")
        self._streams.compute.launch(
            launches.blur_logits(
                outputs.get("stereo_features", 0),
                outputs.get("center_features", 0),
                self._feature_dtype,
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
        plan, stream = self.plan, self._streams.compute
        assert self._weights is not None
        weights_y, weights_x = (memory.address for memory in self._weights)
        rows, columns = plan.tiles.rows, plan.tiles.columns
        th, tw = plan.tiles.tile
        W = plan.padded[1]
        tile_row = self._at("tile_row")
        stream.zero(tile_row, nbytes((3, th, W), np.float32))
        addresses = self._deblur_addresses(self._at("tile_logits") if self._clip is not None else 0)
        for i, y in enumerate(rows.origins):
            for j, x in enumerate(columns.origins):
                self._prepare(frame, PairRegion(self._at("pair"), (y, x), (th, tw)), None)
                marks.end("prepare")
                if self._clip is not None:
                    p, tokens = plan.patch, plan.tokens[1]
                    source = frame.logits + 4 * (y // p * tokens + x // p)
                    stream.copy_rows(
                        addresses["blur_logits"], 4 * (tw // p), source, 4 * tokens, 4 * (tw // p), th // p
                    )
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
                self._streams.compute.copy(plane + (first - finished) * row, plane + first * row, size)
            self._streams.compute.zero(plane + (height - finished) * row, finished * row)

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
        image = self._along_x(frame.image, 3 * form.size[1], 3)
        image = Pixels(
            image.address + y * image.row_stride * form.dtype.itemsize, image.row_stride, image.column_stride
        )
        self._streams.compute.launch(
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

    def _deblur_addresses(self, logits: int) -> dict[str, int]:
        addresses = {"pair": self._at("pair"), "restored": self._at("restored")}
        return addresses if self._clip is None else addresses | {"blur_logits": logits}

    def _prepare(self, frame: Frame, pair: PairRegion | None, canvases: Canvases | None) -> None:
        plan = self.plan
        self._streams.compute.launch(
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

    # --- parts

    def _at(self, name: str) -> int:
        return self._work.address + self._layout.offsets[name]

    def _along_x(self, address: int, row_stride: int, column_stride: int) -> Pixels:
        """An image as stored, turned so that the disparity of its pair runs along x."""
        if self.plan.form.axis == "horizontal":
            return Pixels(address, row_stride, column_stride)
        return Pixels(address, column_stride, row_stride)

    def _constant(self, array: NDArray[Any]) -> Memory:
        """A copy of an array on the device, for work on the compute stream."""
        memory, staged = self._streams.allocate(array.nbytes), self._device.allocate_host(array.nbytes)
        np.copyto(staged.array[: array.nbytes].view(array.dtype).reshape(array.shape), array)
        self._streams.compute.copy(memory.address, staged.address, array.nbytes)
        self._staged.append(staged)
        return memory
