"""The pipeline: a dual-pixel pair in, the restored image and the blur map out."""

from __future__ import annotations

import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.backends import graph_precision, select
from ldp_runtime.backends.base import Backend, EngineBackend, Session
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.cuda.arrays import DeviceView, is_device_array
from ldp_runtime.errors import BackendError, BundleError, ImageError, NumericsError, one_line
from ldp_runtime.result import BlurMapResult, Result
from ldp_runtime.stages.blur_map import blur_logits, upsample_map
from ldp_runtime.stages.geometry import WindowGrid
from ldp_runtime.stages.patch_blur_map import cut_patches, map_logits, patch_values, stretch
from ldp_runtime.stages.pixels import (
    FIX_NUMERICS,
    Image,
    PaddedPair,
    canvases,
    check_features,
    check_finite,
    new_image,
    write_pixels,
)
from ldp_runtime.stages.tiles import (
    AUTO,
    TileBlender,
    TileGrid,
    check_tile,
    is_local,
    ran_out_of_memory,
    tile_multiple,
    tilings,
)

if TYPE_CHECKING:
    from ldp_runtime.cuda.runner import Runner, Running

AXES = ("horizontal", "vertical")
DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16))
CLIP_BATCH = 8
"""Windows that CLIP sees at a time, at most: bounds the memory that a large photo takes."""

IN_FLIGHT = 2
"""Pairs that ``map`` has started on at a time: one is worked on while the result of the other is taken."""

PATCH_BATCH = 32
"""Patches that CLIP sees at a time, at most, where the blur map comes from patches."""


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
        manifest = bundle.manifest
        self._multiple = tile_multiple(manifest.network, manifest.padding.multiple, manifest.blur_cell)
        self._tile = check_tile(tile, self._multiple)
        self._too_large: int | None = None
        self._asked = (backend, precision)
        self._threads = threads
        self._failed: dict[str, str] = {}
        self._open: dict[str, Session] = {}
        self._runner: Runner | None = None
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
            bundle: A name or a folder, as for ``bundle.find_bundle``.
            backend: A name of ``backends.BACKENDS``, ``"auto"`` for the fastest that works, or a backend of your own.
            precision: One of ``backends.PRECISIONS``, or ``"auto"`` for the backend's own.
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

    def __call__(self, left: Image, right: Image, *, axis: str = "horizontal") -> Result:
        """Restores a pair.

        Args:
            left: ``(h, w, 3)`` uint8 or uint16 RGB, any size from 1 x 1 px, any strides and byte order.
            right: The other view, of the same shape and dtype.
            axis: Direction of the disparity: ``"horizontal"``, or ``"vertical"`` for sensors that split top
                and bottom (then ``left`` is the top view).

        Returns:
            The restored image and the blur map.

        Raises:
            ImageError: The views are not such a pair.
            NumericsError: NaN or Inf appeared.
            BundleError: The bundle's graphs are not those of the pipeline.
            BackendError: The backend failed.
        """
        return cast(Result, self._start(left, right, axis, restore=True).take())

    def map(self, pairs: Iterable[tuple[Image, Image]], *, axis: str = "horizontal") -> Iterator[Result]:
        """Restores a sequence of pairs; what reads them, the copies, the GPU and what is done with a result overlap.

        ``pairs`` is read in a thread of its own, one pair ahead. On a GPU the work on a pair goes on while the caller
        has the result of the one before. Errors come in the place of the result, and end the sequence.

        Args:
            pairs: The left and right view of each, as for a call; sizes may differ.
            axis: As for a call.

        Yields:
            The results, in order.

        Raises:
            ImageError: The views are not a pair.
            NumericsError: NaN or Inf appeared.
            BundleError: The bundle's graphs are not those of the pipeline.
            BackendError: The backend failed.
        """
        started: deque[Started] = deque()
        try:
            for left, right in _ahead(pairs):
                started.append(self._start(left, right, axis, restore=True))
                if len(started) == IN_FLIGHT:
                    yield cast(Result, started.popleft().take())
            while started:
                yield cast(Result, started.popleft().take())
        finally:
            for left_over in started:
                left_over.discard()

    def start(self, left: Image, right: Image, *, axis: str = "horizontal") -> Started:
        """Starts on a pair; ``take`` of what comes back waits for its ``Result``.

        On a GPU the work goes on meanwhile; on a CPU ``take`` does it. Pairs that are started one after the other are
        to be taken in that order, ``IN_FLIGHT`` at a time. An error of one leaves the others alone.

        Args:
            left: As for a call.
            right: As for a call; neither may change until the result is taken.
            axis: As for a call.

        Raises:
            ImageError: The views are not a pair.
            BundleError: The bundle's graphs are not those of the pipeline.
            BackendError: The backend failed.
        """
        return self._start(left, right, axis, restore=True)

    def blur_map(self, left: Image, right: Image, *, axis: str = "horizontal") -> BlurMapResult:
        """Estimates the blur map alone; the deblur graph is not opened.

        Args:
            left: As for a call.
            right: As for a call.
            axis: As for a call.

        Raises:
            ImageError: The views are not a pair.
            NumericsError: NaN or Inf appeared.
            BundleError: The bundle's graphs are not those of the pipeline.
            BackendError: The backend failed.
        """
        return self._start(left, right, axis, restore=False).take()

    def _start(self, left: Image, right: Image, axis: str, *, restore: bool) -> Started:
        """Starts on a pair; "auto" goes on to the next backend when one cannot."""
        while isinstance(self._backend, EngineBackend):
            try:
                return self._start_on_gpu(self._backend, left, right, axis, restore)
            except BackendError as error:
                if is_device_array(left):  # no other backend takes it
                    raise
                self._pass_over(error)
        _check_pair(left, right, axis)
        return _OnCpu((self._restore_on_cpu if restore else self._map_on_cpu), left, right, axis)

    def _start_on_gpu(self, backend: EngineBackend, left: Image, right: Image, axis: str, restore: bool) -> _OnGpu:
        clock = _Clock()
        with clock("open"):
            if self._runner is None:
                self._runner = backend.open_bundle(self.bundle, self._precision)
                self._runner.tile = self._tile
        runner = self._runner
        first, second = (runner.view(view) if is_device_array(view) else view for view in (left, right))
        _check_pair(first, second, axis)
        return _OnGpu(runner.submit(first, second, axis, restore), runner, clock.seconds, self.precision)

    def _restore_on_cpu(self, left: Image, right: Image, axis: str) -> Result:
        left, right = _along_x(left, right, axis)
        clock = _Clock()
        with clock("open"):
            self._sessions("clip", "deblur")  # both, before the first is run
        padded, logits = self._blur_logits(left, right, clock)
        image, tiles, notes = self._restore(padded, logits, left, axis, clock)
        # Not a method: a result must not keep the graphs and their memory.
        blur_map = functools.partial(_upsample, logits, image.shape[:2], axis, self.bundle.manifest.blur_cell)
        fields = self._common_fields(logits, axis)
        return Result(blur_map, restored=image, timings=clock.seconds, notes=notes, tiles=len(tiles), **fields)

    def _map_on_cpu(self, left: Image, right: Image, axis: str) -> BlurMapResult:
        left, right = _along_x(left, right, axis)
        clock = _Clock()
        with clock("open"):
            self._sessions("clip")
        _, logits = self._blur_logits(left, right, clock)
        with clock("finish"):
            h, w = left.shape[:2]
            size = (h, w) if axis == "horizontal" else (w, h)
            blur_map = _upsample(logits, size, axis, self.bundle.manifest.blur_cell)
        return BlurMapResult(blur_map, timings=clock.seconds, **self._common_fields(logits, axis))

    def _common_fields(self, logits: NDArray[np.float32], axis: str) -> dict[str, Any]:
        upright = logits if axis == "horizontal" else np.ascontiguousarray(logits.T)
        return {"blur_logits": upright, "backend": self.backend, "precision": self.precision}

    def _restore(
        self, padded: PaddedPair, logits: NDArray[np.float32], view: Image, axis: str, clock: _Clock
    ) -> tuple[Image, TileGrid, tuple[str, ...]]:
        """Restores a pair in one piece or in tiles, in smaller ones where memory runs out.

        Returns:
            The image, its tiles, and what to tell of them.

        Raises:
            BackendError: Memory runs out even with the smallest tiles.
        """
        network = self.bundle.manifest.network
        h, w = view.shape[:2]
        too_large, reason = self._too_large, None
        for tiles in tilings(*padded.size, self._tile, network, self._multiple):
            area = tiles.tile[0] * tiles.tile[1]
            if too_large is not None and area >= too_large:
                continue
            try:
                image = self._restore_tiles(tiles, padded, logits, view, axis, clock)
            except (MemoryError, BackendError) as error:
                if not ran_out_of_memory(error):
                    raise
                too_large, reason = area, one_line(error)
                self._open.pop("deblur", None)  # it may hold on to memory
                continue
            self._too_large = too_large
            pieces = f"{len(tiles)} blended tiles of {tiles.tile[1]} x {tiles.tile[0]} px"
            notes = []
            if too_large is not None and reason is not None:
                notes.append(
                    f"memory ran out with larger pieces of a pair of {w} x {h} px; it was restored in {pieces}"
                )
            if len(tiles) > 1 and not is_local(network):
                notes.append(f"{pieces} differ from the whole: this network pools or attends over all it sees")
            return image, tiles, tuple(notes)
        raise BackendError(
            f"a pair of {w} x {h} px does not fit into memory in pieces as small as allowed ({reason}); close other "
            "programs, or allow smaller tiles with --tile"
        )

    def _restore_tiles(
        self,
        tiles: TileGrid,
        padded: PaddedPair,
        logits: NDArray[np.float32],
        view: Image,
        axis: str,
        clock: _Clock,
    ) -> Image:
        """Restores a pair tile by tile; beyond the image it keeps a tile and the seams.

        Args:
            tiles: The tiles; one is the whole.
            padded: The pair.
            logits: Its blur logits.
            view: ``(h, w, 3)``, a view of the pair along x.
            axis: As for a call.
            clock: Takes the times.
        """
        with clock("open"):
            (deblur,) = self._sessions("deblur")
        cell = self.bundle.manifest.blur_cell
        th, tw = tiles.tile
        image, pixels = new_image(view, axis)
        blender = TileBlender(tiles) if len(tiles) > 1 else None
        for y, x in tiles.origins():
            with clock("prepare"):
                part = logits[y // cell : -(-(y + th) // cell), x // cell : -(-(x + tw) // cell)]
                feeds = {"pair": padded.region(y, x, th, tw)[None], **self._blur_feed(part, (th, tw))}
            with clock("deblur"):
                restored = cast(NDArray[np.float32], deblur.run(feeds)["restored"])
            with clock("finish"):
                if restored.shape != (1, 3, th, tw):
                    raise BundleError(
                        f"expected restored (1, 3, {th}, {tw}) of the deblur graph, got {restored.shape}; "
                        "export the bundle again with ldp-export onnx"
                    )
                check_finite(restored[0], (y, x))
                (top, start), block = ((y, x), restored[0]) if blender is None else blender.add(restored[0])
                write_pixels(block, pixels[top : top + block.shape[1], start : start + block.shape[2]])
        return image

    def _pick(self) -> None:
        backend, precision = self._asked
        self._backend, self.reason, self.passed_over = select(backend, precision, failed=self._failed)
        self._precision = self._backend.resolve(precision)

    def _pass_over(self, error: BackendError) -> None:
        """Goes on to the next backend if the choice is ours.

        Raises:
            BackendError: It is not, or there is none left.
        """
        if self._asked[0] != "auto":
            raise error
        self._failed[self._backend.name] = str(error)
        self._open.clear()
        self._runner = None
        self._pick()

    def _sessions(self, *kinds: str) -> list[Session]:
        """Sessions of these graphs, all on one backend; "auto" goes on to the next when one does not open."""
        while True:
            try:
                for kind in kinds:
                    if kind not in self._open:
                        self._open[kind] = self._session(kind)
                return [self._open[kind] for kind in kinds]
            except BackendError as error:
                self._pass_over(error)

    def _session(self, kind: str) -> Session:
        path = self.bundle.graph(kind, graph_precision(self._precision))
        session = self._backend.open(path, self._precision, self._threads, content=self.bundle.content)
        for what, specs, names in zip(
            ("inputs", "outputs"),
            (session.inputs, session.outputs),
            self.bundle.manifest.graph_names(kind),
            strict=True,
        ):
            got = {spec.name for spec in specs}
            if got != names:
                raise BundleError(
                    f"{path}: expected the {what} {', '.join(sorted(names))}, "
                    f"got {', '.join(sorted(got))}; export the bundle again with ldp-export onnx"
                )
        return session

    def _blur_logits(self, left: Image, right: Image, clock: _Clock) -> tuple[PaddedPair, NDArray[np.float32]]:
        """The padded pair and its blur logits, one a ``blur_cell``."""
        manifest = self.bundle.manifest
        padded = PaddedPair(left, right, manifest.padding.padded_size(*left.shape[:2]))
        if manifest.blur_map.patch is None:
            logits = self._window_logits(padded, clock)
        else:
            logits = self._patch_logits(left, right, manifest.blur_map.patch, clock)
        if not np.isfinite(logits).all():
            raise NumericsError(
                f"expected finite blur logits, got NaN or Inf in {np.sum(~np.isfinite(logits))} of "
                f"{logits.size}; {FIX_NUMERICS}"
            )
        return padded, logits

    def _blur_feed(self, logits: NDArray[np.float32], size: tuple[int, int]) -> dict[str, NDArray[np.float32]]:
        """The input of the deblur graph that brings the blur of a tile; ``size`` is its height and width in px."""
        manifest = self.bundle.manifest
        if manifest.blur_map.network_input == "logits":
            return {"blur_logits": logits[None, None]}
        return {"blur_map": upsample_map(logits, size, manifest.blur_cell)[None, None]}

    def _patch_logits(self, left: Image, right: Image, side: int, clock: _Clock) -> NDArray[np.float32]:
        """Blur logits of patches of ``side`` px of a pair without padding, by their pooled features."""
        (clip,) = self._sessions("clip")
        (spec,) = clip.inputs
        rows, columns = (-(-n // side) for n in left.shape[:2])
        source = PaddedPair(left, right, (rows * side, columns * side))
        origins = [(i * side, j * side) for i in range(rows) for j in range(columns)]
        embeddings, values = self.bundle.text_embeddings, []
        assert embeddings is not None  # it has a CLIP graph
        for first in range(0, len(origins), PATCH_BATCH):
            with clock("prepare"):
                chosen = origins[first : first + PATCH_BATCH]
                patches = np.concatenate([cut_patches(source.region(y, x, side, side), side)[0] for y, x in chosen])
            with clock("clip"):
                features = clip.run({"patches": patches.astype(spec.dtype, copy=False)})["features"]
                self._check_features({"features": features}, {"features": (len(chosen),)})
            with clock("blur_logits"), np.errstate(all="ignore"):
                values.append(patch_values(features, embeddings, self.bundle.manifest.prompts[0]))
        with clock("blur_logits"), np.errstate(all="ignore"):
            return map_logits(stretch(np.concatenate(values).reshape(rows, columns)))

    def _check_features(self, features: Mapping[str, NDArray[Any]], positions: Mapping[str, tuple[int, ...]]) -> None:
        """Checks what CLIP gave: one feature a position, all of them numbers."""
        for name, shape in positions.items():
            expected, got = (*shape, self.bundle.manifest.require_clip().embed_dim), features[name]
            if got.shape != expected or got.dtype.kind != "f":
                raise BundleError(
                    f"expected {name} {expected} of the clip graph, got {got.shape} {got.dtype}; "
                    "export the bundle again with ldp-export onnx"
                )
        check_features(features)

    def _window_logits(self, padded: PaddedPair, clock: _Clock) -> NDArray[np.float32]:
        """Blur logits ``(H / p, W / p)`` of a padded pair, window by window."""
        manifest = self.bundle.manifest
        (clip,) = self._sessions("clip")
        spec, embeddings = manifest.require_clip(), self.bundle.text_embeddings
        assert embeddings is not None  # it has a CLIP graph
        p, s = spec.patch, spec.window
        H, W = padded.size
        grid = WindowGrid.cover(H, W, window=s, overlap=spec.overlap, patch=p)
        source = padded.extended((grid.rows.grid * p, grid.columns.grid * p))
        dtypes = {spec.name: spec.dtype for spec in clip.inputs}
        origins = grid.origins()
        fields = []
        for first in range(0, len(origins), CLIP_BATCH):
            with clock("prepare"):
                regions = [source.region(y * p, x * p, s, s) for y, x in origins[first : first + CLIP_BATCH]]
                stereo, center = canvases(regions, spec.mean, spec.std)
                feeds = {"stereo": stereo, "center": center}
                feeds = {name: array.astype(dtypes[name], copy=False) for name, array in feeds.items()}
            with clock("clip"):
                features = clip.run(feeds)
                n, side = len(center), s // p
            positions = {"stereo_features": (n, side, 2 * side), "center_features": (n, side, side)}
            self._check_features(features, positions)
            with clock("blur_logits"), np.errstate(all="ignore"):  # NaN is looked for at the end
                fields.append(
                    blur_logits(
                        features["stereo_features"],
                        features["center_features"],
                        embeddings,
                        manifest.prompts,
                        manifest.ensemble,
                    )
                )
        with clock("blur_logits"):
            return np.ascontiguousarray(grid.blend(np.concatenate(fields))[: H // p, : W // p])


class Started(Protocol):
    """A pair that a ``Deblurrer`` has started on."""

    def take(self) -> BlurMapResult:
        """Waits for the result, a ``Result`` where the pair is restored; raises what went wrong, see ``Deblurrer``."""

    def discard(self) -> None:
        """Forgets the pair, if it was not taken."""


@dataclass(frozen=True, eq=False)
class _OnCpu:
    """A pair that is restored when its result is taken."""

    run: Callable[[Image, Image, str], BlurMapResult]
    left: Image
    right: Image
    axis: str

    def take(self) -> BlurMapResult:
        return self.run(self.left, self.right, self.axis)

    def discard(self) -> None:
        """There is nothing to stop."""


@dataclass(frozen=True, eq=False)
class _OnGpu:
    """A pair that the GPU works on."""

    running: Running
    runner: Runner
    opened: dict[str, float]
    precision: str

    def take(self) -> BlurMapResult:
        outcome, notes = self.running.take()
        fields: dict[str, Any] = {
            "blur_map": outcome.blur_map,
            "blur_logits": outcome.blur_logits,
            "timings": self.opened | outcome.timings,
            "backend": self.runner.name,
            "precision": self.precision,
            "notes": notes,
        }
        if outcome.image is None:
            return BlurMapResult(**fields)
        return Result(restored=outcome.image, tiles=self.running.tiles, **fields)

    def discard(self) -> None:
        self.running.discard()


def _ahead(pairs: Iterable[tuple[Image, Image]]) -> Iterator[tuple[Image, Image]]:
    """The same pairs, each read by a thread of its own while the caller is at the one before."""
    iterator = iter(pairs)
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ldp-read") as thread:
        following = thread.submit(next, iterator, end)
        while (pair := following.result()) is not end:
            following = thread.submit(next, iterator, end)
            yield cast(tuple[Image, Image], pair)


def _upsample(logits: NDArray[np.float32], size: tuple[int, ...], axis: str, cell: int) -> NDArray[np.float32]:
    """The blur map of logits along x, one a ``cell``; ``size`` is the upright image's (h, w) in px."""
    upright = logits if axis == "horizontal" else logits.T
    return upsample_map(upright, (size[0], size[1]), cell)


class _Clock:
    """Seconds by stage; a stage that comes up again adds to its time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def _check_pair(left: Any, right: Any, axis: str) -> None:
    """Raises ImageError unless these are a pair, on the host or on the device."""
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
    if isinstance(left, DeviceView) != isinstance(right, DeviceView):
        raise ImageError("expected both views on the host or both on the device, got one of each; copy one over")


def _along_x(left: Image, right: Image, axis: str) -> tuple[Image, Image]:
    """Turns a pair, without a copy, so that its disparity runs along x."""
    if axis == "vertical":
        return left.transpose(1, 0, 2), right.transpose(1, 0, 2)
    return left, right


def _check_view(name: str, view: object) -> None:
    expected = f"expected {name} as a NumPy array (h, w, 3) of uint8 or uint16"
    if is_device_array(view):
        raise ImageError(f"{expected}, got one on a device ({type(view).__name__}); choose the backend cuda for it")
    if not isinstance(view, (np.ndarray, DeviceView)):
        raise ImageError(f"{expected}, got {type(view).__name__}; convert it with numpy.asarray")
    if view.ndim != 3 or view.shape[2] != 3:
        fix = "give RGB: repeat a grey channel three times, drop alpha"
        raise ImageError(f"{expected}, got shape {view.shape}; {fix}")
    if view.dtype.newbyteorder("=") not in DTYPES:
        raise ImageError(f"{expected}, got {view.dtype}; scale it to 0..255 as uint8 or 0..65535 as uint16")
    if 0 in view.shape:
        raise ImageError(f"{expected}, got an empty image {view.shape}; give at least 1 x 1 px")
