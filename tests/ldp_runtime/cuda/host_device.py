"""The host as a device: host-built kernels, ONNX Runtime as the engine, and streams that really are asynchronous.

Nothing that is enqueued runs before somebody waits for it, or a seeded scheduler picks it: an event or a wait that
is missing then gives wrong numbers, and so does staging memory that is used again too early. Memory is poisoned when
it is allocated and when it is freed; every address is checked against what is allocated when it is used. With a pool,
as on a GPU, what is freed is what the next piece of its size gets: addresses come again.
"""

from __future__ import annotations

import ctypes
import random
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort

from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import EngineEntry, EngineFile, Shape, ShapeRange, clip_shapes, nearest
from ldp_runtime.chain import ChainBackend
from ldp_runtime.cuda.base import (
    ALIGNMENT,
    Device,
    Engine,
    EngineContext,
    Event,
    Graph,
    HostMemory,
    Memory,
    OutOfDeviceMemoryError,
    Stream,
)
from ldp_runtime.cuda.chain import CudaChain, EngineSource
from ldp_runtime.cuda.launch import Launch
from ldp_runtime.errors import BackendError
from ldp_runtime.tensors import TensorSpec
from tests.ldp_runtime.cuda import host_build

POISON = 0xFF  # NaN as a float, -1 as an integer
SCRATCH = 4096
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

Operation = Callable[[], None]


class HostPiece(HostMemory):
    """Device memory or pinned memory: both are the host's."""

    def __init__(self, device: HostDevice, size: int, counted: bool) -> None:
        pooled = device.pool.get((size, counted)) if device.pool is not None else None
        raw = pooled.pop() if pooled else np.full(size + ALIGNMENT, POISON, dtype=np.uint8)
        start = -host_build.address(raw) % ALIGNMENT
        self.array = raw[start : start + size]
        self.address, self.size = host_build.address(self.array), size
        device.live[self.address] = size
        device.used += size if counted else 0
        device.peak = max(device.peak, device.used)
        weakref.finalize(self, device.freed, raw, self.address, size, counted)


class HostEvent(Event):
    def __init__(self, device: HostDevice) -> None:
        self._device = device
        self.place: tuple[HostStream, int] | None = None  # of the last record: the stream and the operations before it
        self.time: float | None = None

    def sync(self) -> None:
        assert self.place is not None, "waited for an event that was never recorded"
        self._device.check_free("Event.sync")
        stream, count = self.place
        stream.run_to(count)
        self._device.shuffle()

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, HostEvent)
        assert self.time is not None and earlier.time is not None, "an event was read before it happened"
        return self.time - earlier.time


class HostCapture:
    """What is captured: operations by stream, those of each in order, and what they wait for in others."""

    def __init__(self, origin: HostStream) -> None:
        self.origin = origin
        self.operations: dict[HostStream, list[Operation]] = {origin: []}
        self.waits: dict[tuple[HostStream, int], tuple[HostStream, int]] = {}
        self.spoilt = False

    def unjoined(self) -> bool:
        """Whether a stream took part that the origin does not wait for at the end, which CUDA refuses."""
        joined = {stream: count for (at, _), (stream, count) in self.waits.items() if at is self.origin}
        others = {stream: len(ops) for stream, ops in self.operations.items() if stream is not self.origin}
        return any(count > joined.get(stream, 0) for stream, count in others.items())

    def replay(self, choose: random.Random | None) -> None:
        """Runs all: beside the first stream as late as it may, or in an order that is drawn among those that may be."""
        done = dict.fromkeys(self.operations, 0)

        def step(stream: HostStream) -> None:
            other, count = self.waits.get((stream, done[stream]), (stream, 0))
            while done[other] < count:
                step(other)
            self.operations[stream][done[stream]]()
            done[stream] += 1

        while left := [stream for stream, operations in self.operations.items() if done[stream] < len(operations)]:
            step(choose.choice(left) if choose is not None else left[0])


class HostGraph(Graph):
    def __init__(self, device: HostDevice, capture: HostCapture) -> None:
        self._device, self._capture = device, capture

    def launch(self, stream: Stream) -> None:
        assert isinstance(stream, HostStream)
        self._device.log.append("graph")
        stream.enqueue(lambda: self._capture.replay(self._device.random))


class HostStream(Stream):
    def __init__(self, device: HostDevice, handle: int) -> None:
        self.device, self.handle = device, handle
        self._operations: list[Operation] = []
        self._waits: dict[int, tuple[HostStream, int]] = {}  # operation -> what it waits for
        self.done = 0
        self.captured: HostCapture | None = None

    def enqueue(self, operation: Operation) -> None:
        if self.captured is not None:
            self.captured.operations[self].append(operation)
            return
        self._operations.append(operation)
        self.device.shuffle()

    def ready(self) -> bool:
        """Whether its next operation could run now."""
        if self.done == len(self._operations):
            return False
        stream, count = self._waits.get(self.done, (self, 0))
        return stream.done >= count

    def step(self) -> None:
        operation = self._operations[self.done]
        self._operations[self.done] = lambda: None  # what it holds may go
        self.done += 1
        operation()

    def run_to(self, count: int) -> None:
        """Runs its first ``count`` operations, and of other streams what they wait for."""
        while self.done < count:
            stream, needed = self._waits.get(self.done, (self, 0))
            if stream is not self:
                stream.run_to(needed)
            self.step()

    # --- what Stream promises

    def launch(self, launch: Launch) -> None:
        self.device.log.append(launch.kernel)
        for argument in launch.arguments:
            if argument.dtype == np.uintp and argument:
                self.device.check_address(int(argument))

        def run() -> None:
            for argument in launch.arguments:
                if argument.dtype == np.uintp and argument:
                    self.device.check_address(int(argument))
            host_build.launch(launch)

        self.enqueue(run)

    def copy(self, destination: int, source: int, size: int) -> None:
        self.device.log.append("copy")

        def run() -> None:
            self.device.check_address(destination, size)
            self.device.check_address(source, size)
            ctypes.memmove(destination, source, size)

        self.enqueue(run)

    def copy_rows(
        self, destination: int, destination_pitch: int, source: int, source_pitch: int, width: int, rows: int
    ) -> None:
        assert width <= min(destination_pitch, source_pitch)

        def run() -> None:
            for row in range(rows):
                to, of = destination + row * destination_pitch, source + row * source_pitch
                self.device.check_address(to, width)
                self.device.check_address(of, width)
                ctypes.memmove(to, of, width)

        self.enqueue(run)

    def zero(self, address: int, size: int) -> None:
        def run() -> None:
            self.device.check_address(address, size)
            ctypes.memset(address, 0, size)

        self.enqueue(run)

    def record(self, event: Event) -> None:
        assert isinstance(event, HostEvent)
        assert self.captured is None or self.captured.origin is self, "in a capture, only its stream keeps the time"

        def run() -> None:
            event.time = time.perf_counter()

        event.time = None
        self.enqueue(run)
        if self.captured is None:
            event.place = self, len(self._operations)

    def wait(self, event: Event) -> None:
        assert isinstance(event, HostEvent)
        assert self.captured is None, "a capture cannot wait for work outside it"
        assert event.place is not None, "waits for an event that was never recorded"
        self._waits[len(self._operations)] = event.place
        self.enqueue(lambda: None)

    def join(self, other: Stream) -> None:
        assert isinstance(other, HostStream)
        if other.captured is not None:
            self.captured = other.captured
            own = self.captured.operations.setdefault(self, [])
            self.captured.waits[self, len(own)] = other, len(self.captured.operations[other])
        else:
            assert self.captured is None, "a capture cannot wait for work outside it"
            self._waits[len(self._operations)] = other, len(other._operations)
        self.enqueue(lambda: None)

    def wait_for(self, handle: int) -> None:
        self.device.log.append(f"wait for {handle}")
        other = self.device.streams[handle]
        self._waits[len(self._operations)] = other, len(other._operations)
        self.enqueue(lambda: None)

    def begin_capture(self) -> None:
        if not self.device.graphs:
            raise BackendError("this device has no graphs")
        assert self.captured is None
        self.device.log.append("capture")
        self.captured = HostCapture(self)
        if self.device.spoilt:
            self.device.spoilt -= 1
            self.spoil()

    def spoil(self) -> None:
        """Makes a capture that is under way worth nothing."""
        if self.captured is not None:
            self.captured.spoilt = True

    def end_capture(self) -> Graph:
        capture = self.captured
        if capture is None or capture.origin is not self:
            raise BackendError("no capture began on this stream")
        for stream in capture.operations:
            stream.captured = None
        if capture.spoilt or capture.unjoined():
            raise BackendError("the work cannot become a graph: another call came between, or a stream was not joined")
        return HostGraph(self.device, capture)

    def sync(self) -> None:
        self.device.check_free("Stream.sync")
        self.run_to(len(self._operations))
        self.device.shuffle()


class HostDevice(Device):
    """The host as a device.

    Args:
        seed: None runs nothing before somebody waits for it; a number lets a seeded scheduler run what could.
        limit: Bytes of device memory that there are.
        graphs: Whether it can capture.
        pooled: Whether memory that is freed is used again.

    Attributes:
        log: Kernels, copies, captures and graphs, in the order in which they were enqueued.
        used: Bytes of device memory that are allocated.
        peak: The most that ever were.
        spoilt: Captures that something spoils, as another library's call does on a GPU.
    """

    def __init__(
        self, *, seed: int | None = None, limit: int | None = None, graphs: bool = True, pooled: bool = False
    ) -> None:
        self.name, self.arch = "the test's host", "sm_0"
        self.limit, self.graphs = limit, graphs
        self.log: list[str] = []
        self.live: dict[int, int] = {}
        self.used = self.peak = self.spoilt = 0
        self.pool: dict[tuple[int, bool], list[np.ndarray]] | None = {} if pooled else None
        self.streams: dict[int, HostStream] = {1: HostStream(self, 1)}  # 1: the default stream
        self.random = random.Random(seed) if seed is not None else None
        self._graveyard: list[np.ndarray] = []
        self._busy = False

    def activate(self) -> None:
        pass

    def stream(self) -> HostStream:
        handle = 100 + len(self.streams)
        self.streams[handle] = HostStream(self, handle)
        return self.streams[handle]

    def event(self) -> HostEvent:
        return HostEvent(self)

    def allocate(self, size: int, stream: Stream, freed: Stream) -> Memory:
        self.check_free("Device.allocate")
        assert isinstance(stream, HostStream) and isinstance(freed, HostStream)
        if self.limit is not None and self.used + size > self.limit:
            raise OutOfDeviceMemoryError(f"{size} bytes cannot be had: {self.used} of {self.limit} are in use")
        return HostPiece(self, size, True)

    def allocate_host(self, size: int) -> HostMemory:
        self.check_free("Device.allocate_host")
        return HostPiece(self, size, False)

    def import_dlpack(self, array: Any, stream: Stream) -> tuple[int, Shape, Shape, np.dtype[Any]]:
        view = np.from_dlpack(_OnHost(array.__dlpack__(stream=stream.handle)))
        strides = tuple(n // view.itemsize for n in view.strides)
        return host_build.address(view), view.shape, strides, view.dtype

    def export_dlpack(
        self, memory: Memory, shape: Shape, dtype: np.dtype[np.generic], options: Mapping[str, object]
    ) -> object:
        return on_device(memory, shape, dtype).__dlpack__()

    @property
    def dlpack_device(self) -> tuple[int, int]:
        return 2, 0

    # --- what the tests look at

    def freed(self, raw: np.ndarray, address: int, size: int, counted: bool) -> None:
        raw[:] = POISON
        if self.pool is not None:
            self.pool.setdefault((size, counted), []).append(raw)
        else:
            self._graveyard.append(raw)  # a late write must not hit what the test process allocates next
        if not counted:  # giving pinned memory back is a call that no capture survives
            for stream in self.streams.values():
                stream.spoil()
        del self.live[address]
        self.used -= size if counted else 0

    def check_address(self, address: int, size: int = 1) -> None:
        inside = any(start <= address and address + size <= start + n for start, n in self.live.items())
        assert inside, f"{size} bytes at {address:#x} are not allocated (any more)"

    def check_free(self, what: str) -> None:
        for stream in self.streams.values():
            assert stream.captured is None, f"{what} during a capture"

    def shuffle(self) -> None:
        """Lets the scheduler run some of what could run."""
        if self.random is None or self._busy:
            return
        self._busy = True
        try:
            while self.random.random() < 0.6:
                if ready := [stream for stream in self.streams.values() if stream.ready()]:
                    self.random.choice(ready).step()
                else:
                    break
        finally:
            self._busy = False


def on_device(memory: Memory, shape: Shape, dtype: Any) -> np.ndarray:
    """An array in the device's memory, which is the host's."""
    assert isinstance(memory, HostPiece)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return memory.array[:size].view(dtype).reshape(shape)


class _OnHost:
    """A DLPack capsule as numpy takes it."""

    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: object) -> object:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class OrtContext(EngineContext):
    """ONNX Runtime for inputs of one shape. Its scratch memory is overwritten in every run."""

    def __init__(self, engine: OrtEngine, shapes: Mapping[str, Shape]) -> None:
        self._engine, self._shapes = engine, shapes
        specs = {spec.name: spec for spec in engine.inputs}
        zeros = {name: np.zeros(shape, specs[name].dtype) for name, shape in shapes.items()}
        values = engine.session.run(None, zeros)
        self.outputs = {spec.name: v.shape for spec, v in zip(engine.outputs, values, strict=True)}
        self.scratch = SCRATCH
        self.runs = 0

    def enqueue(self, stream: Stream, addresses: Mapping[str, int], scratch: int) -> None:
        assert isinstance(stream, HostStream)
        assert scratch % ALIGNMENT == 0
        engine, device = self._engine, stream.device
        device.log.append(engine.name)
        taken = dict(addresses)

        def at(spec: TensorSpec, shape: Shape) -> np.ndarray:
            size = int(np.prod(shape)) * spec.dtype.itemsize
            device.check_address(taken[spec.name], size)
            return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(taken[spec.name])).view(spec.dtype)

        def run() -> None:
            device.check_address(scratch, SCRATCH)
            ctypes.memset(scratch, POISON, SCRATCH)
            feeds = {
                spec.name: at(spec, self._shapes[spec.name]).reshape(self._shapes[spec.name]) for spec in engine.inputs
            }
            values = engine.session.run([spec.name for spec in engine.outputs], feeds)
            for spec, value in zip(engine.outputs, values, strict=True):
                at(spec, value.shape)[:] = value.ravel()

        stream.enqueue(run)

    def capturable(self, stream: Stream) -> bool:
        return True

    def ran(self) -> None:
        self.runs += 1


class OrtEngine(Engine):
    """An ONNX graph in ONNX Runtime."""

    def __init__(self, path: Path, name: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.name = name
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = (
            tuple(TensorSpec(v.name, tuple(v.shape), np.dtype(_DTYPES[v.type])) for v in values)
            for values in (self.session.get_inputs(), self.session.get_outputs())
        )
        self.contexts: list[OrtContext] = []

    def context(self, shapes: Mapping[str, Shape]) -> EngineContext:
        self.contexts.append(OrtContext(self, shapes))
        return self.contexts[-1]


class OrtSource(EngineSource):
    """The graphs of a bundle as engines.

    Args:
        bundle: The bundle.
        precision: Of the graphs.
        deblur: ``(H, W)`` ranges, smallest and largest, of each deblur engine; one that takes any size if empty.
        folder: Where the two parts of the deblur graph go; None leaves it whole.

    Attributes:
        maps: ``Cut.maps`` of the two parts.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: str,
        deblur: list[tuple[tuple[int, int], tuple[int, int]]] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._paths = {kind: bundle.graph(kind, precision) for kind in bundle.manifest.graphs}
        self.maps: Mapping[str, tuple[int, int]] = {}
        head = None
        if folder is not None:
            from ldp_export.bundling.cut import cut_deblur  # which needs the package onnx

            parts = cut_deblur(self._paths["deblur"], bundle.manifest.padding.multiple, folder)
            assert parts is not None
            self._paths |= {"head": parts.head, "deblur": parts.tail}
            self.maps = parts.maps
            head = EngineFile("engines/head", "0" * 64, 1)
        self.entries = []
        if (clip := bundle.manifest.clip) is not None:
            s, p = clip.window, clip.patch
            least, most = (clip_shapes(batch, s, bundle.manifest.canvases) for batch in (1, 64))
            self.entries.append(_entry("clip", {name: (least[name], most[name]) for name in least}))
        for (h, w), (H, W) in deblur or [((16, 16), (8192, 8192))]:
            profile: dict[str, tuple[Shape, Shape]] = {"pair": ((1, 6, h, w), (1, 6, H, W))}
            if clip is not None:
                profile["blur_logits"] = ((1, 1, h // p, w // p), (1, 1, H // p, W // p))
            self.entries.append(msgspec.structs.replace(_entry("deblur", profile), head=head))
        self.opened: dict[str, OrtEngine] = {}

    def find(self, kind: str, shapes: dict[str, Shape]) -> EngineEntry:
        found = nearest((entry for entry in self.entries if entry.kind == kind), shapes)
        if found is None:
            raise BackendError(f"no {kind} engine takes {shapes}; build one")
        return found

    def open(self, file: EngineFile) -> Engine:
        name = file.file.removeprefix("engines/")
        if name not in self.opened:
            self.opened[name] = OrtEngine(self._paths[name], name)
        return self.opened[name]

    def fixed_sizes(self) -> list[tuple[int, int]]:
        pairs = [entry.profile["pair"] for entry in self.entries if entry.kind == "deblur"]
        return [(pair.max[2], pair.max[3]) for pair in pairs if pair.fixed]


def _entry(kind: str, profile: dict[str, tuple[Shape, Shape]]) -> EngineEntry:
    ranges = {name: ShapeRange(low, high, high) for name, (low, high) in profile.items()}
    return EngineEntry(kind, "rtx", "0", ("sm_0",), ranges, str(ranges), f"engines/{kind}", "0" * 64, 1)


class HostBackend(ChainBackend):
    """A backend whose GPU is the host."""

    def __init__(self, device: HostDevice, precision: str = "fp32", **source: Any) -> None:
        self.name = "host"
        self.device, self._precision, self._source = device, precision, source

    def available(self) -> None:
        pass

    @property
    def precisions(self) -> tuple[str, ...]:
        return (self._precision,)

    def describe(self) -> str:
        return self.device.name

    def open_chain(self, bundle: Bundle, precision: str, tile: int | str) -> CudaChain:
        source = OrtSource(bundle, self._precision, **self._source)
        return CudaChain(self.name, self.device, bundle, source, precision, tile)
