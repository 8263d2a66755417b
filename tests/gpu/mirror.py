"""Launches of the host's tests, run on a device: what their addresses point to is mirrored there and back."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.cuda.base import Device, HostMemory, Memory
from ldp_runtime.cuda.launch import Launch

_PAGE = 4096
_REACH = 1 << 16  # bytes around an address that are mirrored, beside four times what the launch has to move
_MOST = 1 << 28


@dataclasses.dataclass(frozen=True, eq=False)
class _Span:
    """A range of the host's memory and its copy on the device."""

    start: int
    end: int
    before: NDArray[np.uint8]
    memory: Memory
    staged: HostMemory


class Mirror:
    """Runs a ``Launch`` whose addresses are of host memory on a device.

    The pages around each address go to the device, the kernel runs there, and the bytes that it changed come back:
    fences, odd sizes and unaligned outputs are those of the host's tests.

    Attributes:
        launches: How many ran.
    """

    def __init__(self, device: Device) -> None:
        """Takes the device."""
        self._device, self._stream = device, device.stream()
        self.launches = 0

    def __call__(self, launch: Launch) -> None:
        """Runs a launch and waits for it; the same as ``host_build.launch``, its check of types too.

        Raises:
            TypeError: The arguments are not of the types of the kernel's parameters.
        """
        from tests.ldp_runtime.cuda.host_build import check_arguments

        check_arguments(launch)
        self.launches += 1
        addresses = [int(argument) for argument in launch.arguments if argument.dtype == np.uintp and argument]
        spans = [self._sent(start, end) for start, end in _merged(addresses, _REACH + 4 * launch.minimum_bytes)]
        arguments = tuple(
            np.uintp(_translated(int(argument), spans)) if argument.dtype == np.uintp and argument else argument
            for argument in launch.arguments
        )
        self._stream.launch(dataclasses.replace(launch, arguments=arguments))
        for span in spans:
            self._stream.copy(span.staged.address, span.memory.address, span.end - span.start)
        self._stream.sync()
        for span in spans:
            after = span.staged.array[: span.end - span.start]
            changed = np.nonzero(after != span.before)[0]
            _bytes(span.start, span.end)[changed] = after[changed]

    def _sent(self, start: int, end: int) -> _Span:
        size = end - start
        memory, staged = self._device.allocate(size, self._stream, self._stream), self._device.allocate_host(size)
        before = _bytes(start, end).copy()
        staged.array[:size] = before
        self._stream.copy(memory.address, staged.address, size)
        return _Span(start, end, before, memory, staged)


def _bytes(start: int, end: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * (end - start)).from_address(start))


def _translated(address: int, spans: list[_Span]) -> int:
    span = next(span for span in spans if span.start <= address < span.end)
    return span.memory.address + address - span.start


def _merged(addresses: list[int], reach: int) -> list[tuple[int, int]]:
    """The writable pages around some addresses, as ranges that do not meet."""
    maps, reach = _writable(), min(reach, _MOST)
    spans: list[tuple[int, int]] = []
    for address in sorted(addresses):
        low, high = next((low, high) for low, high in maps if low <= address < high)
        start, end = max(low, (address - reach) // _PAGE * _PAGE), min(high, address + reach)
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    return spans


def _writable() -> list[tuple[int, int]]:
    """The ranges of this process's memory that it may write to.

    Neighbours are one range: the system lists them apart where advice was given on a part, as NumPy does for large
    arrays, and an array may lie across such a border.
    """
    ranges: list[tuple[int, int]] = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, mode = line.split()[:2]
        if mode.startswith("rw"):
            low, high = (int(end, 16) for end in span.split("-"))
            if ranges and ranges[-1][1] == low:
                low = ranges.pop()[0]
            ranges.append((low, high))
    return ranges
