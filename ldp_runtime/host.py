"""The chain over a backend's sessions: prepare, CLIP window by window, blur logits, deblur tile by tile, finish."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.backends.base import Session, SessionBackend, graph_precision
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import feature_shapes
from ldp_runtime.chain import Chain, Progress
from ldp_runtime.errors import BackendError, BundleError, NumericsError, one_line
from ldp_runtime.result import PendingResult, Result, StageClock
from ldp_runtime.stages.blend import TileBlender
from ldp_runtime.stages.blur_map import blur_logits, upsample_map
from ldp_runtime.stages.geometry import WindowGrid
from ldp_runtime.stages.patch_blur_map import cut_patches, map_logits, patch_values, stretch
from ldp_runtime.stages.pixels import (
    FIX_NUMERICS,
    Image,
    PaddedPair,
    check_features,
    new_image,
    write_pixels,
)
from ldp_runtime.stages.tiles import TileGrid, describe_tiles, ran_out_of_memory, tilings
from ldp_runtime.threads import each

CLIP_BATCH = 8
"""Windows that CLIP sees at a time, at most: bounds the memory that a large photo takes."""

PATCH_BATCH = 32
"""Patches that CLIP sees at a time, at most, where the blur map comes from patches."""

BLUR_SHARE = 0.3
"""Share of the time that the blur map takes, for the progress alone."""

_FIX_GRAPHS = "export the bundle again with ldp-export onnx"

Floats = NDArray[np.float32]


class HostChain(Chain):
    """The chain whose graphs run in sessions of a backend; the stages between them run in NumPy on the host."""

    def __init__(
        self, bundle: Bundle, backend: SessionBackend, precision: str, threads: int | None, tile: int | str
    ) -> None:
        """Opens nothing yet.

        Args:
            bundle: The bundle.
            backend: What runs its graphs.
            precision: One of the backend's precisions.
            threads: CPU threads; None leaves it to the backend.
            tile: As for ``Deblurrer.from_bundle``.
        """
        self.name, self.precision, self.bundle = backend.name, precision, bundle
        self._backend, self._threads, self._tile = backend, threads, tile
        self._sessions: dict[str, Session] = {}
        self._too_large: int | None = None

    def open_impl(self, restores: bool) -> None:
        """Opens the graphs that are not open yet, side by side."""
        wanted = {"clip": self.bundle.manifest.reads_blur_map, "deblur": restores}
        each(self._session, [kind for kind in wanted if wanted[kind] and kind not in self._sessions])

    def submit_impl(self, left: Any, right: Any, axis: str, restore: bool, progress: Progress | None) -> PendingResult:
        """Opens the graphs; the work is done when the result is asked for."""
        clock = StageClock()
        with clock("open"):  # all of them, before the first is run
            self.open_impl(restore)
        return PendingResult(functools.partial(self._run, left, right, axis, restore, clock, progress or _ignore))

    def _run(
        self, left: Image, right: Image, axis: str, restore: bool, clock: StageClock, progress: Progress
    ) -> Result:
        size = left.shape[:2]
        if axis == "vertical":  # turned without a copy, so that the disparity runs along x
            left, right = left.transpose(1, 0, 2), right.transpose(1, 0, 2)
        padded = PaddedPair(left, right, self.bundle.manifest.padding.padded_size(*left.shape[:2]))
        logits = upright = image = None
        blur_map: Any = None
        tiles, notes = 1, tuple[str, ...]()
        if self.bundle.manifest.reads_blur_map:
            share = BLUR_SHARE if restore else 1.0
            logits = self._blur_logits(left, right, padded, clock, lambda done: progress(share * done))
            upright = logits if axis == "horizontal" else np.ascontiguousarray(logits.T)
            # Not a method: a result must not keep the graphs and their memory alive.
            blur_map = functools.partial(upsample_map, upright, size, self.bundle.manifest.blur_cell)
        if restore:
            first = 0.0 if logits is None else BLUR_SHARE
            image, tiles, notes = self._restore(
                padded, logits, left, axis, clock, lambda done: progress(first + (1 - first) * done)
            )
        elif blur_map is not None:  # it is all that was wanted: made now, and timed
            with clock("finish"):
                blur_map = blur_map()
        return Result(
            restored=image,
            blur_map=blur_map,
            blur_logits=upright,
            timings=clock.seconds,
            backend=self.name,
            precision=self.precision,
            tiles=tiles,
            notes=notes,
        )

    # --- sessions

    def _session(self, kind: str) -> Session:
        """The session of a graph, ``"clip"`` or ``"deblur"``, opened at the first call."""
        if kind not in self._sessions:
            path = self.bundle.graph(kind, graph_precision(self.precision))
            session = self._backend.open(path, self.precision, self._threads, content=self.bundle.content)
            names = self.bundle.manifest.graph_names(kind)
            for what, specs, expected in zip(
                ("inputs", "outputs"), (session.inputs, session.outputs), names, strict=True
            ):
                got = {spec.name for spec in specs}
                if got != expected:
                    raise BundleError(
                        f"{path}: expected the {what} {', '.join(sorted(expected))}, got {', '.join(sorted(got))}; "
                        f"{_FIX_GRAPHS}"
                    )
            self._sessions[kind] = session
        return self._sessions[kind]

    # --- the blur map

    def _blur_logits(
        self, left: Image, right: Image, padded: PaddedPair, clock: StageClock, progress: Progress
    ) -> Floats:
        """Blur logits of a pair along x, one per ``blur_cell``."""
        patch = self.bundle.manifest.blur_map.patch
        if patch:
            logits = self._patch_logits(left, right, patch, clock, progress)
        else:
            logits = self._window_logits(padded, clock, progress)
        if not np.isfinite(logits).all():
            raise NumericsError(
                f"expected finite blur logits, got NaN or Inf in {np.sum(~np.isfinite(logits))} of {logits.size}; "
                f"{FIX_NUMERICS}"
            )
        return logits

    def _window_logits(self, padded: PaddedPair, clock: StageClock, progress: Progress) -> Floats:
        """Blur logits ``(H / p, W / p)`` of a padded pair, window by window (Eq. 4 to 6)."""
        manifest, clip = self.bundle.manifest, self._session("clip")
        spec, embeddings = manifest.require_clip(), self.bundle.text_embeddings
        assert embeddings is not None
        p, s = spec.patch, spec.window
        H, W = padded.size
        grid = WindowGrid.cover(H, W, window=s, overlap=spec.overlap, patch=p)
        source = padded.extended((grid.rows.grid * p, grid.columns.grid * p))
        dtypes = {spec.name: spec.dtype for spec in clip.inputs}
        origins = grid.origins()
        fields = []
        for first in range(0, len(origins), CLIP_BATCH):
            with clock("prepare"):
                batch = origins[first : first + CLIP_BATCH]
                corners = [(y * p, x * p) for y, x in batch]
                seen = source.canvases(corners, s, spec.mean, spec.std, manifest.canvases)
                feeds = {name: array.astype(dtypes[name], copy=False) for name, array in seen.items()}
            with clock("clip"):
                features = clip.run(feeds)
            self._check_features(features, feature_shapes(len(batch), s // p, spec.embed_dim, manifest.canvases))
            with clock("blur_logits"), np.errstate(all="ignore"):  # NaN is looked for at the end
                fields.append(
                    blur_logits(
                        features.get("stereo_features"),
                        features.get("center_features"),
                        embeddings,
                        manifest.prompts,
                        manifest.ensemble,
                    )
                )
            progress(min(1.0, (first + CLIP_BATCH) / len(origins)))
        with clock("blur_logits"):
            return np.ascontiguousarray(grid.blend(np.concatenate(fields))[: H // p, : W // p])

    def _patch_logits(self, left: Image, right: Image, side: int, clock: StageClock, progress: Progress) -> Floats:
        """Blur logits of patches of ``side`` px of a pair without padding, by their pooled features."""
        clip = self._session("clip")
        (spec,) = clip.inputs
        rows, columns = (-(-n // side) for n in left.shape[:2])
        source = PaddedPair(left, right, (rows * side, columns * side))
        origins = [(i * side, j * side) for i in range(rows) for j in range(columns)]
        embeddings, values = self.bundle.text_embeddings, []
        assert embeddings is not None
        for first in range(0, len(origins), PATCH_BATCH):
            with clock("prepare"):
                chosen = origins[first : first + PATCH_BATCH]
                patches = np.concatenate([cut_patches(source.region(y, x, side, side), side)[0] for y, x in chosen])
            with clock("clip"):
                features = clip.run({"patches": patches.astype(spec.dtype, copy=False)})["features"]
                width = self.bundle.manifest.require_clip().embed_dim
                self._check_features({"features": features}, {"features": (len(chosen), width)})
            with clock("blur_logits"), np.errstate(all="ignore"):
                values.append(patch_values(features, embeddings, self.bundle.manifest.prompts[0]))
            progress(min(1.0, (first + PATCH_BATCH) / len(origins)))
        with clock("blur_logits"), np.errstate(all="ignore"):
            return map_logits(stretch(np.concatenate(values).reshape(rows, columns)))

    def _check_features(self, features: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Checks CLIP's output: its shapes, and that all of it is finite."""
        for name, expected in shapes.items():
            got = features[name]
            if got.shape != expected or got.dtype.kind != "f":
                raise BundleError(
                    f"expected {name} {expected} of the clip graph, got {got.shape} {got.dtype}; {_FIX_GRAPHS}"
                )
        check_features(features)

    # --- the restored image

    def _restore(
        self,
        padded: PaddedPair,
        logits: Floats | None,
        view: Image,
        axis: str,
        clock: StageClock,
        progress: Progress,
    ) -> tuple[Image, int, tuple[str, ...]]:
        """Restores a pair in one piece or in tiles, in smaller ones where memory runs out.

        Returns:
            The image, the number of its tiles, and notes on them.

        Raises:
            BackendError: Memory runs out even with the smallest tiles.
        """
        manifest = self.bundle.manifest
        size = view.shape[1], view.shape[0]
        too_large, reason = self._too_large, None
        for tiles in tilings(*padded.size, self._tile, manifest.network, manifest.tile_multiple):
            area = tiles.tile[0] * tiles.tile[1]
            if too_large is not None and area >= too_large:
                continue
            try:
                image = self._restore_tiles(tiles, padded, logits, view, axis, clock, progress)
            except (MemoryError, BackendError) as error:
                if not ran_out_of_memory(error):
                    raise
                too_large, reason = area, one_line(error)
                self._sessions.pop("deblur", None)  # it may hold on to memory
                continue
            self._too_large = too_large
            why = None if reason is None else "memory ran out with larger pieces"
            return image, len(tiles), describe_tiles(tiles, size, manifest.network, why)
        raise BackendError(
            f"a pair of {size[0]} x {size[1]} px does not fit into memory in pieces as small as allowed ({reason}); "
            "close other programs, or allow smaller tiles with --tile"
        )

    def _restore_tiles(
        self,
        tiles: TileGrid,
        padded: PaddedPair,
        logits: Floats | None,
        view: Image,
        axis: str,
        clock: StageClock,
        progress: Progress,
    ) -> Image:
        """Restores a pair tile by tile; beyond the image it keeps a tile and the seams.

        Args:
            tiles: The tiles; one is the whole.
            padded: The pair.
            logits: Its blur logits; None where the network reads none.
            view: ``(h, w, 3)``, a view of the pair along x.
            axis: As for ``submit``.
            clock: Takes the times.
            progress: Called after each tile.
        """
        with clock("open"):
            deblur = self._session("deblur")
        th, tw = tiles.tile
        image, pixels = new_image(view, axis)
        blender = TileBlender(tiles) if len(tiles) > 1 else None
        for done, (y, x) in enumerate(tiles.origins(), 1):
            with clock("prepare"):
                feeds = {"pair": padded.region(y, x, th, tw)[None]}
                if logits is not None:
                    feeds |= self._blur_feed(logits, (y, x), (th, tw))
            with clock("deblur"):
                restored: Any = deblur.run(feeds)["restored"]
            with clock("finish"):
                if restored.shape != (1, 3, th, tw):
                    raise BundleError(
                        f"expected restored (1, 3, {th}, {tw}) of the deblur graph, got {restored.shape}; {_FIX_GRAPHS}"
                    )
                (top, start), block = ((y, x), restored[0]) if blender is None else blender.add(restored[0])
                target = pixels[top : top + block.shape[1], start : start + block.shape[2]]
                write_pixels(block, target, (top, start))
            progress(done / len(tiles))
        return image

    def _blur_feed(self, logits: Floats, origin: tuple[int, int], size: tuple[int, int]) -> dict[str, Floats]:
        """The deblur graph's input with the blur of a tile; ``origin`` ``(y, x)`` and ``size`` in px."""
        manifest = self.bundle.manifest
        cell, (y, x), (height, width) = manifest.blur_cell, origin, size
        part = logits[y // cell : -(-(y + height) // cell), x // cell : -(-(x + width) // cell)]
        if manifest.blur_map.network_input == "logits":
            return {"blur_logits": part[None, None]}
        return {"blur_map": upsample_map(part, size, cell)[None, None]}


def _ignore(done: float) -> None:
    """A progress that nobody follows."""
