"""A CUDA device through ``cuda.core``: what ``base`` promises, kept with NVIDIA's driver.

Without a driver or a GPU this module imports, and ``open_device`` says what is missing.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from ldp_runtime.bundle.engines import Shape
from ldp_runtime.cuda.base import Device, Event, Graph, HostMemory, Memory, OutOfDeviceMemoryError, Stream
from ldp_runtime.cuda.launch import Launch
from ldp_runtime.errors import BackendError, one_line

_DLPACK_CUDA = 2  # kDLCUDA
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_LEAST_CUDA = 13000  # of cuDriverGetVersion: the packages are those of CUDA 13


class NoGpuError(BackendError):
    """There is no NVIDIA GPU to use here, or nothing installed to use it with."""


@functools.cache
def open_device() -> CudaDevice:
    """The first GPU of those that ``CUDA_VISIBLE_DEVICES`` shows.

    Raises:
        NoGpuError: No cuda-core, no driver or no GPU.
        BackendError: The driver is too old, or the GPU cannot be used.
    """
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.core") is None:
        raise NoGpuError("CUDA needs the package cuda-core, which is not installed; install ldp[cuda]")
    _load_driver()
    from cuda.core import Device as CoreDevice

    try:
        devices = CoreDevice.get_all_devices()
    except Exception as error:  # no driver: a RuntimeError of cuda.pathfinder; no device: cuda.core's own
        raise NoGpuError(
            f"CUDA needs an NVIDIA driver and a GPU, which do not answer ({one_line(error)}); install the driver, or "
            "choose a CPU backend"
        ) from error
    if not devices:
        raise NoGpuError("expected an NVIDIA GPU, got none; check CUDA_VISIBLE_DEVICES")
    with _translated("the GPU cannot be opened"):
        return CudaDevice(devices[0])


def _load_driver() -> None:
    """Loads NVIDIA's driver: where there is none, that is instant, while importing cuda.core takes half a second.

    Raises:
        NoGpuError: There is none.
        BackendError: It is older than the CUDA packages.
    """
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise NoGpuError(
            f"CUDA needs an NVIDIA driver, which does not load ({one_line(error)}); install the driver, or choose a "
            "CPU backend"
        ) from error
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    if version.value < _LEAST_CUDA:
        raise BackendError(
            f"expected an NVIDIA driver for CUDA {_LEAST_CUDA // 1000}, release 580 or newer, got one for CUDA "
            f"{version.value // 1000}.{version.value % 1000 // 10}; update the driver, or choose a CPU backend"
        )


class CudaDevice(Device):
    """A GPU; it runs in CUDA's primary context, which CuPy and torch share."""

    def __init__(self, device: Any) -> None:
        """Takes a ``cuda.core.Device`` and makes it the calling thread's."""
        self._device = device
        device.set_current()
        self.name = str(device.name)
        self.arch = f"sm_{device.arch}"
        self._kernels: dict[str, Any] = {}
        self._module: Any = None

    def activate(self) -> None:
        """See ``Device``."""
        with _translated("the GPU cannot be used"):
            self._device.set_current()

    def stream(self) -> CudaStream:
        """See ``Device``."""
        with _translated("a stream cannot be made"):
            return CudaStream(self, self._device.create_stream())

    def event(self) -> CudaEvent:
        """See ``Device``."""
        with _translated("an event cannot be made"):
            return CudaEvent(self._device.create_event({"timing_enabled": True}))

    def allocate(self, size: int, stream: Stream, freed: Stream) -> Memory:
        """See ``Device``."""
        assert isinstance(stream, CudaStream)
        assert isinstance(freed, CudaStream)
        with _translated(f"{size} bytes of GPU memory cannot be had"):
            buffer = self._device.allocate(size, stream=stream.stream)
            buffer.set_deallocation_stream(freed.stream)
            return CudaMemory(buffer)

    def allocate_host(self, size: int) -> HostMemory:
        """See ``Device``."""
        from cuda.core import LegacyPinnedMemoryResource

        with _translated(f"{size} bytes of pinned memory cannot be had"):
            return CudaHostMemory(LegacyPinnedMemoryResource().allocate(size))

    def kernel(self, name: str) -> Any:
        """A kernel by its name; the first one compiles them all, or takes them from the cache.

        Raises:
            BackendError: The compiler failed.
        """
        if name not in self._kernels:
            from cuda.core import ObjectCode

            from ldp_runtime.cuda.compile import compile_kernels

            with _translated(f"the kernel {name} cannot be loaded"):
                if self._module is None:
                    self._module = ObjectCode.from_cubin(compile_kernels(self.arch))
                self._kernels[name] = self._module.get_kernel(name)
        return self._kernels[name]

    def import_dlpack(self, array: object, stream: Stream) -> tuple[int, Shape, Shape, np.dtype[Any]]:
        """See ``Device``."""
        from cuda.core.utils import StridedMemoryView

        view = StridedMemoryView.from_dlpack(array, stream_ptr=stream.handle)
        if view.device_id != self._device.device_id:
            raise BufferError(f"it lies on device {view.device_id}, not on {self._device.device_id}")
        shape = tuple(view.shape)
        strides = view.strides
        if strides is None:
            strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        return int(view.ptr), shape, tuple(strides), np.dtype(view.dtype)

    def export_dlpack(
        self, memory: Memory, shape: Shape, dtype: np.dtype[np.generic], options: Mapping[str, object]
    ) -> object:
        """See ``Device``."""
        from cuda.core.utils import StridedMemoryView

        assert isinstance(memory, CudaMemory)
        return StridedMemoryView.from_buffer(memory.buffer, shape, dtype=dtype).__dlpack__(**options)

    @property
    def dlpack_device(self) -> tuple[int, int]:
        """See ``Device``."""
        return _DLPACK_CUDA, int(self._device.device_id)


class CudaMemory(Memory):
    """Memory of the GPU."""

    def __init__(self, buffer: Any) -> None:
        """Takes a ``cuda.core.Buffer``, which gives its memory back when it goes."""
        self.buffer = buffer
        self.address, self.size = int(buffer.handle), int(buffer.size)


class CudaHostMemory(HostMemory):
    """Pinned memory."""

    def __init__(self, buffer: Any) -> None:
        """Takes a ``cuda.core.Buffer`` that the host can access."""
        self._buffer = buffer
        self.address, self.size = int(buffer.handle), int(buffer.size)
        self.array = np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.address))


class CudaEvent(Event):
    """An event."""

    def __init__(self, event: Any) -> None:
        """Takes a ``cuda.core.Event``."""
        self.event = event

    def sync(self) -> None:
        """See ``Event``."""
        with _translated("the GPU failed"):
            self.event.sync()

    def seconds_since(self, earlier: Event) -> float:
        """See ``Event``."""
        assert isinstance(earlier, CudaEvent)
        with _translated("the GPU's time cannot be read"):
            return float(self.event - earlier.event) / 1e3


class CudaGraph(Graph):
    """A CUDA graph, ready to be launched."""

    def __init__(self, executable: Any) -> None:
        """Takes a ``CUgraphExec``, which goes with it; one that is at work goes when it is done."""
        self._executable = executable
        weakref.finalize(self, _driver().cuGraphExecDestroy, executable)

    def launch(self, stream: Stream) -> None:
        """See ``Graph``."""
        assert isinstance(stream, CudaStream)
        with _translated("the GPU refused a graph"):
            _check(_driver().cuGraphLaunch(self._executable, stream.handle))

    def upload(self, stream: CudaStream) -> None:
        """Takes it to the GPU, so that its first launch is as quick as the next."""
        _check(_driver().cuGraphUpload(self._executable, stream.handle))


class CudaStream(Stream):
    """A stream that does not wait for the default stream by itself."""

    def __init__(self, device: CudaDevice, stream: Any) -> None:
        """Takes a ``cuda.core.Stream``."""
        self._device, self.stream = device, stream
        self.handle = int(stream.handle)
        self._captures = False

    def launch(self, launch: Launch) -> None:
        """See ``Stream``."""
        from cuda.core import LaunchConfig
        from cuda.core import launch as core_launch

        kernel = self._device.kernel(launch.kernel)
        with _translated(f"the GPU refused {launch.kernel}"):
            core_launch(self.stream, LaunchConfig(grid=launch.grid, block=launch.block), kernel, *launch.arguments)

    def copy(self, destination: int, source: int, size: int) -> None:
        """See ``Stream``."""
        driver = _driver()
        with _translated("the GPU refused a copy"):
            _check(driver.cuMemcpyAsync(destination, source, size, self.handle))

    def copy_rows(
        self, destination: int, destination_pitch: int, source: int, source_pitch: int, width: int, rows: int
    ) -> None:
        """See ``Stream``."""
        driver = _driver()
        with _translated("the GPU refused a copy"):
            copy = driver.CUDA_MEMCPY2D()
            copy.srcMemoryType = copy.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
            copy.srcDevice, copy.srcPitch = source, source_pitch
            copy.dstDevice, copy.dstPitch = destination, destination_pitch
            copy.WidthInBytes, copy.Height = width, rows
            _check(driver.cuMemcpy2DAsync(copy, self.handle))

    def zero(self, address: int, size: int) -> None:
        """See ``Stream``."""
        with _translated("the GPU refused to clear memory"):
            _check(_driver().cuMemsetD8Async(address, 0, size, self.handle))

    def record(self, event: Event) -> None:
        """See ``Stream``."""
        assert isinstance(event, CudaEvent)
        with _translated("the GPU refused an event"):
            if not self._captures:
                self.stream.record(event.event)
            else:  # a node of the graph that marks the event at each launch
                driver = _driver()
                flag = driver.CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL
                _check(driver.cuEventRecordWithFlags(int(event.event.handle), self.handle, int(flag)))

    def wait(self, event: Event) -> None:
        """See ``Stream``."""
        assert isinstance(event, CudaEvent)
        with _translated("the GPU refused to wait"):
            self.stream.wait(event.event)

    def join(self, other: Stream) -> None:
        """See ``Stream``."""
        assert isinstance(other, CudaStream)
        with _translated("the GPU refused to wait"):
            self.stream.wait(other.stream)

    def wait_for(self, handle: int) -> None:
        """See ``Stream``."""
        from cuda.core import LEGACY_DEFAULT_STREAM, PER_THREAD_DEFAULT_STREAM
        from cuda.core import Stream as CoreStream

        named = {1: LEGACY_DEFAULT_STREAM, 2: PER_THREAD_DEFAULT_STREAM}  # of the array interface
        with _translated("the GPU refused to wait"):
            self.stream.wait(named[handle] if handle in named else CoreStream.from_handle(handle))

    def begin_capture(self) -> None:
        """See ``Stream``. Other threads' streams may go on meanwhile.

        By calls of the driver: ``GraphBuilder`` of cuda.core up to 1.2 destroys the graph of a capture that failed,
        which the driver destroyed before, and the process dies (NVIDIA/cuda-python#2834).
        """
        driver = _driver()
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with _translated("the GPU refused a capture"):
            _check(driver.cuStreamBeginCapture(self.handle, mode))
        self._captures = True

    def end_capture(self) -> Graph:
        """See ``Stream``."""
        driver = _driver()
        self._captures = False
        with _translated("the work cannot become a graph"):
            graph = _check(driver.cuStreamEndCapture(self.handle))
            try:
                executable = CudaGraph(_check(driver.cuGraphInstantiate(graph, 0)))
            finally:
                driver.cuGraphDestroy(graph)
            executable.upload(self)
            return executable

    def sync(self) -> None:
        """See ``Stream``."""
        with _translated("the GPU failed"):
            self.stream.sync()


def _driver() -> Any:
    from cuda.bindings import driver

    return driver


def _check(answer: tuple[Any, ...]) -> Any:
    """What a call of the driver gives, if anything; raises what it reports."""
    status, *values = answer
    driver = _driver()
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(driver.CUresult(status).name)
    return values[0] if values else None


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turns the errors of cuda.core, which share no base, into ours."""
    try:
        yield
    except (BackendError, AssertionError):
        raise
    except Exception as error:
        if "OUT_OF_MEMORY" in str(error):
            raise OutOfDeviceMemoryError(f"{what}: out of memory ({one_line(error)})") from error
        raise BackendError(f"{what}: {one_line(error)}") from error
