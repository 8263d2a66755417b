"""The runner: finds engines for a pair's size, keeps chains ready, and goes over to tiles where it must."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import EngineEntry
from ldp_runtime.cuda import arrays
from ldp_runtime.cuda.arrays import DeviceView
from ldp_runtime.cuda.base import Device, Engine, OutOfDeviceMemoryError
from ldp_runtime.cuda.chain import Chain, Outcome, Pending, Streams
from ldp_runtime.cuda.launches import PromptTable
from ldp_runtime.cuda.plan import PairForm, Plan
from ldp_runtime.errors import BackendError
from ldp_runtime.stages.tiles import AUTO, OFF, TileGrid, fit_tile, is_local, tile_multiple

CHAINS = 2
"""Chains that are kept ready; one for another form of pair throws out the one that was not used for longest."""

TILE_SIDES = (2048, 1536, 1024, 768, 512, 384, 256)
"""Sides in px of the tiles that are tried, largest first, where a pair does not go in one piece."""


class EngineSource(ABC):
    """Where the engines of a bundle come from."""

    @abstractmethod
    def find(self, kind: str, shapes: dict[str, tuple[int, ...]]) -> EngineEntry:
        """The engine for inputs of these shapes.

        Raises:
            BackendError: There is none; the message says what there is and how to build one.
        """

    @abstractmethod
    def open(self, entry: EngineEntry) -> Engine:
        """Makes the engine ready; once for each.

        Raises:
            BackendError: It is not trusted, damaged, or does not load here.
            OutOfDeviceMemoryError: There is not enough memory.
        """

    @abstractmethod
    def fixed_sizes(self) -> list[tuple[int, int]]:
        """``(H, W)`` of the deblur engines that take one size alone."""


class Running:
    """A pair in flight, restored in so many ``tiles``."""

    def __init__(self, runner: Runner, pending: Pending, note: str | None, tiles: int) -> None:
        """Made by ``Runner.submit``."""
        self._pending, self.note = pending, note
        self._runner = runner
        self.tiles = tiles

    def take(self) -> tuple[Outcome, tuple[str, ...]]:
        """Waits for the result; with it comes what the user should know of how it was made.

        Raises:
            NumericsError: NaN or Inf appeared.
            BackendError: The device failed.
        """
        with self._runner.lock:
            outcome = self._pending.take()
        return outcome, (self.note,) if self.note else ()

    def discard(self) -> None:
        """Forgets the pair, if it was not taken."""
        with self._runner.lock:
            self._pending.discard()


class Runner:
    """Runs pairs of any size with one bundle on one device.

    Attributes:
        name: Name of the backend that it came from.
        device: Where it runs.
        tile: As for ``Deblurrer.from_bundle``: the longest side of a tile in px, ``"auto"`` or ``"off"``.
    """

    name: str
    device: Device
    tile: int | str

    def __init__(self, name: str, device: Device, bundle: Bundle, engines: EngineSource) -> None:
        """Opens CLIP's engine lazily, like all else."""
        self.name, self.device, self.tile = name, device, AUTO
        self.lock = threading.RLock()
        self._bundle, self._source = bundle, engines
        device.activate()
        manifest = bundle.manifest
        self._streams = Streams.of(device)
        assert bundle.text_embeddings is not None  # it has a CLIP graph
        self._table = PromptTable.of(bundle.text_embeddings, manifest.prompts, manifest.ensemble)
        self._chains: OrderedDict[PairForm, tuple[Chain, str | None]] = OrderedDict()
        self._tiling: dict[PairForm, tuple[TileGrid, str | None]] = {}

    def view(self, array: object) -> DeviceView:
        """Looks at another library's device array ``(h, w, 3)``; the next frame waits until it is written.

        Raises:
            ImageError: It cannot be looked at.
        """
        with self.lock:
            self.device.activate()
            return arrays.view(array, self.device, self._streams.compute)

    def submit(
        self,
        left: NDArray[Any] | DeviceView,
        right: NDArray[Any] | DeviceView,
        axis: str,
        restore: bool = True,
    ) -> Running:
        """Starts on a checked pair; several may be in flight.

        Args:
            left: ``(h, w, 3)`` uint8 or uint16, on the host or, like ``right``, on the device (``view``).
            right: The right view.
            axis: As for ``Deblurrer``.
            restore: Whether the restored image is wanted; else the blur map alone.

        Raises:
            BackendError: There is no engine for the pair's size, or the device failed.
            BundleError: The engines are not those of the pipeline.
            OutOfDeviceMemoryError: There is not enough memory, not even with small tiles.
        """
        form = PairForm((left.shape[0], left.shape[1]), left.dtype.newbyteorder("="), axis, restore)
        with self.lock:
            self.device.activate()
            if form in self._chains:
                self._chains.move_to_end(form)
                chain, note = self._chains[form]
                try:
                    return Running(self, chain.submit(left, right), note, len(chain.plan.tiles))
                except OutOfDeviceMemoryError:  # another chain, or another pair in flight, has the memory
                    del chain
                    self._drop()
            return self._submit_new(form, left, right)

    def _submit_new(self, form: PairForm, left: Any, right: Any) -> Running:
        first: BackendError | None = None
        for tiles, note in self._tilings(form):
            plan = Plan.of(form, self._bundle.manifest, tiles)
            clip = self._source.find("clip", dict(plan.clip_shapes))
            try:
                deblur = self._source.find("deblur", dict(plan.deblur_shapes)) if form.restore else None
            except BackendError as error:
                first = first or error
                continue
            for keep in (CHAINS - 1, 0):  # once with another chain kept, once with all the memory
                try:
                    self._drop(keep)
                    chain, pending = self._started(plan, clip, deblur, left, right)
                except OutOfDeviceMemoryError as error:
                    if not isinstance(first, OutOfDeviceMemoryError):
                        first = OutOfDeviceMemoryError(str(error))  # without the traceback, which keeps the memory
                    continue
                self._chains[form] = chain, note
                self._tiling[form] = tiles, note
                return Running(self, pending, note, len(tiles))
        assert first is not None  # at least the whole frame was tried
        if isinstance(first, OutOfDeviceMemoryError):
            h, w = form.size
            raise OutOfDeviceMemoryError(
                f"a pair of {w} x {h} px does not fit into the memory of {self.device.name}, not even in the tiles "
                f"that its engines take ({first}); close what else uses the GPU, build an engine for smaller sizes, or "
                "choose a CPU backend"
            )
        raise first

    def _started(
        self, plan: Plan, clip: EngineEntry, deblur: EngineEntry | None, left: Any, right: Any
    ) -> tuple[Chain, Pending]:
        """A new chain and its first frame; where memory runs out, nothing is left of either."""
        opened = self._source.open(clip), self._source.open(deblur) if deblur is not None else None
        chain = Chain(self.device, self._streams, plan, self._bundle.manifest, self._table, *opened)
        return chain, chain.submit(left, right)

    def _drop(self, keep: int = 0) -> None:
        """Lets chains go, the longest unused first; frames in flight keep theirs alive until they are taken."""
        while len(self._chains) > keep:
            self._streams.sync()
            self._chains.popitem(last=False)

    def _tilings(self, form: PairForm) -> Iterator[tuple[TileGrid, str | None]]:
        """The tilings to try, the whole frame first, and what to tell of each."""
        if form in self._tiling:
            yield self._tiling[form]
            return
        manifest = self._bundle.manifest
        H, W = manifest.padding.padded_size(*form.along_x)
        multiple = tile_multiple(manifest.network, manifest.padding.multiple, manifest.blur_cell)
        asked = self.tile if isinstance(self.tile, int) and form.restore else None
        if asked is None or max(H, W) <= asked:
            yield TileGrid.cover(H, W, (H, W), multiple=multiple), None
        if not form.restore or self.tile == OFF:
            return
        seen = {(H, W)}
        sides = TILE_SIDES if asked is None else (asked, *(side for side in TILE_SIDES if side < asked))
        coarse = [(side, side, multiple) for side in sides]
        # An engine for one size alone: the grid of attention windows has to give way.
        fine = [
            (*size, tile_multiple({}, manifest.padding.multiple, manifest.blur_cell))
            for size in self._source.fixed_sizes()
            if asked is None or max(size) <= asked
        ]
        for height, width, grid in coarse + fine:
            tile = fit_tile(H, height, multiple=grid), fit_tile(W, width, multiple=grid)
            if tile[0] is None or tile[1] is None or tile in seen:
                continue
            seen.add((tile[0], tile[1]))
            tiles = TileGrid.cover(H, W, (tile[0], tile[1]), multiple=grid)
            yield tiles, self._note(form, tiles, wanted=height == width == asked)

    def _note(self, form: PairForm, tiles: TileGrid, *, wanted: bool) -> str | None:
        """What to tell of tiles; those that were asked for need no word unless they differ from the whole."""
        (h, w), (th, tw) = form.along_x, tiles.tile
        pieces = f"it was restored in {len(tiles)} blended tiles of {tw} x {th} px"
        local = is_local(self._bundle.manifest.network)
        if not local:
            pieces += ", which differ from the whole: this network pools or attends over all it sees"
        if wanted:
            return None if local else pieces
        whole = "one piece" if self.tile == AUTO else "larger pieces"
        return (
            f"a pair of {w} x {h} px did not go through {self.device.name} in {whole} (its memory, or the sizes that "
            f"the engines take); {pieces}"
        )
