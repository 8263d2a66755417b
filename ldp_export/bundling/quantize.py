"""Quantises a bundle: INT8 graphs with explicit Q/DQ nodes for CPUs, made by ONNX Runtime's quantiser.

Convolutions and matrix products with weights take 8-bit inputs and weights; all else, their outputs too, stays in FP32,
so that the residual stream and the skip are never rounded. Scales are symmetric with zero point 0, one per tensor for
activations and one per channel for weights. Weights use 7 of the 8 bits: x86 CPUs without VNNI add pairs of products in
16 bits, which overflow with all 8.

Which layers stay in float is measured, not guessed: each group of layers is quantised alone, and those that cost most
quality for the work that they would save are left out until the change in PSNR to the target is within the limit.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from ldp_export.bundling.quantize_graphs import _BACKEND, Floats, Layer, QuantizeError, _Graph
from ldp_export.bundling.quantize_pairs import LabelledPair, PairSets, Pixels, _middle
from ldp_runtime.backends.base import Session
from ldp_runtime.bundle.bundle import Bundle, read_manifest, save_manifest, sha256_file, write_manifest
from ldp_runtime.bundle.manifest import GRAPHS, MANIFEST_FILE, TEXT_EMBEDDINGS_FILE, BlurMapSpec, FileEntry, Manifest
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.files import locked_folder, staged_folder
from ldp_runtime.host import CLIP_BATCH
from ldp_runtime.images.quality import psnr
from ldp_runtime.registry import SESSION_BACKENDS
from ldp_runtime.stages.geometry import WindowGrid
from ldp_runtime.stages.pixels import PaddedPair

MAX_LOSS_DB = 0.05
"""The largest change of the mean PSNR to the target where none is asked for."""

SELECTION_SHARE = 0.6
"""Of the limit, on the pairs that layers are chosen with; the rest is for the pairs that nothing was chosen with."""


RANKING_SIDE = 128
"""Groups, one at a time, are measured on the middle of the pairs, of this many px: noise needs few."""


class QualityError(Exception):
    """The quantised graphs change the result by more than allowed on pairs that nothing was chosen with.

    Attributes:
        record: What would have been in the manifest's ``quantization``.
    """

    def __init__(self, message: str, record: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.record = record


Progress = Callable[[Iterable[str], int], Iterable[str]]
"""Shows how far the measuring of groups is: takes their names and how many there are."""


def quantize_bundle(
    bundle: Bundle,
    sets: PairSets,
    output: Path | None = None,
    *,
    max_loss: float = MAX_LOSS_DB,
    threads: int | None = None,
    progress: Progress = lambda names, count: names,
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Writes INT8 graphs into a bundle, or into a copy of it; on a failure the bundle stays as it was.

    Args:
        bundle: The bundle.
        sets: Pairs to calibrate, choose and check with.
        output: Folder of the copy; None for the bundle itself. Engines are not copied.
        max_loss: Largest change of the mean PSNR to the target in dB, of each set of ``sets.check``.
        threads: CPU threads, at least 1; None leaves it to ONNX Runtime.
        progress: Wraps the groups that are measured.
        report: Takes what is going on, a line at a time.

    Returns:
        The manifest as written.

    Raises:
        QualityError: The check failed.
        QuantizeError: The bundle is of a kind that is not quantised, or its graphs do not belong together.
        LDPError: The folder cannot be written.
    """
    manifest = bundle.manifest
    if not max_loss > 0:
        raise QuantizeError(f"expected a largest loss above 0 dB, got {max_loss:g}")
    if manifest.blur_map != BlurMapSpec() or not manifest.reads_blur_map:
        raise QuantizeError(
            f"expected a bundle whose blur map comes from dense features and goes in as logits, got "
            f"{manifest.name!r}, which is of another kind; run it in fp32 or fp16"
        )
    with tempfile.TemporaryDirectory(prefix="ldp-quantize-") as scratch:
        chain = _Chain(bundle, sets, Path(scratch), threads)
        report("calibrating")
        chain.calibrate()
        report("measuring groups of layers")
        table = chain.measure(progress)
        report("choosing")
        left_out, loss = chain.choose(table, max_loss * SELECTION_SHARE)
        kept = chain.layers_but(left_out)
        report("checking")
        figures, failures = chain.check(kept, max_loss)
        record = _record(sets, chain, table, left_out, loss, max_loss, figures)
        if failures:
            raise QualityError("; ".join(failures), record)
        return _write(bundle, chain, kept, record, output)


class _Chain:
    """A bundle's two graphs, in float and with some of their layers quantised, on the pairs."""

    def __init__(self, bundle: Bundle, sets: PairSets, scratch: Path, threads: int | None) -> None:
        self.bundle, self._sets, self._scratch, self._threads = bundle, sets, scratch, threads
        self.graphs = {kind: _Graph(bundle, kind, scratch) for kind in GRAPHS}
        self._float = Deblurrer(bundle, backend=_BACKEND, precision="fp32", threads=threads)
        self._deblur = self._open(bundle.graph("deblur"))
        self._ranking = [self._references(_middle(pair, RANKING_SIDE)) for pair in sets.selection]
        self._selection = [self._references(pair) for pair in sets.selection]

    @property
    def layers(self) -> dict[str, tuple[Layer, ...]]:
        """The layers of each graph that is quantised; after ``calibrate``."""
        return {kind: graph.layers for kind, graph in self.graphs.items()}

    def calibrate(self) -> None:
        """Finds the ranges of what layers take, and how much work each is."""
        feeds: dict[str, Callable[[LabelledPair], dict[str, Floats]]] = {
            "clip": self._clip_feeds,
            "deblur": lambda pair: self._deblur_feeds(pair, self._logits(pair)),
        }
        for kind, graph in self.graphs.items():
            graph.calibrate([feeds[kind](pair) for pair in self._sets.calibration])

    def measure(self, progress: Progress) -> list[dict[str, Any]]:
        """What each group costs and saves, those first that cost most for what they save.

        Returns:
            A row per group: ``group``, ``layers``, ``macs_share`` of its graph, ``noise`` (mean of the squared error
            that it adds, over that of the float image to the target), ``loss_db`` (change of the mean PSNR to the
            target).
        """
        groups = {layer.group: kind for kind, layers in self.layers.items() for layer in layers}
        rows = []
        for group in progress(list(groups), len(groups)):
            kind = groups[group]
            chosen = [layer for layer in self.layers[kind] if layer.group == group]
            noise, loss = self._compare({kind: {layer.name for layer in chosen}}, self._ranking)
            share = sum(layer.macs for layer in chosen) / sum(layer.macs for layer in self.layers[kind])
            rows.append(
                {
                    "group": group,
                    "layers": len(chosen),
                    "macs_share": _plain(share),
                    "noise": _plain(noise),
                    "loss_db": _plain(loss),
                }
            )
        return sorted(rows, key=lambda row: (-row["noise"] / max(row["macs_share"], 1e-9), row["group"]))

    def choose(self, table: Sequence[Mapping[str, Any]], limit: float) -> tuple[list[str], float]:
        """The fewest groups, in the order of the table, without which the loss is within the limit.

        The loss falls with every group that is left out, up to chance, so that the number is found by bisection.

        Returns:
            Their names, and the change of the mean PSNR to the target without them.
        """

        def loss(count: int) -> float:
            kept = self.layers_but([row["group"] for row in table[:count]])
            return self._compare(kept, self._selection)[1]

        if abs(found := loss(0)) <= limit:
            return [], found
        low, high, found = 1, len(table), 0.0
        while low < high:
            middle = (low + high) // 2
            if abs(got := loss(middle)) <= limit:
                high, found = middle, got
            else:
                low = middle + 1
        return [row["group"] for row in table[:high]], found

    def layers_but(self, groups: Sequence[str]) -> dict[str, set[str]]:
        """Names of the layers of each graph that are in none of the groups."""
        return {kind: {x.name for x in layers if x.group not in groups} for kind, layers in self.layers.items()}

    def check(self, kept: Mapping[str, set[str]], limit: float) -> tuple[dict[str, Any], list[str]]:
        """The figures of each set of ``PairSets.check`` with these layers quantised, and a line per failed gate."""
        figures, failures = {}, []
        for name, pairs in self._sets.check.items():
            references = [self._references(pair) for pair in pairs]
            noise, loss = self._compare(kept, references)
            figures[name] = {
                "pairs": len(pairs),
                "fp32_psnr_db": _plain(float(np.mean([r.score for r in references]))),
                "noise": _plain(noise),
                "delta_db": _plain(loss),
                "limit_db": limit,
                "passed": abs(loss) <= limit,
            }
            if abs(loss) > limit:
                failures.append(
                    f"INT8 on {name}: expected a change in PSNR to the target of at most {limit:g} dB, "
                    f"got {loss:+.4f} dB"
                )
        return figures, failures

    def _compare(self, kept: Mapping[str, set[str]], references: Sequence[_Reference]) -> tuple[float, float]:
        """Mean relative noise and mean change of PSNR in dB with these layers quantised, all else in FP32.

        Args:
            kept: Names of layers of each graph; of one that is not named, none.
            references: The pairs.
        """
        deblur, deblurrer = self._deblur, None
        if kept.get("deblur"):
            path = self.graphs["deblur"].quantized(kept["deblur"], self._scratch / "deblur.candidate.onnx")
            deblur = self._open(path)
        if kept.get("clip"):
            candidate = self._with_clip(kept["clip"])
            deblurrer = Deblurrer(candidate, backend=_BACKEND, precision="fp32", threads=self._threads)
        noises, losses = [], []
        for reference in references:
            pair = reference.pair
            logits = reference.logits if deblurrer is None else deblurrer.blur_map(pair.left, pair.right).blur_logits
            image = _crop(deblur.run(self._deblur_feeds(pair, logits))["restored"], pair)
            noises.append(_mse(image, reference.restored) / max(_mse(reference.restored, reference.target), 1e-12))
            losses.append(psnr(image, reference.target, data_range=1) - reference.score)
        return float(np.mean(noises)), float(np.mean(losses))

    def _with_clip(self, kept: set[str]) -> Bundle:
        """A bundle whose FP32 CLIP graph has these layers quantised."""
        manifest, folder = self.bundle.manifest, self._scratch / "candidate"
        deblur = manifest.graphs["deblur"]["fp32"]
        if not folder.exists():
            folder.mkdir()
            for name in (TEXT_EMBEDDINGS_FILE, deblur, *self.bundle.weights[deblur]):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.bundle.path / name, folder / name)
        path = self.graphs["clip"].quantized(kept, folder / "clip.candidate.onnx")
        graphs = {"clip": {"fp32": path.name}, "deblur": {"fp32": deblur}}
        write_manifest(folder, msgspec.structs.replace(manifest, graphs=graphs, engines=()))
        return Bundle.load(folder)

    def _open(self, path: Path) -> Session:
        return SESSION_BACKENDS[_BACKEND].open(path, "fp32", self._threads)

    def _references(self, pair: LabelledPair) -> _Reference:
        logits = self._logits(pair)
        restored = _crop(self._deblur.run(self._deblur_feeds(pair, logits))["restored"], pair)
        target = _planes(pair.target)
        return _Reference(pair, logits, restored, target, psnr(restored, target, data_range=1))

    def _logits(self, pair: LabelledPair) -> Floats:
        return self._float.blur_map(pair.left, pair.right).blur_logits

    def _padded(self, pair: LabelledPair) -> PaddedPair:
        return PaddedPair(pair.left, pair.right, self.bundle.manifest.padding.padded_size(*pair.left.shape[:2]))

    def _deblur_feeds(self, pair: LabelledPair, logits: Floats) -> dict[str, Floats]:
        padded = self._padded(pair)
        return {"pair": padded.region(0, 0, *padded.size)[None], "blur_logits": logits[None, None]}

    def _clip_feeds(self, pair: LabelledPair) -> dict[str, Floats]:
        """The first windows of a pair."""
        clip, padded = self.bundle.manifest.require_clip(), self._padded(pair)
        p, s = clip.patch, clip.window
        grid = WindowGrid.cover(*padded.size, window=s, overlap=clip.overlap, patch=p)
        source = padded.extended((grid.rows.grid * p, grid.columns.grid * p))
        origins = [(y * p, x * p) for y, x in grid.origins()[:CLIP_BATCH]]
        return source.canvases(origins, s, clip.mean, clip.std, self.bundle.manifest.canvases)


@dataclass(frozen=True, eq=False)
class _Reference:
    """A pair and what the float graphs make of it: planes ``(3, h, w)`` in [0, 1], PSNR to the target in dB."""

    pair: LabelledPair
    logits: Floats
    restored: Floats
    target: Floats
    score: float


def _record(
    sets: PairSets,
    chain: _Chain,
    table: Sequence[Mapping[str, Any]],
    left_out: Sequence[str],
    loss: float,
    max_loss: float,
    figures: Mapping[str, Any],
) -> dict[str, Any]:
    """What the manifest's ``quantization`` says of a precision."""
    manifest = chain.bundle.manifest
    kept = chain.layers_but(left_out)
    return {
        "created": datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z"),
        "quantizer": f"onnxruntime {metadata.version('onnxruntime')}",
        "scheme": "Q/DQ, symmetric, INT8 activations a tensor (min-max), weights a channel in 7 bits",
        "weights": manifest.parity.get("weights", manifest.training.get("weights", "unknown")),
        "pairs": sets.description,
        "calibration_pairs": len(sets.calibration),
        "selection": {"pairs": len(sets.selection), "limit_db": max_loss * SELECTION_SHARE, "delta_db": _plain(loss)},
        "groups": [{**row, "precision": "float" if row["group"] in left_out else "int8"} for row in table],
        "macs_share": {
            kind: _plain(sum(x.macs for x in layers if x.name in kept[kind]) / sum(x.macs for x in layers))
            for kind, layers in chain.layers.items()
        },
        "why_float": "what a group costs for its share of the multiply-accumulates, the worst first, until the limit",
        "check": figures,
    }


def _write(
    bundle: Bundle, chain: _Chain, kept: Mapping[str, set[str]], record: Mapping[str, Any], output: Path | None
) -> Manifest:
    manifest, folder = bundle.manifest, output or bundle.path
    in_place = folder.absolute().resolve() == bundle.path.resolve()
    graphs = {kind: dict(files) for kind, files in manifest.graphs.items()}
    with locked_folder(bundle.path), staged_folder(folder, last=MANIFEST_FILE) as staged:
        files = dict(manifest.files)
        for kind, graph in chain.graphs.items():
            path = graph.quantized(kept[kind], staged / f"{kind}.int8.onnx")
            graphs[kind]["int8"] = path.name
            onnx.checker.check_model(str(path), full_check=True)
            files.pop(f"{path.name}.data", None)
        made = {path.name: FileEntry(sha256_file(path), path.stat().st_size) for path in staged.iterdir()}
        if not in_place:
            for name in [*manifest.files, *(path.name for path in bundle.path.glob("*.md"))]:
                if name not in made:
                    (staged / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(bundle.path / name, staged / name)
        written = msgspec.structs.replace(
            manifest,
            graphs=graphs,
            quantization={**manifest.quantization, "int8": record},
            engines=read_manifest(folder).engines if in_place else (),  # some may be new
            files=dict(sorted({**files, **made}.items())),
        )
        return save_manifest(staged, written)


def _crop(restored: NDArray[Any], pair: LabelledPair) -> Floats:
    """A restored image without its padding, clamped: ``(3, h, w)``."""
    h, w = pair.left.shape[:2]
    return np.clip(restored[0, :, :h, :w].astype(np.float32), 0, 1)


def _planes(image: Pixels) -> Floats:
    return image.transpose(2, 0, 1).astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def _mse(a: Floats, b: Floats) -> float:
    return float(np.mean(np.square(a - b, dtype=np.float64)))


def _plain(value: float) -> float:
    return float(f"{value:.4g}")
