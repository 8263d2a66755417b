"""Quantises a bundle: INT8 or FP8 graphs with explicit Q/DQ nodes, made by ONNX Runtime's quantiser.

Convolutions and matrix products with weights take 8-bit inputs and weights; all else, their outputs too, stays in
float, so that the residual stream and the skip are never rounded. Scales are symmetric with zero point 0, as TensorRT
wants them: one a tensor for activations, and for weights one a channel in INT8, one a tensor in FP8, whose exponent
follows the channels by itself. INT8 weights use 7 of the 8 bits: x86 CPUs without VNNI add pairs of products in 16
bits, which overflow with all 8. FP8 is E4M3, for engines for sm_89 and later; CPUs only check its quality.

Which layers stay in float is measured, not guessed: each group of layers is quantised alone, and those that cost most
quality for the work that they would save are left out until the change in PSNR to the target is within the limit.
"""

from __future__ import annotations

import copy
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ldp_export.bundling.onnx_graphs import EXTERNAL_ABOVE
from ldp_export.files import staged_folder
from ldp_runtime.backends import BACKENDS, Session
from ldp_runtime.bundle.bundle import (
    GRAPHS,
    MANIFEST_FILE,
    TEXT_EMBEDDINGS_FILE,
    BlurMapSpec,
    Bundle,
    FileEntry,
    Manifest,
    save_manifest,
    sha256_file,
    write_manifest,
)
from ldp_runtime.deblurrer import CLIP_BATCH, Deblurrer
from ldp_runtime.errors import LDPError
from ldp_runtime.images.quality import psnr
from ldp_runtime.stages.geometry import WindowGrid
from ldp_runtime.stages.pixels import PaddedPair, canvases

MAX_LOSS_DB = 0.05
"""The largest change of the mean PSNR to the target where none is asked for."""

SELECTION_SHARE = 0.6
"""Of the limit, on the pairs that layers are chosen with; the rest is for the pairs that nothing was chosen with."""

PAIRS = 32
"""Pairs of each set where no number is given; of eight, one that is nearly sharp decides the mean PSNR."""

LARGEST_SIDE = 512
"""Pairs are cut to this many px: a layer's range does not grow with the image."""

RANKING_SIDE = 128
"""Groups, one at a time, are measured on the middle of the pairs, of this many px: noise needs few."""

PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
"""Photographs of scikit-image that the simulated scenes are cut from."""

DEPTHWISE = "depthwise"
"""The ``role`` of depthwise convolutions."""


@dataclass(frozen=True)
class Format:
    """An 8-bit format that layers are quantised to.

    Attributes:
        title: Its name for people.
        scheme: What is quantised how, for the manifest.
        type: Its name in ``onnxruntime.quantization.QuantType``.
        graphs: Precision of what is not quantised -> that of the graphs that are written with it.
        depthwise: Depthwise convolutions are quantised too.
        largest: The largest number of the format, which the largest value of each tensor becomes; None leaves scales
            to the quantiser.
    """

    title: str
    scheme: str
    type: str
    graphs: Mapping[str, str]
    depthwise: bool = True
    largest: float | None = None


FORMATS = {
    "int8": Format(
        "INT8",
        "Q/DQ, symmetric, INT8 activations a tensor (min-max), weights a channel in 7 bits",
        "QInt8",
        {"fp32": "int8", "fp16": "int8-fp16"},
    ),
    "fp8": Format(
        "FP8",
        "Q/DQ, symmetric, FP8 E4M3, activations and weights a tensor (min-max), depthwise convolutions in float",
        "QFLOAT8E4M3FN",
        {"fp16": "fp8-fp16"},
        depthwise=False,
        largest=448.0,
    ),
}
"""Precision of a session -> what layers are quantised to for it."""

_OPS = ("Conv", "MatMul")
_SECOND_HALF = ".second.weight"  # of a convolution that `ldp_export.network.layers.Halves` made two of
_AVERAGING = ".averaging"  # weights of the means of layer normalisation, which is no layer to quantise
_ENCODER = "encoder.visual."
_BACKEND = "onnxruntime"

Floats = NDArray[np.float32]
Pixels = NDArray[Any]
Feeds = Mapping[str, Floats]


class QuantizeError(LDPError):
    """A bundle cannot be quantised as asked."""


class QualityError(Exception):
    """The quantised graphs change the result by more than allowed on pairs that nothing was chosen with.

    Attributes:
        record: What would have been in the manifest's ``quantization``.
    """

    def __init__(self, message: str, record: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.record = record


@dataclass(frozen=True, eq=False)
class LabelledPair:
    """A pair with its target, ``(h, w, 3)`` uint8 or uint16 each."""

    left: Pixels
    right: Pixels
    target: Pixels


@dataclass(frozen=True)
class PairSets:
    """The pairs of a quantisation; no pair is in two of them.

    Attributes:
        description: What they are, for the manifest.
        calibration: Give the ranges of the activations.
        selection: Layers are chosen with these.
        check: Sets by name that nothing is chosen with; the gates are on these.
    """

    description: str
    calibration: Sequence[LabelledPair]
    selection: Sequence[LabelledPair]
    check: Mapping[str, Sequence[LabelledPair]]


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product with weights.

    Attributes:
        name: Its name in both graphs.
        group: The group that it is kept or left out with.
        macs: Multiply-accumulates of it on the first pair.
    """

    name: str
    group: str
    macs: int


Progress = Callable[[Iterable[str], int], Iterable[str]]
"""Shows how far the measuring of groups is: takes their names and how many there are."""


def simulated_pairs(count: int, seed: int, role: int) -> list[LabelledPair]:
    """Random layered scenes of 256 x 256 px from scikit-image's photographs; the same for the same arguments.

    Args:
        count: How many.
        seed: Seed of everything.
        role: Pairs of different roles differ.
    """
    from skimage import data

    from ldp_export.simulation.scenes import render_scene

    photos = [getattr(data, name)() for name in PHOTOS]
    scenes = [render_scene(np.random.default_rng((seed, role, index)), photos) for index in range(count)]
    return [LabelledPair(scene["left"], scene["right"], scene["target"]) for scene in scenes]


def simulated_sets(count: int = PAIRS, seed: int = 0) -> PairSets:
    """Simulated pairs for every purpose, and the motorcycle sample to check on.

    Args:
        count: Pairs of each set.
        seed: Seed of the pairs.
    """
    from ldp_export.simulation.samples import MOTORCYCLE, focus_setting

    sample = focus_setting(MOTORCYCLE.focus[0])
    calibration, selection, check = (simulated_pairs(count, seed, role) for role in range(3))
    return PairSets(
        f"simulated, {count} pairs of 256 x 256 px a set, seed {seed}",
        calibration,
        selection,
        {"simulated": check, "motorcycle": [LabelledPair(sample.left, sample.right, sample.target)]},
    )


def data_sets(name: str, folder: Path, count: int = PAIRS) -> PairSets:
    """Pairs of a data set: of its training split to calibrate and choose with, of its test split to check on.

    Args:
        name: A name of ``ldp_export.data.DATASETS``.
        folder: Where it is.
        count: At most so many pairs of each set, spread evenly over the split.

    Raises:
        LDPError: No such data set, no such folder, or too few pairs with a target.
    """
    from ldp_export.data import find_kind

    splits = find_kind(name).splits
    held_out = "test" if "test" in splits else "val"
    train = _spread(name, folder, "train" if "train" in splits else held_out, 2 * count)
    check = _spread(name, folder, held_out, count)
    if len(train) < 2 or not check:
        raise QuantizeError(
            f"expected at least two pairs with a target to calibrate with and one to check on in {folder}, came "
            f"{len(train)} and {len(check)}; give another data set or leave --data out"
        )
    return PairSets(f"{name}, up to {count} pairs a set", train[::2], train[1::2], {f"{name} {held_out}": check})


def _spread(name: str, folder: Path, split: str, most: int) -> list[LabelledPair]:
    from ldp_export.data import open_dataset

    dataset = open_dataset(name, folder, split)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int))
    samples = (dataset[int(index)] for index in chosen)
    return [_middle(LabelledPair(s.left, s.right, s.target), LARGEST_SIDE) for s in samples if s.target is not None]


def _middle(pair: LabelledPair, side: int) -> LabelledPair:
    """The middle of a pair, at most ``side`` px a side."""
    top, start = (max(0, (length - side) // 2) for length in pair.left.shape[:2])
    return LabelledPair(*(v[top : top + side, start : start + side] for v in (pair.left, pair.right, pair.target)))


def quantize_bundle(
    bundle: Bundle,
    sets: PairSets,
    output: Path | None = None,
    *,
    precision: str = "int8",
    max_loss: float = MAX_LOSS_DB,
    threads: int | None = None,
    progress: Progress = lambda names, count: names,
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Writes INT8 or FP8 graphs into a bundle, or into a copy of it; on a failure the bundle stays as it was.

    Args:
        bundle: The bundle.
        sets: Pairs to calibrate, choose and check with.
        output: Folder of the copy; None for the bundle itself. Engines are not copied.
        precision: A name of ``FORMATS``.
        max_loss: Largest change of the mean PSNR to the target in dB, of each set of ``sets.check``.
        threads: CPU threads, at least 1; None leaves it to ONNX Runtime.
        progress: Wraps the groups that are measured.
        report: Is told what is going on, a line at a time.

    Returns:
        The manifest as written.

    Raises:
        QualityError: The check failed.
        QuantizeError: The bundle is of a kind that is not quantised, or its graphs do not belong together.
        LDPError: The folder cannot be written.
    """
    manifest = bundle.manifest
    if not max_loss > 0:
        raise QuantizeError(f"expected a largest loss above 0 dB, came {max_loss:g}")
    if manifest.blur_map != BlurMapSpec():
        raise QuantizeError(
            f"expected a bundle whose blur map comes from dense features and goes in as logits, came "
            f"{manifest.name!r}, which is of another kind; run it in fp32 or fp16"
        )
    with tempfile.TemporaryDirectory(prefix="ldp-quantize-") as scratch:
        chain = _Chain(bundle, sets, precision, Path(scratch), threads)
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

    def __init__(self, bundle: Bundle, sets: PairSets, precision: str, scratch: Path, threads: int | None) -> None:
        self.bundle, self._sets, self._scratch, self._threads = bundle, sets, scratch, threads
        self.precision, self.format = precision, FORMATS[precision]
        self.graphs = {kind: _Graph(bundle, kind, self.format, scratch) for kind in GRAPHS}
        self._float = Deblurrer(bundle, backend=_BACKEND, precision="fp32", threads=threads)
        self._deblur = self._open(bundle.graph("deblur"))
        self._ranking = [self._references(_middle(pair, RANKING_SIDE)) for pair in sets.selection]
        self._selection = [self._references(pair) for pair in sets.selection]

    @property
    def layers(self) -> dict[str, tuple[Layer, ...]]:
        """The layers of each graph; after ``calibrate``."""
        return {kind: graph.layers for kind, graph in self.graphs.items()}

    def calibrate(self) -> None:
        """Finds the ranges of what layers take, and how much work each is."""
        clip = [self._clip_feeds(pair) for pair in self._sets.calibration]
        deblur = [self._deblur_feeds(pair, self._logits(pair)) for pair in self._sets.calibration]
        self.graphs["clip"].calibrate(clip)
        self.graphs["deblur"].calibrate(deblur)

    def measure(self, progress: Progress) -> list[dict[str, Any]]:
        """What each group costs and saves, those first that cost most for what they save.

        Returns:
            A row a group: ``group``, ``layers``, ``macs_share`` of its graph, ``noise`` (mean of the squared error that
            it adds, over that of the float image to the target), ``loss_db`` (change of the mean PSNR to the target).
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
            if abs(came := loss(middle)) <= limit:
                high, found = middle, came
            else:
                low = middle + 1
        return [row["group"] for row in table[:high]], found

    def layers_but(self, groups: Sequence[str]) -> dict[str, set[str]]:
        """Names of the layers of each graph that are in none of the groups."""
        return {kind: {x.name for x in layers if x.group not in groups} for kind, layers in self.layers.items()}

    def check(self, kept: Mapping[str, set[str]], limit: float) -> tuple[dict[str, Any], list[str]]:
        """The figures of each set of ``PairSets.check`` with these layers quantised, and a line a failed gate."""
        figures, failures = {}, []
        for name, pairs in self._sets.check.items():
            references = [self._references(pair) for pair in pairs]
            noise, loss = self._compare(kept, references)
            _, half = self._compare({"deblur": kept["deblur"]}, references, "fp16")
            figures[name] = {
                "pairs": len(pairs),
                "fp32_psnr_db": _plain(float(np.mean([r.score for r in references]))),
                "noise": _plain(noise),
                "delta_db": _plain(loss),
                "deblur_fp16_delta_db": _plain(half),
                "limit_db": limit,
                "passed": max(abs(loss), abs(half)) <= limit,
            }
            title = self.format.title
            for what, came in ((title, loss), (f"{title} and FP16 deblur graph", half)):
                if abs(came) > limit:
                    failures.append(
                        f"{what} on {name}: expected a change in PSNR to the target of at most {limit:g} dB, came "
                        f"{came:+.4f} dB"
                    )
        return figures, failures

    def _compare(
        self, kept: Mapping[str, set[str]], references: Sequence[_Reference], rest: str = "fp32"
    ) -> tuple[float, float]:
        """Mean relative noise and mean change of PSNR in dB with these layers quantised.

        Args:
            kept: Names of layers of each graph; of one that is not named, none.
            references: The pairs.
            rest: Precision of what the deblur graph does not quantise.
        """
        deblur, deblurrer = self._deblur, None
        if kept.get("deblur"):
            path = self.graphs["deblur"].quantized(kept["deblur"], self._scratch / "deblur.candidate.onnx", rest)
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
        write_manifest(folder, replace(manifest, graphs=graphs, engines=()))
        return Bundle.load(folder)

    def _open(self, path: Path) -> Session:
        return BACKENDS[_BACKEND].open(path, "fp32", self._threads)

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
        clip, padded = self.bundle.manifest.clip, self._padded(pair)
        p, s = clip.patch, clip.window
        grid = WindowGrid.cover(*padded.size, window=s, overlap=clip.overlap, patch=p)
        source = padded.extended((grid.rows.grid * p, grid.columns.grid * p))
        regions = [source.region(y * p, x * p, s, s) for y, x in grid.origins()[:CLIP_BATCH]]
        stereo, center = canvases(regions, clip.mean, clip.std)
        return {"stereo": stereo, "center": center}


@dataclass(frozen=True, eq=False)
class _Reference:
    """A pair and what the float graphs make of it: planes ``(3, h, w)`` in [0, 1], PSNR to the target in dB."""

    pair: LabelledPair
    logits: Floats
    restored: Floats
    target: Floats
    score: float


class _Graph:
    """A graph of a bundle in FP32 and FP16, whose layers have the same names in both.

    A layer is one node, or in the FP32 graph two: the halves of a convolution before a gate.
    """

    def __init__(self, bundle: Bundle, kind: str, format_: Format, scratch: Path) -> None:
        self._kind, self._format = kind, format_
        self._models = {precision: onnx.load(bundle.graph(kind, precision)) for precision in ("fp32", "fp16")}
        self._path = scratch / f"{kind}.float.onnx"
        self.layers: tuple[Layer, ...] = ()
        self._inputs: dict[str, dict[str, list[str]]] = {}  # precision -> layer -> what each of its nodes takes
        self._ranges: dict[str, tuple[float, float]] = {}  # of tensors of the FP32 graph
        found = {precision: _layer_nodes(model.graph) for precision, model in self._models.items()}
        shapes = {p: [(n[0].op_type, _shape(self._models[p].graph, n)) for n in nodes] for p, nodes in found.items()}
        if shapes["fp32"] != shapes["fp16"]:
            raise QuantizeError(
                f"expected the same layers in the FP32 and the FP16 {kind} graph of {bundle.manifest.name!r}, came "
                f"{len(shapes['fp32'])} and {len(shapes['fp16'])}, or of other shapes; export the bundle again"
            )
        for precision, layers in found.items():
            self._inputs[precision] = {}
            for number, nodes in enumerate(layers):
                name = f"layer_{number}"
                for part, node in enumerate(nodes):
                    node.name = f"{name}.{part}"
                self._inputs[precision][name] = [node.input[0] for node in nodes]

    def calibrate(self, feeds: Sequence[Feeds]) -> None:
        """Finds the range of what each layer takes, and its multiply-accumulates."""
        from onnxruntime.quantization import CalibrationMethod
        from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self._feeds = iter(feeds)

            def get_next(self) -> Any:
                return next(self._feeds, None)

        model = self._models["fp32"]
        _save(model, self._path)
        calibrator = create_calibrator(
            self._path,
            list(_OPS),
            augmented_model_path=str(self._path.with_suffix(".ranges.onnx")),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(Reader())
        ranges = calibrator.compute_data().data
        for name in {name for names in self._inputs["fp32"].values() for name in names}:
            low, high = (float(np.asarray(value).item()) for value in ranges[name].range_value)
            self._ranges[name] = low, high
        layers = _layers(model.graph, self._kind, self._output_sizes(feeds[0]))
        self.layers = tuple(x for x in layers if self._format.depthwise or not x.group.endswith(DEPTHWISE))

    def _output_sizes(self, feeds: Feeds) -> dict[str, int]:
        """How many numbers each layer puts out."""
        model = copy.deepcopy(self._models["fp32"])
        nodes = _weighted(model.graph)
        for node in nodes:
            model.graph.output.append(
                onnx.helper.make_tensor_value_info(f"{node.name}_shape", onnx.TensorProto.INT64, None)
            )
            model.graph.node.append(onnx.helper.make_node("Shape", [node.output[0]], [f"{node.name}_shape"]))
        path = self._path.with_suffix(".shapes.onnx")
        _save(model, path)
        shapes = BACKENDS[_BACKEND].open(path, "fp32").run(feeds)
        return {node.name: math.prod(shapes[f"{node.name}_shape"].tolist()) for node in nodes}

    def quantized(self, kept: set[str], path: Path, precision: str = "fp32") -> Path:
        """Writes the graph with these layers quantised.

        With FP16 for the rest, which is for engines, depthwise convolutions stay in FP16 too: TensorRT-RTX 1.7 makes
        dense ones of those in INT8, which made the engine of ldp-nano 56 MB in place of 14.

        Args:
            kept: Names of layers.
            path: Where to write it.
            precision: Of what is not quantised.
        """
        if precision == "fp16":
            kept = kept - {layer.name for layer in self.layers if layer.group.endswith(DEPTHWISE)}
        model = copy.deepcopy(self._models[precision])
        if kept:
            dtype = np.dtype(np.float32 if precision == "fp32" else np.float16)
            ranges = dict(pair for layer in kept for pair in self._input_ranges(layer, precision))
            nodes = [node for node in _weighted(model.graph) if _layer_of(node) in kept]
            model = _quantize(model, nodes, ranges, dtype, self._format)
        _save(model, path)
        return path

    def _input_ranges(self, layer: str, precision: str) -> list[tuple[str, tuple[float, float]]]:
        """What the nodes of a layer take, and the range of each: the widest where they are fewer than in FP32."""
        names = self._inputs[precision][layer]
        ranges = [self._ranges[name] for name in self._inputs["fp32"][layer]]
        if len(names) < len(ranges):
            ranges = [(min(low for low, _ in ranges), max(high for _, high in ranges))]
        return list(zip(names, ranges, strict=True))


def _quantize(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    ranges: Mapping[str, tuple[float, float]],
    dtype: np.dtype[Any],
    format_: Format,
) -> onnx.ModelProto:
    """Quantises some nodes of a graph, which it uses up.

    Args:
        model: The graph.
        nodes: Convolutions and matrix products with weights.
        ranges: The range of what each takes.
        dtype: Of the rest of the graph.
        format_: What to.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    tensors = {
        name: TensorData(lowest=dtype.type(low), highest=dtype.type(high)) for name, (low, high) in ranges.items()
    }
    own_scales = format_.largest is None
    options: dict[str, Any] = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": list(_OPS),
    }
    if format_.largest is not None:  # the quantiser's own scales of FP8 come from standard deviations and cut tails off
        from ml_dtypes import float8_e4m3fn

        largest = {name: max(abs(low), abs(high)) for name, (low, high) in ranges.items()}
        for node in nodes:
            weight = onnx.numpy_helper.to_array(_weight(model.graph, node))
            largest[node.input[1]] = float(np.abs(weight).max())
        options["TensorQuantOverrides"] = {
            name: [
                {
                    "scale": np.array(max(value / format_.largest, float(np.finfo(dtype).tiny)), dtype),
                    "zero_point": np.zeros((), float8_e4m3fn),
                }
            ]
            for name, value in largest.items()
        }
    quantizer = QDQQuantizer(
        model,
        per_channel=own_scales,
        reduce_range=own_scales,
        weight_qType=QuantType[format_.type],
        activation_qType=QuantType[format_.type],
        tensors_range=TensorsData(CalibrationMethod.MinMax, tensors),
        nodes_to_quantize=[node.name for node in nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=list(_OPS),
        extra_options=options,
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


def _weighted(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The convolutions and matrix products whose second factor is a weight, in the order of the graph."""
    weights = {tensor.name for tensor in graph.initializer if not tensor.name.endswith(_AVERAGING)}
    return [node for node in graph.node if node.op_type in _OPS and node.input[1] in weights]


def _layer_nodes(graph: onnx.GraphProto) -> list[list[onnx.NodeProto]]:
    """The nodes of each layer, in the order of the graph."""
    layers: list[list[onnx.NodeProto]] = []
    for node in _weighted(graph):
        if node.input[1].endswith(_SECOND_HALF):
            layers[-1].append(node)
        else:
            layers.append([node])
    return layers


def _layer_of(node: onnx.NodeProto) -> str:
    """The name of a node's layer."""
    return str(node.name.partition(".")[0])


def _shape(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> list[int]:
    """The shape of a layer's weight, that of halves being put together."""
    shapes = [_weight(graph, node).dims[:] for node in nodes]
    return [sum(shape[0] for shape in shapes), *shapes[0][1:]]


def _weight(graph: onnx.GraphProto, node: onnx.NodeProto) -> onnx.TensorProto:
    return next(tensor for tensor in graph.initializer if tensor.name == node.input[1])


def _layers(graph: onnx.GraphProto, kind: str, sizes: Mapping[str, int]) -> Iterator[Layer]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    weights = {tensor.name for tensor in graph.initializer}
    for node, *halves in _layer_nodes(graph):
        weight = _weight(graph, node)
        name = node.input[1]
        if "." not in name:  # a weight that the export transposed; the bias still has its name
            added = (x for n in readers.get(node.output[0], ()) if n.op_type == "Add" for x in n.input)
            name = next((x for x in added if x in weights), name)
        terms = math.prod(weight.dims[1:]) if node.op_type == "Conv" else weight.dims[0]
        macs = terms * sum(sizes[part.name] for part in (node, *halves))
        yield Layer(_layer_of(node), f"{kind} {place(name)} {role(node, weight, name)}", macs)


def place(name: str) -> str:
    """Which part of a network a parameter belongs to: ``encoders.2`` of ``encoders.2.1.conv4.weight``."""
    parts = re.sub(r"\.(weight|bias)$", "", name.removeprefix(_ENCODER)).split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts[:2] if numbered is None else parts[max(0, numbered - 1) : numbered + 1])


def role(node: onnx.NodeProto, weight: onnx.TensorProto, name: str) -> str:
    """What kind of layer it is: ``1x1``, ``3x3``, ``depthwise``, ``sca`` (channel attention) or ``matmul``."""
    if node.op_type != "Conv":
        return "matmul"
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    if groups > 1:
        return DEPTHWISE
    return "sca" if ".sca." in name else "x".join(map(str, weight.dims[2:]))


def _save(model: onnx.ModelProto, path: Path) -> None:
    """Writes a graph, its weights beside it where they are too many for one file."""
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # onnx would append
    large = model.ByteSize() > EXTERNAL_ABOVE
    onnx.save(copy.deepcopy(model) if large else model, path, save_as_external_data=large, location=f"{path.name}.data")


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
        "scheme": chain.format.scheme,
        "weights": manifest.parity.get("weights", manifest.training.get("weights", "unknown")),
        "pairs": sets.description,
        "calibration_pairs": len(sets.calibration),
        "selection": {"pairs": len(sets.selection), "limit_db": max_loss * SELECTION_SHARE, "delta_db": _plain(loss)},
        "groups": [{**row, "precision": "float" if row["group"] in left_out else chain.precision} for row in table],
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
    with staged_folder(folder, last=MANIFEST_FILE) as staged:
        files = dict(manifest.files)
        for kind in GRAPHS:
            for rest, precision in chain.format.graphs.items():
                path = chain.graphs[kind].quantized(kept[kind], staged / f"{kind}.{precision}.onnx", rest)
                graphs[kind][precision] = path.name
                onnx.checker.check_model(str(path), full_check=True)
                files.pop(f"{path.name}.data", None)
        made = {path.name: FileEntry(sha256_file(path), path.stat().st_size) for path in staged.iterdir()}
        if not in_place:
            for name in [*manifest.files, *(path.name for path in bundle.path.glob("*.md"))]:
                if name not in made:
                    (staged / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(bundle.path / name, staged / name)
        written = replace(
            manifest,
            graphs=graphs,
            quantization={**manifest.quantization, chain.precision: record},
            engines=tuple(e for e in manifest.engines if e.precision != chain.precision) if in_place else (),
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
