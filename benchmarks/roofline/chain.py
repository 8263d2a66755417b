"""The layers of the whole chain at one size of the photo, as TensorRT-RTX plans them, and the floor of their time."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.engines.graph_report import read_report
from benchmarks.harness.results import BenchmarkError
from benchmarks.roofline.flops import GraphCost, graph_cost
from benchmarks.roofline.hardware import Device
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import ShapeRange, clip_shapes, deblur_shapes
from ldp_runtime.cuda.launch import Launch, Pixels
from ldp_runtime.cuda.launches import blur_logits, blur_map, finish
from ldp_runtime.cuda.preparation import Canvases, PairRegion, prepare
from ldp_runtime.cuda.prompt_table import PromptTable
from ldp_runtime.stages.blur_map import CANVASES, select_prompts
from ldp_runtime.stages.geometry import WindowGrid, clip_batch

if TYPE_CHECKING:
    from ldp_export.bundling.tensorrt_builder import Part, TensorRT

ARCH = "sm_89"
"""The GPU that engines are planned for; TensorRT-RTX moves the same bytes for sm_86 to sm_120."""

_ADDRESS = 1 << 20  # stands for any aligned device address: nothing is run


@dataclass(frozen=True)
class Step:
    """One launch of the chain: a layer of an engine, or a kernel of the runtime.

    Attributes:
        stage: "prepare", "clip", "blur_logits", "head" (what of the deblur graph needs no blur map), "deblur" (the
            rest, or the whole where it is not cut) or "finish".
        kind: TensorRT's kind of layer, for generated kernels with their operations; "cuda" for the runtime's own.
        shape: Shape of its first result.
        matrix_flops: FLOPs for tensor cores.
        vector_flops: FLOPs for CUDA cores.
        traffic: Bytes that it moves, tensor by tensor, each with the tensor's size again if a cache may hold it between
            layers, else with 0.
        repeats: How often it runs: CLIP's layers once per batch.
    """

    stage: str
    kind: str
    shape: tuple[int, ...]
    matrix_flops: int
    vector_flops: int
    traffic: tuple[tuple[int, int], ...]
    repeats: int = 1

    def nbytes(self, cache: int = 0) -> int:
        """Bytes of one run, without tensors that fit into ``cache`` bytes."""
        return sum(size for size, whole in self.traffic if not 0 < whole <= cache)

    def seconds(self, device: Device, *, cached: bool = False) -> float:
        """The floor of all its runs on a device."""
        nbytes = self.nbytes(device.cache if cached else 0)
        return self.repeats * device.seconds(self.matrix_flops, self.vector_flops, nbytes)

    def bound(self, device: Device) -> str:
        """Its bottleneck: "matrix", "vector" or "memory"."""
        times = {
            "memory": self.nbytes() / device.bandwidth,
            "matrix": self.matrix_flops / device.matrix,
            "vector": self.vector_flops / device.vector,
        }
        return max(times, key=lambda name: times[name])


@dataclass(frozen=True)
class Chain:
    """The FP16 chain at one size.

    Attributes:
        size: ``(h, w)`` of the photo.
        padded: ``(H, W)`` of the network's input.
        windows: Windows of CLIP.
        batches: Batches that they run in.
        plan: Which TensorRT planned it, and for what.
        steps: The launches, stage by stage.
        crossing: Bytes of the maps from the head to the rest of the deblur graph.
        copied: Bytes from the host and to the host, of a photo of 8 bits.
    """

    size: tuple[int, int]
    padded: tuple[int, int]
    windows: int
    batches: int
    plan: str
    steps: tuple[Step, ...]
    crossing: int
    copied: tuple[int, int]


def floor(steps: Iterable[Step], device: Device, *, cached: bool = False) -> float:
    """Least seconds of launches that run one after the other."""
    return sum(step.seconds(device, cached=cached) for step in steps)


def by_stream(steps: Iterable[Step]) -> tuple[list[Step], list[Step], list[Step]]:
    """CLIP with the blur logits, the head of the deblur graph beside them, and what runs before and after both."""
    clip: list[Step] = []
    head: list[Step] = []
    rest: list[Step] = []
    for step in steps:
        {"clip": clip, "blur_logits": clip, "head": head}.get(step.stage, rest).append(step)
    return clip, head, rest


def floor_beside(steps: Iterable[Step], device: Device, *, cached: bool = False) -> float:
    """Least seconds of a chain whose head shares the device with CLIP without loss.

    Two kernels that each fill the device do not: this is the bound from below, ``floor`` that from above. Both streams
    together take the longest of their bytes at the memory's peak, their FLOPs at those of tensor cores and CUDA cores,
    and either alone.
    """
    clip, head, rest = by_stream(steps)
    cache, beside = device.cache if cached else 0, clip + head
    shared = device.seconds(
        sum(step.repeats * step.matrix_flops for step in beside),
        sum(step.repeats * step.vector_flops for step in beside),
        sum(step.repeats * step.nbytes(cache) for step in beside),
    )
    return floor(rest, device, cached=cached) + max(
        shared, floor(clip, device, cached=cached), floor(head, device, cached=cached)
    )


@dataclass(frozen=True)
class Walked:
    """A bundle's graphs at one size of the photo.

    Attributes:
        padded: ``(H, W)`` of the network's input.
        grid: CLIP's windows.
        batches: Batches that they run in.
        shapes: Shapes of the inputs of "clip", for one batch, and of "deblur".
        clip: CLIP's graph for one batch.
        deblur: The deblur graph.
    """

    padded: tuple[int, int]
    grid: WindowGrid
    batches: int
    shapes: dict[str, dict[str, tuple[int, ...]]]
    clip: GraphCost
    deblur: GraphCost


def walk_graphs(bundle: Bundle, size: tuple[int, int], precision: str) -> Walked:
    """Walks both graphs of a bundle.

    Args:
        bundle: The bundle.
        size: ``(h, w)`` of the photo in px.
        precision: Which of its graphs, "fp16" or "fp32".

    Raises:
        LDPError: The bundle lacks the graphs, or they hold an unknown operator.
    """
    spec = bundle.manifest.require_clip()
    H, W = bundle.manifest.padding.padded_size(*size)
    grid = WindowGrid.cover(H, W, window=spec.window, overlap=spec.overlap, patch=spec.patch)
    batch = clip_batch(len(grid))
    shapes = {
        "clip": clip_shapes(batch, spec.window, bundle.manifest.canvases),
        "deblur": deblur_shapes(H, W, spec.patch),
    }
    clip, deblur = (graph_cost(bundle.graph(kind, precision), shapes[kind]) for kind in ("clip", "deblur"))
    return Walked((H, W), grid, math.ceil(len(grid) / batch), shapes, clip, deblur)


def build_chain(bundle: Bundle, size: tuple[int, int]) -> Chain:
    """Builds both engines of a bundle for one size of the photo, with no GPU, and reads their layers.

    Args:
        bundle: The bundle.
        size: ``(h, w)`` of the photo in px.

    Raises:
        LDPError: The bundle lacks FP16 graphs, TensorRT-RTX is not installed or refuses a graph.
    """
    from ldp_export.bundling.engine import graph_parts
    from ldp_export.bundling.tensorrt_builder import TensorRT

    walked = walk_graphs(bundle, size, "fp16")
    tensorrt = TensorRT("rtx")
    profiles = {
        kind: {name: ShapeRange(shape, shape, shape) for name, shape in shapes.items()}
        for kind, shapes in walked.shapes.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        (encoder,) = graph_parts(bundle, "clip", profiles["clip"], Path(folder))
        parts = graph_parts(bundle, "deblur", profiles["deblur"], Path(folder))
        clip = [replace(step, repeats=walked.batches) for step in plan_layers(tensorrt, encoder)]
        deblur = [step for part in parts for step in plan_layers(tensorrt, part)]
    crossing = sum(2 * math.prod(parts[-1].profile[name].opt) for name in parts[-1].channels_last)
    before, logits, after = _own_kernels(bundle, size, walked.padded, walked.grid)
    steps = (before, *clip, logits, *deblur, *after)
    h, w = size
    back = 3 * h * w + 4 * h * w + 4 * math.prod(walked.shapes["deblur"]["blur_logits"])  # image, map, logits
    plan = f"{tensorrt.name} {tensorrt.version} for {ARCH}"
    return Chain(size, walked.padded, len(walked.grid), walked.batches, plan, steps, crossing, (6 * h * w, back))


def plan_layers(tensorrt: TensorRT, part: Part) -> list[Step]:
    """Builds the engine of a graph for one size, with no GPU, and reads its layers.

    Args:
        tensorrt: TensorRT-RTX.
        part: The graph, in FP16, with a profile of one size; its name is the stage.

    Raises:
        LDPError: TensorRT-RTX refuses the graph.
    """
    plan = tensorrt.build(part.graph, part.profile, (ARCH,), channels_last=part.channels_last, detailed=True)
    cost = graph_cost(part.graph, {name: shapes.opt for name, shapes in part.profile.items()})
    return _planned(part.name, part.graph, plan.messages, cost)


def _planned(stage: str, path: Path, messages: Iterable[str], cost: GraphCost) -> list[Step]:
    """The layers of an engine, with the FLOPs of the nodes that they compute."""
    layers = read_report(messages).layers
    flops = {node.name: (node.matrix_flops, node.vector_flops) for node in cost.nodes}
    inside = {t.name for layer in layers for t in layer.reads} & {t.name for layer in layers for t in layer.writes}
    steps = []
    for layer in layers:
        matrix, vector = (sum(flops.get(name, (0, 0))[i] for name in layer.nodes) for i in range(2))
        for name in layer.nodes:
            flops.pop(name, None)  # a node that several layers share is counted once
        tensors = (*layer.reads, *layer.writes)
        traffic = tuple((t.bytes or 0, (t.bytes or 0) if t.name in inside else 0) for t in tensors)
        kind = layer.name.removeprefix("__myl_").rpartition("_myl")[0] if layer.type == "kgen" else layer.type
        shape = layer.writes[0].shape if layer.writes else ()
        steps.append(Step(stage, kind, shape, matrix, vector, traffic))
    planned, wanted = sum(step.matrix_flops for step in steps), cost.matrix_flops
    if not 0.99 * wanted <= planned <= wanted:
        raise BenchmarkError(
            f"{path}: expected TensorRT's layers to compute the graph's {wanted / 1e9:.1f} matrix GFLOP, got "
            f"{planned / 1e9:.1f}; its report has changed, so graph_report.py must"
        )
    return steps


def _own_kernels(
    bundle: Bundle, size: tuple[int, int], padded: tuple[int, int], grid: WindowGrid
) -> tuple[Step, Step, tuple[Step, Step]]:
    """``prepare``, ``blur_logits``, and ``blur_map`` with ``finish``, for a photo of 8 bits."""
    spec = bundle.manifest.require_clip()
    h, w = size
    dtype = np.float16
    view = Pixels(_ADDRESS, 3 * w)
    stereo, center = (_ADDRESS if name in bundle.manifest.canvases else 0 for name in CANVASES)
    canvases = Canvases(stereo, center, dtype, grid, spec.patch, spec.mean, spec.std)
    region = PairRegion(_ADDRESS, (0, 0), padded)
    assert bundle.text_embeddings is not None  # it has a CLIP graph
    table = PromptTable.create(bundle.text_embeddings, bundle.manifest.prompts, bundle.manifest.ensemble)
    tokens = (padded[0] // spec.patch, padded[1] // spec.patch)
    chosen = len(select_prompts(bundle.manifest.prompts, bundle.manifest.ensemble))
    vectors = sum(shape[3] for shape in clip_shapes(1, 1, bundle.manifest.canvases).values())  # 2 of the stereo canvas
    logits_flops = 2 * vectors * tokens[0] * tokens[1] * table.channels * (chosen + 1)
    made = prepare(view, view, np.uint8, size, padded, pair=region, canvases=canvases)
    logits = blur_logits(_ADDRESS, _ADDRESS, dtype, table, _ADDRESS, grid, _ADDRESS, tokens, _ADDRESS)
    shown = blur_map(_ADDRESS, tokens, spec.patch, _ADDRESS, size)
    done = finish(_ADDRESS, padded, view, np.uint8, size, _ADDRESS)
    return (
        _own("prepare", made, (1, 6, *padded), 2 * 6 * padded[0] * padded[1]),
        _own("blur_logits", logits, (1, 1, *tokens), logits_flops),
        (_own("finish", shown, (1, 1, h, w), 4 * h * w), _own("finish", done, (h, w, 3), 3 * 3 * h * w)),
    )


def _own(stage: str, launch: Launch, shape: tuple[int, ...], flops: int) -> Step:
    return Step(stage, "cuda", shape, 0, flops, ((launch.minimum_bytes, 0),))
