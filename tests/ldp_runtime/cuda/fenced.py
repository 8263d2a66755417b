"""Outputs of kernels that nobody may write beside, and the views that kernels read."""

import mmap
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from tests.ldp_runtime.cuda.host_build import address

FENCE = 64
SIZES = [(1, 1), (1, 5), (5, 1), (2, 3), (4, 4), (7, 33), (32, 32), (33, 31), (37, 130), (65, 64), (100, 99)]
DTYPES = [np.uint8, np.uint16]


class Fenced:
    """An output: poisoned, with a fence on both sides that nobody may write to.

    Args:
        shape: Of the output.
        dtype: Of its elements.
        offset: Elements by which it is off 64 bytes.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, offset: int = 0) -> None:
        dtype = np.dtype(dtype)
        size = int(np.prod(shape))
        self._bytes = np.full(2 * FENCE + 64 + (size + offset) * dtype.itemsize, 0xAB, np.uint8)
        start = FENCE + (-(address(self._bytes) + FENCE)) % 64 + offset * dtype.itemsize
        self._fences = (self._bytes[:start], self._bytes[start + size * dtype.itemsize :])
        self.array: NDArray[Any] = self._bytes[start : start + size * dtype.itemsize].view(dtype).reshape(shape)
        if dtype.kind == "f":
            self.array[...] = np.nan

    @property
    def address(self) -> int:
        return address(self.array)

    def check(self) -> NDArray[Any]:
        """The output, once the fences are known to be whole."""
        for fence in self._fences:
            assert (fence == 0xAB).all(), "written outside of the output"
        return self.array


def unaligned(array: NDArray[Any], offset: int) -> NDArray[Any]:
    """A copy whose memory begins ``offset`` elements off an aligned address."""
    memory = np.empty(array.size + offset, array.dtype)
    copy = memory[offset:].reshape(array.shape)
    copy[...] = array
    return copy


def pair_of(size: tuple[int, int], dtype: DTypeLike, seed: int = 0) -> list[NDArray[Any]]:
    rng = np.random.default_rng([seed, *size])
    return [rng.integers(0, np.iinfo(np.dtype(dtype)).max + 1, (*size, 3)).astype(dtype) for _ in range(2)]


def same(got: NDArray[Any], wanted: NDArray[Any]) -> None:
    """Bit for bit, with the first difference named."""
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    if not np.array_equal(got, wanted):
        at = tuple(int(i[0]) for i in np.nonzero(got != wanted))
        pytest.fail(f"{np.sum(got != wanted)} of {got.size} differ, first at {at}: {got[at]} for {wanted[at]}")


def sparse(size: int) -> NDArray[np.uint8]:
    """So many zero bytes, of which memory holds only what is touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)
    except OSError as error:
        pytest.skip(f"no {size >> 30} GiB of addresses: {error}")
