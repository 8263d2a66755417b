"""The public face: a bundle loaded, a chain picked, pairs in, results out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import DTypeLike

from ldp_runtime.backends.base import Backend, SessionBackend
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.chain import AXES, IN_FLIGHT, Chain, ChainBackend, Progress, check_arrays, in_flight
from ldp_runtime.errors import BackendError, ImageError
from ldp_runtime.host import HostChain
from ldp_runtime.paircheck.modes import MODES
from ldp_runtime.registry import select
from ldp_runtime.result import PendingResult, Result, cancel_all, cancelled_on_error
from ldp_runtime.stages.scale_choice import BLUR_RANGE, SCALES
from ldp_runtime.stages.tiles import AUTO, check_tile
from ldp_runtime.tensors import is_device_array

if TYPE_CHECKING:
    from ldp_runtime.images.decode import Photo


Made = TypeVar("Made")


class Deblurrer:
    """Restores dual-pixel pairs with one bundle on one backend. Graphs are opened when they are first needed.

    Attributes:
        bundle: The verified bundle.
        reason: A sentence that says which backend was picked and why.
        passed_over: Faster backends that "auto" could not take, and why; empty where one was asked for.
    """

    bundle: Bundle
    reason: str
    passed_over: Mapping[str, str]

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: str | Backend = "auto",
        precision: str = "auto",
        threads: int | None = None,
        tile: int | str = AUTO,
        check: str = "off",
        scale: str = AUTO,
    ) -> None:
        """Makes a deblurrer of a loaded bundle; the arguments are those of ``from_bundle``."""
        self.bundle = bundle
        self._tile = check_tile(tile, bundle.manifest.tile_multiple, bundle.manifest.tile_halo)
        self._check = _checked_choice("check", check, MODES)
        self._scale = _checked_choice("scale", scale, (AUTO, *SCALES))
        self._asked = (backend, precision)
        self._threads = threads
        self._failed: dict[str, str] = {}
        self._chain: Chain | None = None
        self._pick()

    @classmethod
    def from_bundle(
        cls,
        bundle: str | os.PathLike[str] = "ldp-nano",
        *,
        backend: str | Backend = "auto",
        precision: str = "auto",
        threads: int | None = None,
        tile: int | str = AUTO,
        check: str = "off",
        scale: str = AUTO,
    ) -> Deblurrer:
        """Loads and verifies a bundle and picks the backend.

        Args:
            bundle: A name or a folder, as for ``find.find_bundle``.
            backend: A name of ``registry.BACKENDS``, ``"auto"`` for the fastest that works, or a backend of your own.
            precision: One of ``backends.base.PRECISIONS``, or ``"auto"`` for the backend's own.
            threads: CPU threads, at least 1; None leaves it to the backend.
            tile: Longest side in px of the tiles that an image is restored in; ``"auto"`` takes tiles where memory
                asks for them, see ``tiles.tilings``, and ``"off"`` never. Tiles differ a little from the whole, see
                ``tiles.TILE_HALO``.
            check: ``"auto"`` measures each pair first, corrects what can be corrected without loss, refuses what would
                only do harm, and says so in ``Result.notes``; ``"warn"`` only says. A program gets ``"off"``, unlike a
                command: it mostly knows where its arrays come from, its results should depend on nothing but them, and
                next to a GPU some 10 ms on the CPU are long. Views on a device are never measured.
            scale: Scale to restore at, a name of ``scales.SCALES``; ``"auto"`` takes the largest at which the disparity
                that the check measures fits the model, and 1 without a check.

        Raises:
            BundleError: The bundle is missing, damaged, or lacks the graphs of that precision.
            BackendError: The backend or precision is unknown or does not work here.
            TileError: No tile has that size.
        """
        return cls(
            Bundle.load(bundle),
            backend=backend,
            precision=precision,
            threads=threads,
            tile=tile,
            check=check,
            scale=scale,
        )

    @property
    def backend(self) -> str:
        """Name of the backend."""
        return self._backend.name

    @property
    def precision(self) -> str:
        """Precision that the graphs run in."""
        return self._precision

    def __call__(
        self,
        left: Any,
        right: Any,
        *,
        axis: str = "horizontal",
        linear: bool | None = None,
        check: str | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Restores a pair.

        Args:
            left: ``(h, w, 3)`` uint8 or uint16 RGB, any size from 1 x 1 px, any strides and byte order; on a GPU also
                an array on the device, by DLPack or ``__cuda_array_interface__``.
            right: The other view, of the same shape and dtype.
            axis: Direction of the disparity: ``"horizontal"``, or ``"vertical"`` for sensors that split top
                and bottom (then ``left`` is the top view).
            linear: Whether the values are linear light rather than sRGB; None leaves it to the check.
            check: As for ``from_bundle``, for this pair; None is the deblurrer's own.
            progress: As for ``Chain.submit``.

        Returns:
            The restored image and the blur map, where the views were: on the host or on the device.

        Raises:
            ImageError: The views are not such a pair, or the check refuses it.
            NumericsError: NaN or Inf appeared.
            BundleError: The bundle's graphs are not those of the chain.
            BackendError: The backend failed.
        """
        return self.start(left, right, axis=axis, linear=linear, check=check, progress=progress).result()

    def open(self, *, restores: bool = True) -> None:
        """Opens the graphs, which otherwise the first pair does; on a GPU that has to wait for the size of a pair.

        Args:
            restores: Whether pairs are to be restored; otherwise the blur map alone is wanted.

        Raises:
            BundleError: The bundle's graphs are not those of the chain.
            BackendError: The backend failed.
        """
        self._on_chain(lambda chain: chain.open_impl(restores))

    def warm_up(self, sizes: Iterable[tuple[int, int]], dtype: DTypeLike = np.uint8) -> None:
        """Does what is done once for pairs of a size, so that a service's first client does not wait for it.

        Graphs are opened and compiled. On a GPU frames are captured, and memory is kept for the last two of the sizes.

        Args:
            sizes: ``(h, w)`` of the pairs in px.
            dtype: uint8 or uint16, that of the pairs.

        Raises:
            BundleError: The bundle's graphs are not those of the chain.
            BackendError: The backend failed.
        """
        for h, w in sizes:
            blank = np.zeros((h, w, 3), dtype)
            self._submit(blank, blank, AXES[0], True).result()
            assert self._chain is not None
            for _ in range(self._chain.warm_up_rounds):
                for pending in [self._submit(blank, blank, AXES[0], True) for _ in range(IN_FLIGHT)]:
                    pending.result()

    def restore_files(
        self,
        left: str | os.PathLike[str],
        right: str | os.PathLike[str] | None = None,
        *,
        axis: str = "horizontal",
        swap: bool = False,
    ) -> Photo:
        """Restores a pair of files, or one that holds both views, such as a dual-pixel raw photo.

        Args:
            left: File of the left view, or of both, as for ``images.pair_files.read_views``.
            right: File of the right view, or None.
            axis: As for a call; a camera that was turned is known from EXIF.
            swap: The views are exchanged.

        Returns:
            The restored photo with the metadata of the left view, for ``images.photo.write_photo``.

        Raises:
            LDPError: A file cannot be read, or as for a call.
        """
        from ldp_runtime.images.pair_files import read_views

        views = read_views(left, right, axis=axis, swap=swap)
        result = self(views.left.pixels, views.right.pixels, axis=views.axis)
        return replace(views.left, pixels=result.restored)

    def map(self, pairs: Iterable[tuple[Any, Any]], *, axis: str = "horizontal") -> Iterator[Result]:
        """Restores a sequence of pairs; reading them, copies, the GPU and the use of a result overlap.

        ``pairs`` is read in a thread of its own, one pair ahead. On a GPU the work on a pair goes on while the caller
        has the result of the one before. An error is raised in the place of the result, and ends the sequence.

        Args:
            pairs: The left and right view of each, as for a call; sizes may differ.
            axis: As for a call.

        Yields:
            The results, in order.

        Raises:
            LDPError: As for a call.
        """
        with contextlib.closing(in_flight(_ahead(pairs), lambda pair: self.start(*pair, axis=axis))) as started:
            for _, pending in started:
                yield pending.result()

    def start(
        self,
        left: Any,
        right: Any,
        *,
        axis: str = "horizontal",
        linear: bool | None = None,
        check: str | None = None,
        progress: Progress | None = None,
    ) -> PendingResult:
        """Starts on a pair.

        On a GPU the work goes on meanwhile; on a CPU ``PendingResult.result`` does it. An error of one pair leaves the
        others alone.

        Args:
            left: As for a call.
            right: As for a call; neither may change until the result is there.
            axis: As for a call.
            linear: As for a call.
            check: As for a call.
            progress: As for a call.

        Raises:
            ImageError: The views are not a pair, or the check refuses it.
            BundleError: The bundle's graphs are not those of the chain.
            BackendError: The backend failed.
        """
        return self._start(left, right, axis, True, linear, check, progress)

    def blur_map(
        self,
        left: Any,
        right: Any,
        *,
        axis: str = "horizontal",
        linear: bool | None = None,
        check: str | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Estimates the blur map alone; the deblur graph is not opened, and ``restored`` of the result is None.

        Args:
            left: As for a call.
            right: As for a call.
            axis: As for a call.
            linear: As for a call.
            check: As for a call.
            progress: As for a call.

        Raises:
            ImageError: The views are not a pair, or the check refuses it.
            NumericsError: NaN or Inf appeared.
            BundleError: The bundle has no blur map, or its graphs are not those of the chain.
            BackendError: The backend failed.
        """
        return self._start(left, right, axis, False, linear, check, progress).result()

    def _start(
        self,
        left: Any,
        right: Any,
        axis: str,
        restore: bool,
        linear: bool | None,
        check: str | None,
        progress: Progress | None,
    ) -> PendingResult:
        """Checks a pair and starts on what is left of it."""
        mode = self._check if check is None else _checked_choice("check", check, MODES)
        measured = isinstance(left, np.ndarray) and isinstance(right, np.ndarray)
        if not measured or (mode == "off" and self._scale in ("1", AUTO)):
            return self._submit(left, right, axis, restore, progress)
        from ldp_runtime.paircheck.prepare import prepare  # OpenCV takes a while to load

        check_arrays(left, right, axis)
        prepared = prepare(
            left,
            right,
            axis,
            mode=mode,
            scale=self._scale,
            blur_range=self.bundle.manifest.blur_range or BLUR_RANGE,
            linear=linear,
        )
        pairs = prepared.pairs if restore else prepared.pairs[:1]
        pending: list[PendingResult] = []
        with cancelled_on_error(pending):
            for i, pair in enumerate(pairs):
                pending.append(self._submit(*pair, prepared.axis, restore, _part_of(progress, i, len(pairs))))

        def finish() -> Result:
            with cancelled_on_error(pending):
                return prepared.finish([each.result() for each in pending])

        return PendingResult(finish, lambda: cancel_all(pending))

    def _submit(
        self, left: Any, right: Any, axis: str, restore: bool, progress: Progress | None = None
    ) -> PendingResult:
        """Starts on a pair."""
        return self._on_chain(
            lambda chain: chain.submit(left, right, axis, restore=restore, progress=progress),
            tied=is_device_array(left),  # no other backend takes it
        )

    def _on_chain(self, work: Callable[[Chain], Made], *, tied: bool = False) -> Made:
        """Does something with the chain; "auto" moves on to the next backend when one cannot, unless ``tied``."""
        while True:
            try:
                if self._chain is None:
                    self._chain = self._open_chain()
                return work(self._chain)
            except BackendError as error:
                if self._asked[0] != "auto" or tied:
                    raise
                self._failed[self._backend.name] = str(error)
                self._pick()

    def _open_chain(self) -> Chain:
        if isinstance(self._backend, ChainBackend):
            return self._backend.open_chain(self.bundle, self._precision, self._tile)
        assert isinstance(self._backend, SessionBackend)
        return HostChain(self.bundle, self._backend, self._precision, self._threads, self._tile)

    def _pick(self) -> None:
        """Picks a backend among those that have not failed.

        Raises:
            BackendError: None is left.
        """
        backend, precision = self._asked
        bf16 = self.bundle.manifest.bf16
        self._backend, self.reason, self.passed_over = select(backend, precision, bf16=bf16, failed=self._failed)
        self._precision = self._backend.resolve(precision, bf16=bf16)
        self._chain = None


def _checked_choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ImageError(f"expected {name} as one of {', '.join(allowed)}, got {value!r}")
    return value


def _part_of(progress: Progress | None, part: int, parts: int) -> Progress | None:
    """Takes the progress of one of several parts of equal length."""
    return progress and (lambda done: progress((part + done) / parts))


def _ahead(pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """The same pairs, each read by a thread of its own while the caller is at the one before."""
    iterator = iter(pairs)
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ldp-read") as thread:
        following = thread.submit(next, iterator, end)
        while (pair := following.result()) is not end:
            following = thread.submit(next, iterator, end)
            yield cast(tuple[Any, Any], pair)
