"""The chain: all stages of a frame on one stream of a device, from the pixels of a pair to those of the result.

A frame is ``prepare`` and CLIP (batch by batch), ``blur_logits``, the deblur engine (whole or tile by tile),
``blur_map`` and ``finish``. Copies from and to the host run on streams of their own, so that those of one pair
overlap with the work on another. A frame that comes again at the same addresses is captured as a CUDA graph the
second time (TensorRT wants a run before a capture) and launched as a whole from then on.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.cuda import launches
from ldp_runtime.cuda.arrays import DeviceArray, DeviceView
from ldp_runtime.cuda.base import Device, Engine, EngineContext, Event, Graph, HostMemory, Memory, Stream
from ldp_runtime.cuda.launches import Canvases, Pixels, PromptTable
from ldp_runtime.cuda.plan import Plan, nbytes
from ldp_runtime.errors import BackendError, BundleError, NumericsError

GRAPHS = 8
"""Captured graphs that a chain keeps; one more throws out the one that was not used for longest."""

_FIX_NUMERICS = "use a CPU backend with precision fp32, and if that does not help the bundle is at fault"


@dataclass(frozen=True)
class Streams:
    """The streams of a runner: the frame's own, and those of copies to and from the device."""

    compute: Stream
    upload: Stream
    download: Stream

    @classmethod
    def of(cls, device: Device) -> Streams:
        """Three new streams."""
        return cls(device.stream(), device.stream(), device.stream())

    def sync(self) -> None:
        """Waits for all of them."""
        for stream in (self.upload, self.compute, self.download):
            stream.sync()


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of a frame.

    Attributes:
        image: ``(h, w, 3)`` of the input's dtype, upright; None where the blur map alone was wanted.
        blur_map: ``(h, w)`` float32 in [0, 1].
        blur_logits: ``(H / p, W / p)`` float32, upright.
        timings: Seconds of device time by stage.
    """

    image: Any
    blur_map: Any
    blur_logits: NDArray[np.float32]
    timings: dict[str, float]


@dataclass(frozen=True)
class _Frame:
    """Every address of a frame that is not the chain's own; equal frames are one graph."""

    left: Pixels
    right: Pixels
    bad: int
    logits: int
    map: int
    image: int


class _Marks:
    """Events between the stages of a frame, always the same ones in the same order."""

    def __init__(self, device: Device, stream: Stream) -> None:
        self._device, self._stream = device, stream
        self._events: list[Event] = []
        self._stages: list[str] = []

    def restart(self) -> None:
        self._stages = []
        self._record(0)

    def end(self, stage: str) -> None:
        self._stages.append(stage)
        self._record(len(self._stages))

    def _record(self, i: int) -> None:
        if i == len(self._events):
            self._events.append(self._device.event())
        self._stream.record(self._events[i])

    def seconds(self) -> dict[str, float]:
        total: dict[str, float] = {}
        for i, stage in enumerate(self._stages):
            total[stage] = total.get(stage, 0.0) + self._events[i + 1].seconds_since(self._events[i])
        return total


class _Slot:
    """The memory of one frame in flight: staging on the host, inputs and outputs on the device.

    A resident slot is for pairs that lie on the device: it holds no pixels.
    """

    def __init__(self, device: Device, plan: Plan, stream: Stream, resident: bool) -> None:
        self.resident = resident
        self.inputs, self.outputs = plan.inputs(), plan.outputs()
        self.kept = self.outputs.offsets["map"] if resident else self.outputs.size  # bytes that go to the host
        self.device_out = device.allocate(self.kept)
        self.host_out = device.allocate_host(self.kept)
        self.device_in: Memory | None = None if resident else device.allocate(self.inputs.size)
        self.host_in: HostMemory | None = None if resident else device.allocate_host(self.inputs.size)
        self.marks = _Marks(device, stream)
        events = (device.event() for _ in range(5))
        self.upload_began, self.uploaded, self.computed, self.download_began, self.downloaded = events

    def output(self, name: str) -> int:
        return self.device_out.address + self.outputs.offsets[name]

    def host(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An output on the host, the staging memory itself."""
        start = self.outputs.offsets[name]
        array: NDArray[Any] = self.host_out.array[start : start + nbytes(shape, dtype)].view(dtype).reshape(shape)
        return array


class Pending:
    """A frame in flight."""

    def __init__(self, take: Callable[[], Outcome], discard: Callable[[], None]) -> None:
        """Made by ``Chain.submit``."""
        self._take, self._discard = take, discard
        self._over = False

    def take(self) -> Outcome:
        """Waits for the frame.

        Raises:
            NumericsError: NaN or Inf appeared.
            BackendError: The device failed.
        """
        self._over = True
        return self._take()

    def discard(self) -> None:
        """Waits for the frame if it was not taken, and forgets it."""
        if not self._over:
            self._over = True
            self._discard()


class Chain:
    """The stages for pairs of one form, with all their memory but that of the frames in flight."""

    def __init__(
        self,
        device: Device,
        streams: Streams,
        plan: Plan,
        manifest: Manifest,
        table: PromptTable,
        clip: Engine,
        deblur: Engine | None,
    ) -> None:
        """Allocates everything and makes the engines ready.

        Args:
            device: Where to run.
            streams: Its streams.
            plan: The sizes.
            manifest: That of the bundle.
            table: The bundle's prompts.
            clip: CLIP's engine.
            deblur: The deblur engine; None where the blur map alone is wanted.

        Raises:
            BundleError: The engines are not those of the pipeline.
            BackendError: The engines do not take the plan's shapes.
            OutOfDeviceMemoryError: There is not enough memory.
        """
        self.plan = plan
        self._device, self._streams, self._clip_spec, self._table = device, streams, manifest.require_clip(), table
        self._clip = clip.context(plan.clip_shapes)
        self._deblur = deblur.context(plan.deblur_shapes) if deblur is not None else None
        self._canvas_dtype, self._feature_dtype = self._check_io(clip, deblur)
        features = self._clip.outputs["center_features"][-1], self._feature_dtype
        scratch = self._deblur.scratch if self._deblur is not None else 0
        self._layout = plan.work(self._canvas_dtype, features, self._clip.scratch, scratch)
        self._work = device.allocate(self._layout.size)
        self._table_memory = self._constant(table.array)
        rows, columns = plan.tiles.rows.weights(), plan.tiles.columns.weights()
        self._weights = (self._constant(rows), self._constant(columns)) if plan.tiled else None
        self._free: list[_Slot] = []
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._capturable = True
        self._ran = False

    def submit(self, left: NDArray[Any] | DeviceView, right: NDArray[Any] | DeviceView) -> Pending:
        """Enqueues a frame.

        Args:
            left: The left view as stored, of the plan's form; on the host or, like ``right``, on the device.
            right: The right view.

        Returns:
            The frame in flight. Views on the host may be overwritten at once, views on the device when it was taken.

        Raises:
            BackendError: The device or an engine refused.
            OutOfDeviceMemoryError: There is not enough memory.
        """
        resident = isinstance(left, DeviceView)
        slot = next((slot for slot in self._free if slot.resident == resident), None)
        if slot is None:
            slot = _Slot(self._device, self.plan, self._streams.compute, resident)
        else:
            self._free.remove(slot)
        try:
            if isinstance(left, DeviceView) and isinstance(right, DeviceView):
                return self._submit_resident(slot, left, right)
            assert isinstance(left, np.ndarray)
            assert isinstance(right, np.ndarray)
            return self._submit_staged(slot, left, right)
        except BackendError:
            with contextlib.suppress(BackendError):
                self._streams.sync()  # the slot goes: nothing may be at work on it
            raise

    def _submit_staged(self, slot: _Slot, left: NDArray[Any], right: NDArray[Any]) -> Pending:
        form, streams = self.plan.form, self._streams
        assert slot.host_in is not None
        assert slot.device_in is not None
        pixels = []
        for name, source in (("left", left), ("right", right)):
            start = slot.inputs.offsets[name]
            staged = slot.host_in.array[start : start + nbytes(source.shape, form.dtype)].view(form.dtype)
            np.copyto(staged.reshape(source.shape), source)
            pixels.append(self._along_x(slot.device_in.address + start, 3 * form.size[1], 3))
        streams.upload.record(slot.upload_began)
        streams.upload.copy(slot.device_in.address, slot.host_in.address, slot.inputs.size)
        streams.upload.record(slot.uploaded)
        streams.compute.wait(slot.uploaded)
        image = slot.output("image") if form.restore else 0
        frame = _Frame(pixels[0], pixels[1], slot.output("bad"), slot.output("logits"), slot.output("map"), image)
        self._run(frame, slot)
        h, w = form.size

        def results() -> tuple[Any, Any]:
            image = slot.host("image", (h, w, 3), form.dtype).copy() if form.restore else None
            return image, slot.host("map", (h, w), np.float32).copy()

        return self._pending(slot, results, {"upload": (slot.upload_began, slot.uploaded)})

    def _submit_resident(self, slot: _Slot, left: DeviceView, right: DeviceView) -> Pending:
        form = self.plan.form
        h, w = form.size
        blur_map = DeviceArray(
            self._device, self._device.allocate(nbytes((h, w), np.float32)), (h, w), np.dtype(np.float32)
        )
        image: DeviceArray | None = None
        if form.restore:
            memory = self._device.allocate(nbytes((h, w, 3), form.dtype))
            image = DeviceArray(self._device, memory, (h, w, 3), form.dtype)
        pixels = []
        for name, view in (("left", left), ("right", right)):
            stored = view.pixels(name)
            pixels.append(self._along_x(stored.address, stored.row_stride, stored.column_stride))
        address = image.address if image is not None else 0
        frame = _Frame(pixels[0], pixels[1], slot.output("bad"), slot.output("logits"), blur_map.address, address)
        self._run(frame, slot)
        inputs = [left, right]  # alive until the frame was taken

        def results() -> tuple[Any, Any]:
            inputs.clear()
            return image, blur_map

        return self._pending(slot, results, {})

    def _pending(
        self, slot: _Slot, results: Callable[[], tuple[Any, Any]], spans: dict[str, tuple[Event, Event]]
    ) -> Pending:
        """Enqueues the copy back, and says how to take the frame."""
        streams = self._streams
        streams.compute.record(slot.computed)
        streams.download.wait(slot.computed)
        streams.download.record(slot.download_began)
        streams.download.copy(slot.host_out.address, slot.device_out.address, slot.kept)
        streams.download.record(slot.downloaded)

        def wait() -> None:
            self._device.activate()
            slot.downloaded.sync()
            if not self._ran:
                self._ran = True
                for context in (self._clip, self._deblur):
                    if context is not None:
                        context.ran()

        def take() -> Outcome:
            wait()
            try:
                logits = slot.host("logits", self.plan.tokens, np.float32).copy()
                self._check_numbers(slot)
                image, blur_map = results()
                upright = logits if self.plan.form.axis == "horizontal" else np.ascontiguousarray(logits.T)
                spans["download"] = (slot.download_began, slot.downloaded)
                seconds = {name: end.seconds_since(start) for name, (start, end) in spans.items()}
                timings = {name: seconds[name] for name in ("upload",) if name in seconds}
                timings |= slot.marks.seconds() | {"download": seconds["download"]}
                return Outcome(image, blur_map, upright, timings)
            finally:
                self._free.append(slot)

        def discard() -> None:
            wait()
            self._free.append(slot)

        return Pending(take, discard)

    def _check_numbers(self, slot: _Slot) -> None:
        logits, restored = (int(count) for count in slot.host("bad", (2,), np.int32))
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

    def _run(self, frame: _Frame, slot: _Slot) -> None:
        """Enqueues a frame: as it is the first time, captured the second, as a graph from then on."""
        stream = self._streams.compute
        graph = self._graphs.get(frame)
        if graph is None and self._capturable and frame in self._seen:
            graph = self._capture(frame, slot)
        if graph is None:
            self._seen[frame] = None
            if len(self._seen) > 4 * GRAPHS:
                self._seen.popitem(last=False)
            self._enqueue(frame, slot.marks)
            return
        self._graphs.move_to_end(frame)
        graph.launch(stream)

    def _capture(self, frame: _Frame, slot: _Slot) -> Graph | None:
        stream = self._streams.compute
        if not all(context is None or context.capturable(stream) for context in (self._clip, self._deblur)):
            self._capturable = False
            return None
        try:
            stream.begin_capture()
            try:
                self._enqueue(frame, slot.marks)
            finally:
                graph = stream.end_capture()
        except BackendError:  # frames run as they are, then
            self._capturable = False
            return None
        self._graphs[frame] = graph
        if len(self._graphs) > GRAPHS:
            self._graphs.popitem(last=False)
        return graph

    def _enqueue(self, frame: _Frame, marks: _Marks) -> None:
        plan, stream = self.plan, self._streams.compute
        marks.restart()
        stream.zero(frame.bad, 2 * 4)
        self._enqueue_clip(frame, marks)
        logits = launches.blur_logits(
            self._at("stereo_features"),
            self._at("center_features"),
            self._feature_dtype,
            self._table,
            self._table_memory.address,
            plan.windows,
            frame.logits,
            plan.tokens,
            frame.bad,
        )
        stream.launch(logits)
        marks.end("blur_logits")
        if self._deblur is not None:
            self._enqueue_deblur(frame, self._deblur, marks)
        h, w = plan.tokens
        upright = ((h, w), None) if plan.form.axis == "horizontal" else ((w, h), (1, w))
        stream.launch(
            launches.blur_map(frame.logits, upright[0], plan.patch, frame.map, plan.form.size, strides=upright[1])
        )
        if self._deblur is not None:
            stream.launch(
                launches.finish(
                    self._at("band" if plan.tiled else "restored"),
                    plan.padded,
                    self._along_x(frame.image, 3 * plan.form.size[1], 3),
                    plan.form.dtype,
                    plan.form.along_x,
                    frame.bad + 4,
                )
            )
        marks.end("finish")

    def _enqueue_clip(self, frame: _Frame, marks: _Marks) -> None:
        plan, spec = self.plan, self._clip_spec
        g, c = plan.windows.rows.window, self._table.channels
        size = np.dtype(self._feature_dtype).itemsize
        whole = launches.PairRegion(self._at("pair"), (0, 0), plan.padded) if self._reads_whole else None
        for first in plan.batches():
            canvases = Canvases(
                self._at("stereo"),
                self._at("center"),
                self._canvas_dtype,
                plan.windows,
                plan.patch,
                spec.mean,
                spec.std,
                first,
                plan.batch,
            )
            self._prepare(frame, whole, canvases)
            whole = None  # written with the first batch
            marks.end("prepare")
            addresses = {
                "stereo": self._at("stereo"),
                "center": self._at("center"),
                "stereo_features": self._at("stereo_features") + first * g * 2 * g * c * size,
                "center_features": self._at("center_features") + first * g * g * c * size,
            }
            self._clip.enqueue(self._streams.compute, addresses, self._at("clip_scratch"))
            marks.end("clip")

    def _enqueue_deblur(self, frame: _Frame, deblur: EngineContext, marks: _Marks) -> None:
        plan, stream = self.plan, self._streams.compute
        addresses = {"pair": self._at("pair"), "blur_logits": frame.logits, "restored": self._at("restored")}
        scratch = self._at("deblur_scratch")
        if self._weights is None:
            deblur.enqueue(stream, addresses, scratch)
            marks.end("deblur")
            return
        weights_y, weights_x = (memory.address for memory in self._weights)
        th, tw = plan.tiles.tile
        p, columns = plan.patch, plan.tokens[1]
        band = self._at("band")
        stream.zero(band, nbytes((3, *plan.padded), np.float32))
        addresses["blur_logits"] = self._at("tile_logits")
        for i, y in enumerate(plan.tiles.rows.origins):
            for j, x in enumerate(plan.tiles.columns.origins):
                self._prepare(frame, launches.PairRegion(self._at("pair"), (y, x), (th, tw)), None)
                marks.end("prepare")
                source = frame.logits + 4 * (y // p * columns + x // p)
                stream.copy_rows(addresses["blur_logits"], 4 * (tw // p), source, 4 * columns, 4 * (tw // p), th // p)
                deblur.enqueue(stream, addresses, scratch)
                marks.end("deblur")
                stream.launch(
                    launches.blend(
                        addresses["restored"],
                        (th, tw),
                        weights_y + 4 * th * i,
                        weights_x + 4 * tw * j,
                        band,
                        plan.padded,
                        (y, x),
                    )
                )
                marks.end("finish")

    def _prepare(self, frame: _Frame, pair: launches.PairRegion | None, canvases: Canvases | None) -> None:
        plan = self.plan
        self._streams.compute.launch(
            launches.prepare(
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

    @property
    def _reads_whole(self) -> bool:
        return self._deblur is not None and not self.plan.tiled

    def _at(self, name: str) -> int:
        return self._work.address + self._layout.offsets[name]

    def _along_x(self, address: int, row_stride: int, column_stride: int) -> Pixels:
        """An image as stored, turned so that the disparity of its pair runs along x."""
        if self.plan.form.axis == "horizontal":
            return Pixels(address, row_stride, column_stride)
        return Pixels(address, column_stride, row_stride)

    def _constant(self, array: NDArray[Any]) -> Memory:
        """A copy of an array on the device, there when this returns."""
        memory, staged = self._device.allocate(array.nbytes), self._device.allocate_host(array.nbytes)
        np.copyto(staged.array[: array.nbytes].view(array.dtype).reshape(array.shape), array)
        self._streams.compute.copy(memory.address, staged.address, array.nbytes)
        self._streams.compute.sync()
        return memory

    def _check_io(self, clip: Engine, deblur: Engine | None) -> tuple[np.dtype[Any], np.dtype[Any]]:
        """Checks the engines' inputs and outputs.

        Returns:
            The dtypes of CLIP's inputs and outputs.
        """
        fix = "export the bundle again with ldp-export onnx and build its engines again"
        floats = {np.dtype(np.float16), np.dtype(np.float32)}
        for what, specs, names in (
            ("CLIP's inputs", clip.inputs, {"stereo", "center"}),
            ("CLIP's outputs", clip.outputs, {"stereo_features", "center_features"}),
        ):
            dtypes = {spec.dtype for spec in specs}
            if {spec.name for spec in specs} != names or len(dtypes) != 1 or not dtypes <= floats:
                raise BundleError(
                    f"expected {what} {', '.join(sorted(names))}, both float16 or both float32, got "
                    f"{', '.join(map(str, specs))}; {fix}"
                )
        if deblur is not None:
            got = {spec.name for spec in deblur.inputs + deblur.outputs}
            wrong = {str(spec) for spec in deblur.inputs + deblur.outputs if spec.dtype != np.float32}
            if got != {"pair", "blur_logits", "restored"} or wrong:
                raise BundleError(
                    f"expected the deblur engine's pair, blur_logits and restored in float32, got "
                    f"{', '.join(map(str, deblur.inputs + deblur.outputs))}; {fix}"
                )
        plan, c = self.plan, self._table.channels
        g = plan.windows.rows.window
        shapes = {
            "stereo_features": (plan.batch, g, 2 * g, c),
            "center_features": (plan.batch, g, g, c),
            "restored": (1, 3, *plan.tiles.tile),
        }
        for context in (self._clip, self._deblur):
            for name, shape in context.outputs.items() if context is not None else ():
                if tuple(shape) != shapes[name]:
                    raise BundleError(f"expected {name} {shapes[name]} of its engine, got {tuple(shape)}; {fix}")
        return clip.inputs[0].dtype, clip.outputs[0].dtype
