"""What a chain promises: all stages of a pair over one backend, whichever that is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

import numpy as np

from ldp_runtime.backends.base import Backend
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.errors import BundleError, ImageError
from ldp_runtime.result import PendingResult
from ldp_runtime.tensors import is_device_array

AXES = ("horizontal", "vertical")
DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16))

IN_FLIGHT = 2
"""Pairs in flight at a time: one is computed while the result of the one before is used."""

Item = TypeVar("Item")
Progress = Callable[[float], None]


class Chain(ABC):
    """All stages for pairs of any size, over one backend.

    Attributes:
        name: Name of the backend.
        precision: Precision that the graphs run in.
        bundle: The bundle.
        warm_up_rounds: How often ``IN_FLIGHT`` pairs of a size run, after the first, before nothing is made anew.
    """

    name: str
    precision: str
    bundle: Bundle
    warm_up_rounds = 0

    def submit(
        self, left: Any, right: Any, axis: str, *, restore: bool = True, progress: Progress | None = None
    ) -> PendingResult:
        """Starts on a pair; several may be in flight.

        Args:
            left: ``(h, w, 3)`` uint8 or uint16 RGB, any size from 1 x 1 px, any strides and byte order; a NumPy array
                or, where the chain runs on a GPU, an array on it.
            right: The other view, of the same shape and dtype, in the same place.
            axis: Direction of the disparity, one of ``AXES``; with ``"vertical"`` ``left`` is the top view.
            restore: Whether the restored image is wanted; otherwise the blur map alone.
            progress: Called with the share of the work that is done, 0 to 1, as windows and tiles end; a GPU, which is
                done in an instant, does not call it.

        Returns:
            The pair in flight. Neither view may change until its result is there.

        Raises:
            ImageError: The views are not a pair.
            BundleError: The bundle has no blur map and that alone was wanted, or its graphs are not those of the chain.
            BackendError: The backend cannot run the pair.
        """
        if not restore and not self.bundle.manifest.reads_blur_map:
            raise BundleError(
                f"bundle {self.bundle.manifest.name!r} has no blur map: its network reads none; restore the pair, or "
                "choose another bundle"
            )
        left, right = self.view_impl("left", left), self.view_impl("right", right)
        check_arrays(left, right, axis)
        return self.submit_impl(left, right, axis, restore, progress)

    @abstractmethod
    def open_impl(self, restores: bool) -> None:
        """Opens the graphs that run pairs of any size, where there are such; see ``Deblurrer.open``."""

    @abstractmethod
    def submit_impl(self, left: Any, right: Any, axis: str, restore: bool, progress: Progress | None) -> PendingResult:
        """Starts on a pair that was checked; the rest is as for ``submit``."""

    def view_impl(self, name: str, array: Any) -> Any:
        """The view ``name`` as the chain reads it; a chain that reads arrays on a device wraps them here."""
        if is_device_array(array):
            kind = type(array).__name__
            raise ImageError(f"{_expected(name)}, got one on a device ({kind}); choose the backend cuda for it")
        if not isinstance(array, np.ndarray):
            raise ImageError(f"{_expected(name)}, got {type(array).__name__}; convert it with numpy.asarray")
        return array


class ChainBackend(Backend):
    """A backend that runs the whole chain of a bundle itself, in place of single graphs."""

    @abstractmethod
    def open_chain(self, bundle: Bundle, precision: str, tile: int | str) -> Chain:
        """Makes a bundle ready to run.

        Args:
            bundle: The bundle.
            precision: One of ``precisions``.
            tile: As for ``Deblurrer.from_bundle``.

        Raises:
            BackendError: The backend cannot run the bundle; the message says what would help.
        """


def in_flight(items: Iterable[Item], start: Callable[[Item], PendingResult]) -> Generator[tuple[Item, PendingResult]]:
    """Keeps ``IN_FLIGHT`` pairs started, and gives them out in order; those left at an early end are cancelled.

    Args:
        items: What to start on.
        start: Starts on an item. What it raises ends the sequence; ``PendingResult.failed`` keeps it going.
    """
    pending: deque[tuple[Item, PendingResult]] = deque()
    try:
        for item in items:
            pending.append((item, start(item)))
            if len(pending) == IN_FLIGHT:
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        for _, left_over in pending:
            left_over.cancel()


def _expected(name: str) -> str:
    return f"expected {name} as an array (h, w, 3) of uint8 or uint16"


def check_arrays(left: Any, right: Any, axis: str) -> None:
    """Raises ImageError unless these are the arrays of a pair, on the host or on a device."""
    if axis not in AXES:
        raise ImageError(f"expected an axis, one of {', '.join(AXES)}, got {axis!r}")
    for name, view in (("left", left), ("right", right)):
        _check_view(name, view)
    if left.shape != right.shape:
        raise ImageError(
            f"expected two views of one size, got left {left.shape[1]} x {left.shape[0]} px and right "
            f"{right.shape[1]} x {right.shape[0]} px; crop them alike or choose the two files of one photo"
        )
    if left.dtype.itemsize != right.dtype.itemsize:
        raise ImageError(
            f"expected two views of one bit depth, got left {left.dtype} and right {right.dtype}; "
            "convert both to the same"
        )
    if isinstance(left, np.ndarray) != isinstance(right, np.ndarray):
        raise ImageError("expected both views on the host or both on the device, got one of each; copy one over")


def _check_view(name: str, view: Any) -> None:
    expected = _expected(name)
    if view.ndim != 3 or view.shape[2] != 3:
        fix = "give RGB: repeat a grey channel three times, drop alpha"
        raise ImageError(f"{expected}, got shape {view.shape}; {fix}")
    if view.dtype.newbyteorder("=") not in DTYPES:
        raise ImageError(f"{expected}, got {view.dtype}; scale it to 0..255 as uint8 or 0..65535 as uint16")
    if 0 in view.shape:
        raise ImageError(f"{expected}, got an empty image {view.shape}; give at least 1 x 1 px")
