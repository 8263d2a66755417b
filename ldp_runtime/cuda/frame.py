"""Frames in flight: pairs of one form on one device, from the pixels of a pair to those of its result.

Copies from and to the host run on streams of their own, so that those of one pair overlap with the work on another. A
frame that comes again at the same addresses is captured as a CUDA graph the second time (TensorRT wants a run before a
capture) and launched as a whole from then on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.cuda.arrays import DeviceArray, DeviceView
from ldp_runtime.cuda.base import Event, Graph
from ldp_runtime.cuda.collecting import collecting_nothing
from ldp_runtime.cuda.frame_stages import FrameStages
from ldp_runtime.cuda.plan import nbytes
from ldp_runtime.cuda.slot import Frame, Slot, Streams
from ldp_runtime.errors import BackendError, NumericsError, one_line
from ldp_runtime.result import PendingResult, Result

_FIX_NUMERICS = "use a CPU backend with precision fp32, and if that does not help the bundle is at fault"


class FrameRunner:
    """Runs pairs of one form, with the slots of their frames in flight.

    Attributes:
        plan: The sizes.
    """

    def __init__(self, streams: Streams, stages: FrameStages, lock: threading.RLock) -> None:
        """Takes what enqueues a frame.

        Args:
            streams: Those of the device.
            stages: All between the inputs and outputs of a frame.
            lock: Held while the runner's own state changes, never while it waits for the device.
        """
        self.plan = stages.plan
        self._device, self._streams, self._stages, self._lock = streams.device, streams, stages, lock
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
            pixels.append(form.pixels(address, 3 * form.size[1], 3))
        streams.upload.record(slot.uploaded)
        streams.compute.wait(slot.uploaded)
        names = ("invalid", "logits", "map", "image")
        self._run(Frame(pixels[0], pixels[1], *(slot.output(name) for name in names)), slot)
        h, w = form.size

        def results() -> tuple[Any, Any]:
            image = slot.host("image", (h, w, 3), form.dtype).copy() if form.restore else None
            blur_map = slot.host("map", (h, w), np.float32).copy() if self._stages.table is not None else None
            return image, blur_map

        return self._pending(slot, results, {"upload": (slot.upload_began, slot.uploaded)}, fields)

    def _submit_resident(
        self, slot: Slot, left: DeviceView, right: DeviceView, fields: dict[str, Any]
    ) -> PendingResult:
        form = self.plan.form
        h, w = form.size
        blur_map = self._new_array((h, w), np.dtype(np.float32)) if self._stages.table is not None else None
        image = self._new_array((h, w, 3), form.dtype) if form.restore else None
        pixels = []
        for name, view in (("left", left), ("right", right)):
            stored = view.pixels(name)
            pixels.append(form.pixels(stored.address, stored.row_stride, stored.column_stride))
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
                if self._stages.table is not None:
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
                self._stages.engines.ran()

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

    def _run(self, frame: Frame, slot: Slot) -> None:
        """Enqueues a frame: as it is the first time, captured the second, as a graph from then on."""
        graph = slot.graphs.get(frame)
        if graph is None and self._capturable and frame in slot.seen:
            graph = self._capture(frame, slot)
        if graph is None:
            slot.note(frame)
            self._stages.enqueue(frame, slot.marks)
            return
        slot.graphs.move_to_end(frame)
        graph.launch(self._streams.compute)

    def _capture(self, frame: Frame, slot: Slot) -> Graph | None:
        stream = self._streams.compute
        reason = "an engine cannot be captured"
        if self._stages.engines.capturable(self._streams):
            for _ in range(2):  # another thread may have spoilt the first
                try:
                    with collecting_nothing():
                        try:
                            stream.begin_capture()
                            self._stages.enqueue(frame, slot.marks)
                        except BaseException:
                            with contextlib.suppress(BackendError):  # which says less: a stream was not joined
                                stream.end_capture()
                            raise
                        graph = stream.end_capture()
                except BackendError as error:
                    reason = one_line(error)
                else:
                    slot.keep(frame, graph)
                    return graph
        self._capturable = False
        self._notes = (f"pairs of this size run without a CUDA graph, which is slower: {reason}",)
        return None
