"""The pipeline: a dual-pixel pair in, the restored image and the blur map out."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.backends import graph_precision, select
from ldp_runtime.backends.base import EngineBackend, Session
from ldp_runtime.blur_map import blur_logits, upsample_map
from ldp_runtime.bundle import Bundle
from ldp_runtime.cuda.arrays import DeviceView, is_device_array
from ldp_runtime.errors import BackendError, BundleError, ImageError, NumericsError
from ldp_runtime.geometry import WindowGrid, fill_reflect, pad_reflect
from ldp_runtime.patch_blur_map import cut_patches, map_logits, patch_values, stretch

if TYPE_CHECKING:
    from ldp_runtime.cuda.runner import Runner, Running

AXES = ("horizontal", "vertical")
DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16))
CLIP_BATCH = 8
"""Windows that CLIP sees at a time, at most: bounds the memory that a large photo takes."""

_IN_FLIGHT = 2
"""Pairs that ``map`` has started on at a time: one is worked on while the result of the other is taken."""

PATCH_BATCH = 32
"""Patches that CLIP sees at a time, at most, where the blur map comes from patches."""

_MEND_NUMERICS = "use precision fp32, and if that does not help the bundle is at fault"

Image = NDArray[Any]


@dataclass(frozen=True, eq=False)
class BlurMapResult:
    """What ``Deblurrer.blur_map`` returns.

    Attributes:
        blur_map: ``(h, w)`` float32 in [0, 1], larger where it is more blurred.
        blur_logits: ``(H / p, W / p)`` float32 in [-10, 10], over the padded pair; p is CLIP's patch. Where the
            bundle's blur map comes from patches of the image, one value a patch.
        timings: Seconds by stage: ``open`` (near zero once the graphs are open), ``prepare``, ``clip``,
            ``blur_logits``, ``finish``. On a GPU these are times of the device, ``upload`` and ``download`` too.
        backend: Name of the backend that ran the graphs.
        precision: Precision that they ran in.
        notes: What to know of how the result was made, such as that it took tiles; sentences for people.
    """

    blur_map: NDArray[np.float32]
    blur_logits: NDArray[np.float32]
    timings: dict[str, float]
    backend: str
    precision: str
    notes: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True, eq=False)
class Result(BlurMapResult):
    """What a ``Deblurrer`` returns; ``timings`` also has ``deblur``.

    Attributes:
        restored: ``(h, w, 3)`` RGB, all in focus, in the dtype of the input.
    """

    restored: Image


class Deblurrer:
    """Restores dual-pixel pairs with one bundle on one backend. Graphs are opened when they are first needed.

    Attributes:
        bundle: The verified bundle.
        reason: A sentence that says which backend was picked and why.
    """

    bundle: Bundle
    reason: str

    def __init__(
        self, bundle: Bundle, *, backend: str = "auto", precision: str = "auto", threads: int | None = None
    ) -> None:
        """Makes a deblurrer of a loaded bundle; the arguments are those of ``from_bundle``."""
        self.bundle = bundle
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
        backend: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
    ) -> Deblurrer:
        """Loads and verifies a bundle and picks the backend.

        Args:
            bundle: A name or a folder, as for ``bundle.find_bundle``.
            backend: A name of ``backends.BACKENDS``, or ``"auto"`` for the fastest that works.
            precision: One of ``backends.PRECISIONS``, or ``"auto"`` for the backend's own.
            threads: CPU threads, at least 1; None leaves it to the backend.

        Raises:
            BundleError: The bundle is missing, damaged, or lacks the graphs of that precision.
            BackendError: The backend or precision is unknown or does not work here.
        """
        return cls(Bundle.load(bundle), backend=backend, precision=precision, threads=threads)

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
            NumericsError: NaN or Inf came up.
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
            NumericsError: NaN or Inf came up.
            BundleError: The bundle's graphs are not those of the pipeline.
            BackendError: The backend failed.
        """
        started: deque[_OnCpu | _OnGpu] = deque()
        try:
            for left, right in _ahead(pairs):
                started.append(self._start(left, right, axis, restore=True))
                if len(started) > _IN_FLIGHT - 1:
                    yield cast(Result, started.popleft().take())
            while started:
                yield cast(Result, started.popleft().take())
        finally:
            for left_over in started:
                left_over.discard()

    def blur_map(self, left: Image, right: Image, *, axis: str = "horizontal") -> BlurMapResult:
        """Estimates the blur map alone; the deblur graph is not opened.

        Args:
            left: As for a call.
            right: As for a call.
            axis: As for a call.

        Raises:
            ImageError: The views are not a pair.
            NumericsError: NaN or Inf came up.
            BundleError: The bundle's graphs are not those of the pipeline.
            BackendError: The backend failed.
        """
        return self._start(left, right, axis, restore=False).take()

    def _start(self, left: Image, right: Image, axis: str, *, restore: bool) -> _OnCpu | _OnGpu:
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
                self._runner = backend.open_bundle(self.bundle)
        runner = self._runner
        first, second = (runner.view(view) if is_device_array(view) else view for view in (left, right))
        _check_pair(first, second, axis)
        return _OnGpu(runner.submit(first, second, axis, restore), runner, clock.seconds, self.precision)

    def _restore_on_cpu(self, left: Image, right: Image, axis: str) -> Result:
        left, right = _along_x(left, right, axis)
        clock = _Clock()
        with clock("open"):
            clip, deblur = self._sessions("clip", "deblur")
        pair, logits = self._blur_logits(clip, left, right, clock)
        with clock("deblur"):
            restored = deblur.run({"pair": pair, **self._blur_feed(logits, pair.shape[2:])})["restored"]
        with clock("finish"):
            if restored.shape != (1, 3, *pair.shape[2:]):
                raise BundleError(
                    f"expected restored (1, 3, {pair.shape[2]}, {pair.shape[3]}) of the deblur graph, "
                    f"came {restored.shape}; export the bundle again with ldp-export onnx"
                )
            image = _to_image(restored[0], left, axis)
            fields = self._map_fields(logits, image.shape[:2], axis)
        return Result(restored=image, timings=clock.seconds, **fields)

    def _map_on_cpu(self, left: Image, right: Image, axis: str) -> BlurMapResult:
        left, right = _along_x(left, right, axis)
        clock = _Clock()
        with clock("open"):
            (clip,) = self._sessions("clip")
        _, logits = self._blur_logits(clip, left, right, clock)
        with clock("finish"):
            h, w = left.shape[:2]
            fields = self._map_fields(logits, (h, w) if axis == "horizontal" else (w, h), axis)
        return BlurMapResult(timings=clock.seconds, **fields)

    def _map_fields(self, logits: NDArray[np.float32], size: tuple[int, ...], axis: str) -> dict[str, Any]:
        """The fields of a result but ``timings`` and ``restored``; ``size`` is the image's (h, w) in px."""
        logits = logits if axis == "horizontal" else np.ascontiguousarray(logits.T)
        return {
            "blur_map": upsample_map(logits, (size[0], size[1]), self.bundle.manifest.blur_cell),
            "blur_logits": logits,
            "backend": self.backend,
            "precision": self.precision,
        }

    def _pick(self) -> None:
        backend, precision = self._asked
        self._backend, self.reason = select(backend, precision, failed=self._failed)
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
            came = {spec.name for spec in specs}
            if came != names:
                raise BundleError(
                    f"{path}: expected the {what} {', '.join(sorted(names))}, "
                    f"came {', '.join(sorted(came))}; export the bundle again with ldp-export onnx"
                )
        return session

    def _blur_logits(
        self, clip: Session, left: Image, right: Image, clock: _Clock
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The padded pair ``(1, 6, H, W)`` and its blur logits, one a ``blur_cell``."""
        manifest = self.bundle.manifest
        h, w = left.shape[:2]
        with clock("prepare"):
            pair = _prepare(left, right, manifest.padding.padded_size(h, w))
        if manifest.blur_map.patch is None:
            logits = self._window_logits(clip, pair, clock)
        else:
            logits = self._patch_logits(clip, pair[0, :, :h, :w], manifest.blur_map.patch, clock)
        if not np.isfinite(logits).all():
            raise NumericsError(
                f"expected finite blur logits, came NaN or Inf in {np.sum(~np.isfinite(logits))} of "
                f"{logits.size}; {_MEND_NUMERICS}"
            )
        return pair, logits

    def _blur_feed(self, logits: NDArray[np.float32], size: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
        """The input of the deblur graph that brings the blur; ``size`` is the padded pair's (H, W) in px."""
        manifest = self.bundle.manifest
        if manifest.blur_map.network_input == "logits":
            return {"blur_logits": logits[None, None]}
        return {"blur_map": upsample_map(logits, (size[0], size[1]), manifest.blur_cell)[None, None]}

    def _patch_logits(self, clip: Session, pair: NDArray[np.float32], side: int, clock: _Clock) -> NDArray[np.float32]:
        """Blur logits of patches of ``side`` px of a pair ``(6, h, w)`` without padding, by their pooled features."""
        (spec,) = clip.inputs
        with clock("prepare"):
            patches = cut_patches(pair, side).astype(spec.dtype, copy=False)
            rows, columns = patches.shape[:2]
            patches = patches.reshape(rows * columns, *patches.shape[2:])
        values = []
        for first in range(0, len(patches), PATCH_BATCH):
            with clock("clip"):
                features = clip.run({"patches": patches[first : first + PATCH_BATCH]})["features"]
            with clock("blur_logits"), np.errstate(all="ignore"):
                values.append(patch_values(features, self.bundle.text_embeddings, self.bundle.manifest.prompts[0]))
        with clock("blur_logits"), np.errstate(all="ignore"):
            return map_logits(stretch(np.concatenate(values).reshape(rows, columns)))

    def _window_logits(self, clip: Session, pair: NDArray[np.float32], clock: _Clock) -> NDArray[np.float32]:
        """Blur logits ``(H / p, W / p)`` of a padded pair ``(1, 6, H, W)``, window by window."""
        manifest = self.bundle.manifest
        p, s = manifest.clip.patch, manifest.clip.window
        with clock("prepare"):
            H, W = pair.shape[2:]
            grid = WindowGrid.cover(H, W, window=s, overlap=manifest.clip.overlap, patch=p)
            source = pad_reflect(pair[0], (grid.rows.grid * p, grid.columns.grid * p))
        dtypes = {spec.name: spec.dtype for spec in clip.inputs}
        origins = grid.origins()
        fields = []
        for first in range(0, len(origins), CLIP_BATCH):
            with clock("prepare"):
                regions = [source[:, y * p : y * p + s, x * p : x * p + s] for y, x in origins[first:][:CLIP_BATCH]]
                stereo, center = _canvases(regions, manifest.clip.mean, manifest.clip.std)
                feeds = {"stereo": stereo, "center": center}
                feeds = {name: array.astype(dtypes[name], copy=False) for name, array in feeds.items()}
            with clock("clip"):
                features = clip.run(feeds)
            with clock("blur_logits"), np.errstate(all="ignore"):  # NaN is looked for at the end
                fields.append(
                    blur_logits(
                        features["stereo_features"],
                        features["center_features"],
                        self.bundle.text_embeddings,
                        manifest.prompts,
                        manifest.ensemble,
                    )
                )
        with clock("blur_logits"):
            return np.ascontiguousarray(grid.blend(np.concatenate(fields))[: H // p, : W // p])


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
        return BlurMapResult(**fields) if outcome.image is None else Result(restored=outcome.image, **fields)

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
        raise ImageError(f"expected an axis, one of {', '.join(AXES)}, came {axis!r}")
    for name, view in (("left", left), ("right", right)):
        _check_view(name, view)
    if left.shape != right.shape:
        raise ImageError(
            f"expected two views of one size, came left {left.shape[1]} x {left.shape[0]} px and right "
            f"{right.shape[1]} x {right.shape[0]} px; crop them alike or choose the two files of one photo"
        )
    if left.dtype.itemsize != right.dtype.itemsize:
        raise ImageError(
            f"expected two views of one bit depth, came left {left.dtype} and right {right.dtype}; "
            "convert both to the same"
        )
    if isinstance(left, DeviceView) != isinstance(right, DeviceView):
        raise ImageError("expected both views on the host or both on the device, came one of each; copy one over")


def _along_x(left: Image, right: Image, axis: str) -> tuple[Image, Image]:
    """Turns a pair, without a copy, so that its disparity runs along x."""
    if axis == "vertical":
        return left.transpose(1, 0, 2), right.transpose(1, 0, 2)
    return left, right


def _check_view(name: str, view: object) -> None:
    expected = f"expected {name} as a NumPy array (h, w, 3) of uint8 or uint16"
    if is_device_array(view):
        raise ImageError(f"{expected}, came one on a device ({type(view).__name__}); choose the backend cuda for it")
    if not isinstance(view, (np.ndarray, DeviceView)):
        raise ImageError(f"{expected}, came {type(view).__name__}; convert it with numpy.asarray")
    if view.ndim != 3 or view.shape[2] != 3:
        mend = "give RGB: repeat a grey channel three times, drop alpha"
        raise ImageError(f"{expected}, came shape {view.shape}; {mend}")
    if view.dtype.newbyteorder("=") not in DTYPES:
        raise ImageError(f"{expected}, came {view.dtype}; scale it to 0..255 as uint8 or 0..65535 as uint16")
    if 0 in view.shape:
        raise ImageError(f"{expected}, came an empty image {view.shape}; give at least 1 x 1 px")


def _prepare(left: Image, right: Image, size: tuple[int, int]) -> NDArray[np.float32]:
    """The pair ``(1, 6, H, W)`` float32 in [0, 1], padded bottom and right (reflect-101)."""
    h, w = left.shape[:2]
    scale = np.float32(np.iinfo(left.dtype).max)
    pair = np.empty((1, 6, *size), dtype=np.float32)
    for first, view in ((0, left), (3, right)):
        for c in range(3):
            np.divide(view[..., c], scale, out=pair[0, first + c, :h, :w], dtype=np.float32)
    fill_reflect(pair, h, w)
    return pair


def _canvases(
    regions: list[NDArray[np.float32]], mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What CLIP sees of each region, normalised.

    Args:
        regions: ``(6, s, s)`` each, float32 in [0, 1]: L, then R.
        mean: Mean of R, G, B.
        std: Standard deviation of R, G, B.

    Returns:
        The stereo canvases ``(B, 3, s, 2 s)``, L beside the flipped R, so that column x mirrors to
        2 s - 1 - x; and the center views ``(B, 3, s, s)``.
    """
    s = regions[0].shape[1]
    stereo = np.empty((len(regions), 3, s, 2 * s), dtype=np.float32)
    center = np.empty((len(regions), 3, s, s), dtype=np.float32)
    offset, scale = (np.asarray(value, np.float32).reshape(3, 1, 1) for value in (mean, std))
    for region, canvas, middle in zip(regions, stereo, center, strict=True):
        left = canvas[:, :, :s]
        right = canvas[:, :, : s - 1 : -1]  # the right half read from its right edge: R before its flip
        np.subtract(region[:3], offset, out=left)
        np.subtract(region[3:], offset, out=right)
        canvas /= scale
        np.add(left, right, out=middle)
        middle *= np.float32(0.5)
    return stereo, center


def _to_image(restored: NDArray[Any], view: Image, axis: str) -> Image:
    """Crops, clamps, rounds half to even and converts to the input's dtype.

    Args:
        restored: ``(3, H, W)`` float32, not clamped.
        view: ``(h, w, 3)``, a view of the pair along x, for its size and dtype.
        axis: As for a call: the image is turned back.

    Returns:
        ``(h, w, 3)``, or ``(w, h, 3)`` for ``"vertical"``, contiguous, in the machine's byte order.

    Raises:
        NumericsError: NaN or Inf anywhere, the padding included.
    """
    with np.errstate(invalid="ignore"):
        extremes = restored.min(), restored.max()
    if not np.isfinite(extremes).all():
        bad = ~np.isfinite(restored)
        c, y, x = (int(at) for at in np.unravel_index(np.argmax(bad), bad.shape))
        raise NumericsError(
            f"expected finite numbers in the restored image, came NaN or Inf in {np.sum(bad)} of {bad.size}, "
            f"first at channel {c}, y {y}, x {x}; {_MEND_NUMERICS}"
        )
    h, w = view.shape[:2]
    dtype = view.dtype.newbyteorder("=")
    top = np.float32(np.iinfo(dtype).max)
    image = np.empty((h, w, 3) if axis == "horizontal" else (w, h, 3), dtype=dtype)
    along_x = image if axis == "horizontal" else image.transpose(1, 0, 2)
    plane = np.empty((h, w), dtype=np.float32)
    for c in range(3):
        np.multiply(restored[c, :h, :w], top, out=plane)
        np.clip(np.rint(plane, out=plane), 0, top, out=plane)
        along_x[..., c] = plane
    return image
