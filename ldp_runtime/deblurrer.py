"""The public face: a bundle loaded, a chain picked, pairs in, results out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from ldp_runtime.backends.base import Backend, SessionBackend
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.chain import Chain, ChainBackend, in_flight
from ldp_runtime.errors import BackendError
from ldp_runtime.host import HostChain
from ldp_runtime.registry import select
from ldp_runtime.result import PendingResult, Result
from ldp_runtime.stages.tiles import AUTO, check_tile
from ldp_runtime.tensors import is_device_array

if TYPE_CHECKING:
    from ldp_runtime.images.decode import Photo


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
    ) -> None:
        """Makes a deblurrer of a loaded bundle; the arguments are those of ``from_bundle``."""
        self.bundle = bundle
        self._tile = check_tile(tile, bundle.manifest.tile_multiple)
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

        Raises:
            BundleError: The bundle is missing, damaged, or lacks the graphs of that precision.
            BackendError: The backend or precision is unknown or does not work here.
            TileError: No tile has that size.
        """
        return cls(Bundle.load(bundle), backend=backend, precision=precision, threads=threads, tile=tile)

    @property
    def backend(self) -> str:
        """Name of the backend."""
        return self._backend.name

    @property
    def precision(self) -> str:
        """Precision that the graphs run in."""
        return self._precision

    def __call__(self, left: Any, right: Any, *, axis: str = "horizontal") -> Result:
        """Restores a pair.

        Args:
            left: ``(h, w, 3)`` uint8 or uint16 RGB, any size from 1 x 1 px, any strides and byte order; on a GPU also
                an array on the device, by DLPack or ``__cuda_array_interface__``.
            right: The other view, of the same shape and dtype.
            axis: Direction of the disparity: ``"horizontal"``, or ``"vertical"`` for sensors that split top
                and bottom (then ``left`` is the top view).

        Returns:
            The restored image and the blur map, where the views were: on the host or on the device.

        Raises:
            ImageError: The views are not such a pair.
            NumericsError: NaN or Inf appeared.
            BundleError: The bundle's graphs are not those of the chain.
            BackendError: The backend failed.
        """
        return self.start(left, right, axis=axis).result()

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

    def start(self, left: Any, right: Any, *, axis: str = "horizontal") -> PendingResult:
        """Starts on a pair.

        On a GPU the work goes on meanwhile; on a CPU ``PendingResult.result`` does it. An error of one pair leaves the
        others alone.

        Args:
            left: As for a call.
            right: As for a call; neither may change until the result is there.
            axis: As for a call.

        Raises:
            ImageError: The views are not a pair.
            BundleError: The bundle's graphs are not those of the chain.
            BackendError: The backend failed.
        """
        return self._submit(left, right, axis, restore=True)

    def blur_map(self, left: Any, right: Any, *, axis: str = "horizontal") -> Result:
        """Estimates the blur map alone; the deblur graph is not opened, and ``restored`` of the result is None.

        Args:
            left: As for a call.
            right: As for a call.
            axis: As for a call.

        Raises:
            ImageError: The views are not a pair.
            NumericsError: NaN or Inf appeared.
            BundleError: The bundle has no blur map, or its graphs are not those of the chain.
            BackendError: The backend failed.
        """
        return self._submit(left, right, axis, restore=False).result()

    def _submit(self, left: Any, right: Any, axis: str, *, restore: bool) -> PendingResult:
        """Starts on a pair; "auto" moves on to the next backend when one cannot."""
        while True:
            try:
                if self._chain is None:
                    self._chain = self._open_chain()
                return self._chain.submit(left, right, axis, restore=restore)
            except BackendError as error:
                if self._asked[0] != "auto" or is_device_array(left):  # no other backend takes it
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
        self._backend, self.reason, self.passed_over = select(backend, precision, failed=self._failed)
        self._precision = self._backend.resolve(precision)
        self._chain = None


def _ahead(pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """The same pairs, each read by a thread of its own while the caller is at the one before."""
    iterator = iter(pairs)
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ldp-read") as thread:
        following = thread.submit(next, iterator, end)
        while (pair := following.result()) is not end:
            following = thread.submit(next, iterator, end)
            yield cast(tuple[Any, Any], pair)
