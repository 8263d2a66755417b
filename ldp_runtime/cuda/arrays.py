"""Arrays on the device: those of other libraries coming in, ours going out. Nothing is copied.

Coming in: anything with DLPack or ``__cuda_array_interface__`` (CuPy, PyCUDA, torch, JAX, Numba); the chain waits
for the stream that writes them. Going out: both protocols; the arrays are complete when they are handed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.bundle.engines import Shape
from ldp_runtime.cuda.base import Device, Memory, Stream
from ldp_runtime.cuda.launch import Pixels
from ldp_runtime.errors import ImageError
from ldp_runtime.tensors import shares_by_dlpack

LEGACY_DEFAULT_STREAM = 1
"""The handle by which the array interface and DLPack name CUDA's default stream."""


@dataclass(frozen=True, eq=False)
class DeviceView:
    """Another library's array ``(h, w, 3)``, as the chain reads it.

    Attributes:
        address: Of its first element.
        shape: Its shape.
        strides: Elements from entry to entry of each axis.
        dtype: Its element type.
        owner: The array itself, kept alive.
    """

    address: int
    shape: Shape
    strides: Shape
    dtype: np.dtype[Any]
    owner: object

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def pixels(self, name: str) -> Pixels:
        """Where its pixels lie.

        Args:
            name: What the view is, for the error.

        Raises:
            ImageError: Its channels are not neighbours in memory.
        """
        if self.strides[2] != 1:
            raise ImageError(
                f"expected {name} with its channels side by side (h, w, 3), got strides {self.strides}; "
                "make it contiguous in that order first"
            )
        return Pixels(self.address, self.strides[0], self.strides[1])


def view(array: object, device: Device, stream: Stream) -> DeviceView:
    """Looks at another library's device array; ``stream`` waits until it is written.

    Args:
        array: The array.
        device: Where it lies.
        stream: The stream that will read it.

    Raises:
        ImageError: It cannot be looked at.
    """
    if shares_by_dlpack(array):
        try:
            return DeviceView(*device.import_dlpack(array, stream), owner=array)
        except (BufferError, NotImplementedError, RuntimeError, TypeError) as error:
            raise ImageError(
                f"expected a device array that DLPack can share, got {type(array).__name__} ({error}); "
                "detach it, or copy it to this GPU"
            ) from error
    return _of_interface(array, stream)


def _of_interface(array: object, stream: Stream) -> DeviceView:
    interface = array.__cuda_array_interface__  # type: ignore[attr-defined]
    try:
        dtype = np.dtype(interface["typestr"])
        shape = tuple(int(n) for n in interface["shape"])
        address = int(interface["data"][0])
        byte_strides = interface.get("strides")
    except (KeyError, TypeError, ValueError) as error:
        raise ImageError(
            f"expected a __cuda_array_interface__ with typestr, shape and data, got {type(array).__name__} ({error})"
        ) from error
    if not dtype.isnative:
        raise ImageError(f"expected a device array in the machine's byte order, got {dtype.str}; convert it first")
    if byte_strides is None:
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    elif any(n % dtype.itemsize for n in byte_strides):
        raise ImageError(
            f"expected strides in whole elements of {dtype.itemsize} bytes, got {tuple(byte_strides)}; copy it first"
        )
    else:
        strides = tuple(int(n) // dtype.itemsize for n in byte_strides)
    # Who names no stream promises that nothing is pending; some say so and have work on the default stream.
    stream.wait_for(interface.get("stream") or LEGACY_DEFAULT_STREAM)
    return DeviceView(address, shape, strides, dtype, array)


class DeviceArray:
    """A contiguous array on the device, complete when it is handed over.

    Other libraries take it without a copy: ``cupy.asarray(a)``, ``torch.from_dlpack(a)``,
    ``pycuda.gpuarray.GPUArray(a.shape, a.dtype, gpudata=a.address, base=a)``. Keep it, or what was made of it, until
    the streams that read it are done: its memory is used again afterwards.

    Attributes:
        shape: Its shape.
        dtype: Its element type.
        address: Of its first element.
    """

    shape: Shape
    dtype: np.dtype[Any]
    address: int

    def __init__(self, device: Device, memory: Memory, shape: Shape, dtype: np.dtype[Any]) -> None:
        """Makes an array of a piece of memory, which it keeps."""
        self.shape, self.dtype, self.address = shape, dtype, memory.address
        self._device, self._memory = device, memory

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The array interface, version 3; no stream, because nothing is pending."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def __dlpack__(self, **options: object) -> object:
        """A DLPack capsule."""
        return self._device.export_dlpack(self._memory, self.shape, self.dtype, options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Where it lies, in DLPack's terms."""
        return self._device.dlpack_device

    def numpy(self) -> NDArray[Any]:
        """A copy on the host."""
        self._device.activate()
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        host, stream = self._device.allocate_host(size), self._device.stream()
        stream.copy(host.array.ctypes.data, self.address, size)
        stream.sync()
        return host.array[:size].view(self.dtype).reshape(self.shape).copy()

    def __repr__(self) -> str:
        return f"DeviceArray{self.shape} {self.dtype} on {self._device.name}"
