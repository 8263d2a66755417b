"""The memory, events and graphs of one frame in flight."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ldp_runtime.cuda.base import Device, Event, Graph, HostMemory, Memory, Stream
from ldp_runtime.cuda.launch import Pixels
from ldp_runtime.cuda.plan import Plan, nbytes

GRAPHS = 4
"""Captured graphs that a slot keeps; one more drops the one that was not used for longest."""


@dataclass(frozen=True)
class Streams:
    """The streams of a chain: the frame's own, one for work beside it, and those of copies to and from the device."""

    device: Device
    compute: Stream
    beside: Stream
    upload: Stream
    download: Stream

    @classmethod
    def create(cls, device: Device) -> Streams:
        """Four new streams."""
        return cls(device, device.stream(), device.stream(), device.stream(), device.stream())

    def allocate(self, size: int) -> Memory:
        """Memory for work on the compute stream; given back on that of downloads, which is never captured.

        Raises:
            OutOfDeviceMemoryError: There is not so much left.
        """
        return self.device.allocate(size, self.compute, self.download)

    def sync(self) -> None:
        """Waits for all of them."""
        for stream in (self.upload, self.compute, self.beside, self.download):
            stream.sync()


@dataclass(frozen=True)
class Frame:
    """Every address of a frame that belongs neither to the runner nor to its layout; equal frames share a graph.

    ``logits`` and ``map`` are 0 without a blur map, ``image`` is 0 where it is not wanted.
    """

    left: Pixels
    right: Pixels
    invalid: int
    logits: int
    map: int
    image: int


class Marks:
    """Events between the stages of a frame, always the same ones in the same order."""

    def __init__(self, device: Device, stream: Stream) -> None:
        """Takes the stream that the stages run on."""
        self._device, self._stream = device, stream
        self._events: list[Event] = []
        self._stages: list[str] = []

    def restart(self) -> None:
        """Begins the first stage."""
        self._stages = []
        self._record(0)

    def end(self, stage: str) -> None:
        """Ends a stage, and begins the next."""
        self._stages.append(stage)
        self._record(len(self._stages))

    def _record(self, i: int) -> None:
        if i == len(self._events):
            self._events.append(self._device.event())
        self._stream.record(self._events[i])

    def seconds(self) -> dict[str, float]:
        """Device time by stage, of a frame that is done."""
        total: dict[str, float] = {}
        for i, stage in enumerate(self._stages):
            total[stage] = total.get(stage, 0.0) + self._events[i + 1].seconds_since(self._events[i])
        return total


class Slot:
    """The memory of one frame in flight: staging on the host, inputs and outputs on the device.

    Its graphs hold its addresses and events, so they live here. A resident slot is for pairs that lie on the device:
    it holds no pixels.

    Attributes:
        resident: Whether it is for pairs on the device.
        downloaded_size: Bytes of the outputs that go to the host.
        graphs: Captured frames.
        seen: Frames that ran once as they are.
    """

    def __init__(self, plan: Plan, streams: Streams, resident: bool) -> None:
        """Allocates the memory.

        Raises:
            OutOfDeviceMemoryError: There is not enough memory.
        """
        self.resident = resident
        self.inputs, self.outputs = plan.inputs(), plan.outputs()
        on_device = [self.outputs.offsets[name] for name in ("map", "image") if name in self.outputs.offsets]
        self.downloaded_size = min(on_device) if resident and on_device else self.outputs.size
        device = streams.device
        self.device_out = streams.allocate(self.downloaded_size)
        self.host_out = device.allocate_host(self.downloaded_size)
        self.device_in: Memory | None = None if resident else streams.allocate(self.inputs.size)
        self.host_in: HostMemory | None = None if resident else device.allocate_host(self.inputs.size)
        self.marks = Marks(device, streams.compute)
        events = (device.event() for _ in range(6))
        allocated, self.upload_began, self.uploaded, self.computed, self.download_began, self.downloaded = events
        if not resident:
            streams.compute.record(allocated)
            streams.upload.wait(allocated)
        self.graphs: OrderedDict[Frame, Graph] = OrderedDict()
        self.seen: OrderedDict[Frame, None] = OrderedDict()

    def output(self, name: str) -> int:
        """Device address of an output; 0 where the plan has none of that name."""
        offset = self.outputs.offsets.get(name)
        return 0 if offset is None else self.device_out.address + offset

    def host(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An output on the host, the staging memory itself."""
        start = self.outputs.offsets[name]
        array: NDArray[Any] = self.host_out.array[start : start + nbytes(shape, dtype)].view(dtype).reshape(shape)
        return array

    def keep(self, frame: Frame, graph: Graph) -> None:
        """Keeps a graph."""
        self.graphs[frame] = graph
        if len(self.graphs) > GRAPHS:
            self.graphs.popitem(last=False)

    def note(self, frame: Frame) -> None:
        """Remembers that a frame ran."""
        self.seen[frame] = None
        if len(self.seen) > 4 * GRAPHS:
            self.seen.popitem(last=False)
