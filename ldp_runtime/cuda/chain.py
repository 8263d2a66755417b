"""The chain on a CUDA device: finds engines for a pair's size, keeps frame runners ready, takes tiles where it must."""

from __future__ import annotations

import contextlib
import itertools
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import EngineEntry, EngineFile
from ldp_runtime.chain import Chain, Progress
from ldp_runtime.cuda import arrays
from ldp_runtime.cuda.base import Device, Engine, OutOfDeviceMemoryError
from ldp_runtime.cuda.frame import FrameRunner
from ldp_runtime.cuda.frame_stages import FrameStages
from ldp_runtime.cuda.plan import PairForm, Plan
from ldp_runtime.cuda.prompt_table import PromptTable
from ldp_runtime.cuda.slot import Streams
from ldp_runtime.errors import BackendError
from ldp_runtime.result import PendingResult, StageClock
from ldp_runtime.stages.tiles import TileGrid, describe_tiles, tile_multiple, tilings
from ldp_runtime.tensors import is_device_array

RUNNERS = 2
"""Frame runners that are kept ready; one for another form of pair drops the one that was not used for longest."""


class EngineSource(ABC):
    """Where the engines of a bundle come from."""

    @abstractmethod
    def find(self, kind: str, shapes: dict[str, tuple[int, ...]]) -> EngineEntry:
        """The engine for inputs of these shapes.

        Raises:
            BackendError: There is none; the message says what there is and how to build one.
        """

    @abstractmethod
    def open(self, file: EngineFile) -> Engine:
        """Makes a file of an engine ready; once for each.

        Raises:
            BackendError: It is not trusted, damaged, or does not load here.
            OutOfDeviceMemoryError: There is not enough memory.
        """

    @abstractmethod
    def fixed_sizes(self) -> list[tuple[int, int]]:
        """``(H, W)`` of the deblur engines that take one size alone."""


class CudaChain(Chain):
    """The chain over a bundle's engines and the kernels of ``kernels/``, all of it on one device.

    Attributes:
        device: Where it runs.
    """

    device: Device
    warm_up_rounds = 2  # each of the frames in flight runs once before it is captured

    def __init__(
        self, name: str, device: Device, bundle: Bundle, engines: EngineSource, precision: str, tile: int | str
    ) -> None:
        """Opens no engine yet.

        Args:
            name: Name of the backend.
            device: Where to run.
            bundle: The bundle.
            engines: Where its engines come from.
            precision: Precision of the engines.
            tile: As for ``Deblurrer.from_bundle``.
        """
        self.name, self.precision, self.bundle, self.device = name, precision, bundle, device
        self._tile = tile
        self._source = engines
        self._lock = threading.RLock()
        device.activate()
        manifest = bundle.manifest
        self._streams = Streams.create(device)
        self._table: PromptTable | None = None
        if bundle.text_embeddings is not None:
            self._table = PromptTable.create(bundle.text_embeddings, manifest.prompts, manifest.ensemble)
        self._runners: OrderedDict[PairForm, tuple[FrameRunner, tuple[str, ...]]] = OrderedDict()
        self._in_flight: WeakSet[PendingResult] = WeakSet()
        self._waiting: WeakSet[PendingResult] = WeakSet()
        self._tilings_found: dict[PairForm, tuple[TileGrid, tuple[str, ...]]] = {}

    def view_impl(self, name: str, array: Any) -> Any:
        """Wraps another library's device array ``(h, w, 3)``; the next frame waits until it is written."""
        if not is_device_array(array):
            return super().view_impl(name, array)
        with self._lock:
            self.device.activate()
            return arrays.view(array, self.device, self._streams.compute)

    def open_impl(self, restores: bool) -> None:
        """Opens nothing: which engine runs a pair depends on its size."""

    def submit_impl(self, left: Any, right: Any, axis: str, restore: bool, progress: Progress | None) -> PendingResult:
        """See ``Chain``. Where pairs in flight have the memory, this one starts when its result is asked for.

        Raises:
            OutOfDeviceMemoryError: There is not enough memory, not even with small tiles.
        """
        form = PairForm((left.shape[0], left.shape[1]), left.dtype.newbyteorder("="), axis, restore)
        with self._lock:
            if all(pending.done for pending in self._waiting):  # none overtakes another
                try:
                    pending = self._submit(form, left, right)
                except OutOfDeviceMemoryError:
                    if not self._busy():
                        raise
                else:
                    self._in_flight.add(pending)
                    return pending
            waiting = PendingResult(lambda: self._submit(form, left, right).result())
            self._waiting.add(waiting)
            return waiting

    def _submit(self, form: PairForm, left: Any, right: Any) -> PendingResult:
        with self._lock:
            self.device.activate()
            if form in self._runners:
                self._runners.move_to_end(form)
                runner, notes = self._runners[form]
                try:
                    return runner.submit(left, right, self._fields(runner, notes, StageClock()))
                except OutOfDeviceMemoryError:  # another runner, or another pair in flight, has the memory
                    del runner
                    self._drop()
            return self._submit_new(form, left, right)

    def _submit_new(self, form: PairForm, left: Any, right: Any) -> PendingResult:
        first: BackendError | None = None
        for tiles, notes in self._tilings(form):
            plan = Plan.create(form, self.bundle.manifest, tiles)
            clip = self._source.find("clip", dict(plan.clip_shapes)) if plan.clip_shapes else None
            try:
                deblur = self._source.find("deblur", dict(plan.deblur_shapes)) if form.restore else None
            except BackendError as error:
                first = first or error
                continue
            for keep in (RUNNERS - 1, 0):  # once with another runner kept, once with all the memory
                try:
                    self._drop(keep)
                    runner, pending = self._started(plan, clip, deblur, left, right, notes)
                except OutOfDeviceMemoryError as error:
                    if not isinstance(first, OutOfDeviceMemoryError):
                        first = OutOfDeviceMemoryError(str(error))  # without the traceback, which keeps the memory
                    continue
                self._runners[form] = runner, notes
                self._tilings_found[form] = tiles, notes
                return pending
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
        self,
        plan: Plan,
        clip: EngineEntry | None,
        deblur: EngineEntry | None,
        left: Any,
        right: Any,
        notes: tuple[str, ...],
    ) -> tuple[FrameRunner, PendingResult]:
        """A new frame runner and its first frame; where memory runs out, nothing is left of either."""
        clock = StageClock()
        try:
            with clock("open"):
                clip_engine = self._source.open(clip.files[0]) if clip is not None else None
                engines = [self._source.open(file) for file in deblur.files] if deblur is not None else []
                stages = FrameStages(self._streams, plan, self.bundle.manifest, self._table, clip_engine, engines)
                runner = FrameRunner(self._streams, stages, self._lock)
            return runner, runner.submit(left, right, self._fields(runner, notes, clock))
        except BaseException:
            with contextlib.suppress(BackendError):
                self._streams.sync()  # the memory goes: nothing may be at work on it
            raise

    def _busy(self) -> bool:
        """Whether pairs are in flight: they keep their memory until their results were asked for."""
        return not all(pending.done for pending in self._in_flight)

    def _fields(self, runner: FrameRunner, notes: tuple[str, ...], clock: StageClock) -> dict[str, Any]:
        return {
            "backend": self.name,
            "precision": self.precision,
            "tiles": len(runner.plan.tiles),
            "notes": notes,
            "timings": {"open": clock.seconds.get("open", 0.0)},
        }

    def _drop(self, keep: int = 0) -> None:
        """Drops frame runners, the longest unused first; frames in flight keep theirs alive until they are done."""
        if not keep and self._runners:
            self._streams.sync()  # all the memory is wanted, and what was freed before is there once nothing runs
        while len(self._runners) > keep:
            self._runners.popitem(last=False)

    def _tilings(self, form: PairForm) -> Iterator[tuple[TileGrid, tuple[str, ...]]]:
        """The tilings to try, each with its notes for the user; of a size that ran, what was taken then comes first."""
        found = self._tilings_found.get(form)
        if found is None:
            yield from self._all_tilings(form)
            return
        yield found
        if not self._busy():
            following = itertools.dropwhile(lambda tiling: tiling[0] != found[0], self._all_tilings(form))
            yield from itertools.islice(following, 1, None)

    def _all_tilings(self, form: PairForm) -> Iterator[tuple[TileGrid, tuple[str, ...]]]:
        """One piece first, then smaller and smaller tiles."""
        manifest = self.bundle.manifest
        H, W = manifest.padding.padded_size(*form.along_x)
        if not form.restore:
            yield TileGrid.cover(H, W, (H, W), multiple=manifest.tile_multiple), ()
            return
        # An engine for one size alone: the grid of attention windows has to give way.
        step = tile_multiple({}, manifest.padding.multiple, manifest.blur_cell)
        sizes = [(*size, step) for size in self._source.fixed_sizes()]
        h, w = form.along_x
        reason = None
        for tiles in tilings(
            H, W, self._tile, manifest.network, manifest.tile_multiple, whole_first=True, engine_sizes=sizes
        ):
            yield tiles, describe_tiles(tiles, (w, h), manifest.network, reason)
            reason = f"{self.device.name} did not take larger pieces (its memory, or the sizes of its engines)"
