"""What a device and an engine promise: the seam below the chain. ``device.py`` keeps it with CUDA.

The chain is written over these classes alone, so that the tests run the very same chain on the host.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.bundle.engines import Shape
from ldp_runtime.cuda.launch import Launch
from ldp_runtime.errors import BackendError
from ldp_runtime.tensors import TensorSpec

ALIGNMENT = 256
"""Bytes that every buffer begins at a multiple of; TensorRT wants it of its scratch memory."""


class OutOfDeviceMemoryError(BackendError):
    """The device has not enough free memory."""


class Memory(ABC):
    """A piece of memory, given back when nobody holds it any more.

    Attributes:
        address: Where it begins, a multiple of ``ALIGNMENT``.
        size: Its bytes.
    """

    address: int
    size: int


class HostMemory(Memory):
    """Pinned memory of the host, which the device copies from and to while the host goes on.

    Attributes:
        array: ``(size,)`` uint8, the memory itself.
    """

    array: NDArray[np.uint8]


class Event(ABC):
    """A mark in a stream that others can wait for."""

    @abstractmethod
    def sync(self) -> None:
        """Returns when the stream has passed the mark.

        Raises:
            BackendError: The device failed before it got there.
        """

    @abstractmethod
    def seconds_since(self, earlier: Event) -> float:
        """Device time between two marks that are both passed."""


class Graph(ABC):
    """Work that was captured from a stream, to be run again as one."""

    @abstractmethod
    def launch(self, stream: Stream) -> None:
        """Enqueues the whole of it.

        Raises:
            BackendError: The device refused.
        """


class Stream(ABC):
    """A queue of work for the device. What is enqueued runs in order; the host goes on at once.

    Every method but ``sync`` may raise ``BackendError`` when the device refuses the work.

    Attributes:
        handle: What other libraries know the stream by.
    """

    handle: int

    @abstractmethod
    def launch(self, launch: Launch) -> None:
        """Enqueues a kernel."""

    @abstractmethod
    def copy(self, destination: int, source: int, size: int) -> None:
        """Enqueues a copy of ``size`` bytes between any two addresses."""

    @abstractmethod
    def copy_rows(
        self, destination: int, destination_pitch: int, source: int, source_pitch: int, width: int, rows: int
    ) -> None:
        """Enqueues a copy of ``rows`` rows of ``width`` bytes on the device; pitches are bytes from row to row."""

    @abstractmethod
    def zero(self, address: int, size: int) -> None:
        """Enqueues setting ``size`` bytes to zero."""

    @abstractmethod
    def record(self, event: Event) -> None:
        """Enqueues a mark. In a capture that began here it becomes part of the graph: each launch marks anew."""

    @abstractmethod
    def wait(self, event: Event) -> None:
        """Makes what is enqueued from now on wait for a mark of another stream."""

    @abstractmethod
    def join(self, other: Stream) -> None:
        """Makes what is enqueued from now on wait for what another stream holds; its capture takes this one in."""

    @abstractmethod
    def wait_for(self, handle: int) -> None:
        """Makes what is enqueued from now on wait for what another library's stream holds now."""

    @abstractmethod
    def begin_capture(self) -> None:
        """From now on work is not run but kept for a graph, until ``end_capture``."""

    @abstractmethod
    def end_capture(self) -> Graph:
        """Ends a capture, even a failed one.

        Raises:
            BackendError: What was enqueued cannot be a graph.
        """

    @abstractmethod
    def sync(self) -> None:
        """Returns when all that was enqueued is done.

        Raises:
            BackendError: The device failed.
        """


class Device(ABC):
    """A GPU, or what stands for one.

    Attributes:
        name: For people.
        arch: Its architecture, such as ``"sm_89"``.
    """

    name: str
    arch: str

    @abstractmethod
    def activate(self) -> None:
        """Makes the device that of the calling thread. To be called first in every thread."""

    @abstractmethod
    def stream(self) -> Stream:
        """A new stream."""

    @abstractmethod
    def event(self) -> Event:
        """A new event, which keeps the time."""

    @abstractmethod
    def allocate(self, size: int, stream: Stream, freed: Stream) -> Memory:
        """Memory of the device, of unknown content. No stream is waited for.

        Args:
            size: Bytes.
            stream: Whose work may use it from now on; that of another stream has to wait for what is here now.
            freed: Where it is given back, after what is there then; a stream that is never captured.

        Raises:
            OutOfDeviceMemoryError: There is not so much left.
        """

    @abstractmethod
    def allocate_host(self, size: int) -> HostMemory:
        """Pinned memory of the host, of unknown content.

        Raises:
            OutOfDeviceMemoryError: There is not so much left.
        """

    @abstractmethod
    def import_dlpack(self, array: object, stream: Stream) -> tuple[int, Shape, Shape, np.dtype[np.generic]]:
        """Looks at another library's device array through DLPack; ``stream`` waits until it is written.

        Returns:
            Its address, shape, strides in elements, and dtype.

        Raises:
            BufferError: The library does not let go of it.
            TypeError: NumPy has no such dtype, as of 8-bit floats.
        """

    @abstractmethod
    def export_dlpack(
        self, memory: Memory, shape: Shape, dtype: np.dtype[np.generic], options: Mapping[str, object]
    ) -> object:
        """A DLPack capsule of a contiguous array in ``memory``, which it keeps alive.

        Args:
            memory: The memory.
            shape: Of the array.
            dtype: Of the array.
            options: Arguments of ``__dlpack__``.
        """

    @property
    @abstractmethod
    def dlpack_device(self) -> tuple[int, int]:
        """What ``__dlpack_device__`` of its arrays says."""


class EngineContext(ABC):
    """An engine made ready for inputs of one shape.

    Attributes:
        outputs: Shape of each output.
        scratch: Bytes of device memory that a run needs besides its inputs and outputs.
    """

    outputs: Mapping[str, Shape]
    scratch: int

    @abstractmethod
    def enqueue(self, stream: Stream, addresses: Mapping[str, int], scratch: int) -> None:
        """Enqueues a run.

        Args:
            stream: Where.
            addresses: Of each input and output, contiguous.
            scratch: Address of the scratch memory.

        Raises:
            BackendError: The engine failed.
        """

    @abstractmethod
    def capturable(self, stream: Stream) -> bool:
        """Whether a run on this stream may become part of a graph."""

    @abstractmethod
    def ran(self) -> None:
        """Tells that a first run is over: what it compiled may be kept on disk."""


class Engine(ABC):
    """A graph that was compiled for the device.

    Attributes:
        inputs: What it takes.
        outputs: What it gives.
        channels_last: Names of those whose channels lie side by side in memory, whatever their shape says.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    channels_last: frozenset[str] = frozenset()

    @abstractmethod
    def context(self, shapes: Mapping[str, Shape]) -> EngineContext:
        """Makes the engine ready for inputs of these shapes.

        Raises:
            BackendError: It does not take them.
            OutOfDeviceMemoryError: There is not enough memory.
        """


def aligned(size: int) -> int:
    """``size`` rounded up to a multiple of ``ALIGNMENT``."""
    return -(-size // ALIGNMENT) * ALIGNMENT
