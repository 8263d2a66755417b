"""The kernels of the whole chain at one size of the photo, and the floor of their time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.roofline.flops import GraphCost, graph_cost
from benchmarks.roofline.fusion import FusedGraph, fuse, unfused
from benchmarks.roofline.hardware import Device
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.cuda.launch import Launch, Pixels
from ldp_runtime.cuda.launches import Canvases, PairRegion, blur_logits, finish, prepare
from ldp_runtime.cuda.prompt_table import PromptTable
from ldp_runtime.stages.blur_map import select_prompts
from ldp_runtime.stages.geometry import WindowGrid, clip_batch

_ADDRESS = 1 << 20  # any aligned device address: nothing is run


@dataclass(frozen=True)
class Step:
    """One kernel of the chain.

    Attributes:
        stage: "prepare", "clip", "blur_logits", "deblur" or "finish".
        kind: See ``fusion.Kernel``; "cuda" for the runtime's own.
        label: Its description.
        shape: Shape of its result.
        matrix_flops: FLOPs for tensor cores.
        vector_flops: FLOPs for CUDA cores.
        traffic: Bytes that it moves, tensor by tensor, each with the tensor's whole size if a cache may hold it between
            kernels, else with 0.
        repeats: How often it runs: CLIP's kernels once per batch.
    """

    stage: str
    kind: str
    label: str
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
    """The chain at one size and precision.

    Attributes:
        size: ``(h, w)`` of the photo.
        padded: ``(H, W)`` of the network's input.
        windows: Windows of CLIP.
        batches: Batches that they run in.
        clip: Cost of CLIP's graph for one batch.
        deblur: Cost of the deblur graph.
        steps: The kernels, fused by the rules.
        unfused: The same with every node on its own.
    """

    size: tuple[int, int]
    padded: tuple[int, int]
    windows: int
    batches: int
    clip: GraphCost
    deblur: GraphCost
    steps: tuple[Step, ...]
    unfused: tuple[Step, ...]

    def with_deblur(self, deblur: GraphCost, fused: FusedGraph) -> tuple[Step, ...]:
        """The fused steps with another deblur graph."""
        own = [step for step in self.steps if step.stage != "deblur"]
        return tuple([*own, *_steps("deblur", deblur, fused)])


def floor(steps: Iterable[Step], device: Device, *, cached: bool = False) -> float:
    """Least seconds of kernels that run one after the other."""
    return sum(step.seconds(device, cached=cached) for step in steps)


@dataclass(frozen=True)
class Walked:
    """A bundle's graphs at one size of the photo.

    Attributes:
        padded: ``(H, W)`` of the network's input.
        grid: CLIP's windows.
        batches: Batches that they run in.
        clip: Cost of CLIP's graph for one batch.
        deblur: Cost of the deblur graph.
    """

    padded: tuple[int, int]
    grid: WindowGrid
    batches: int
    clip: GraphCost
    deblur: GraphCost


def walk_graphs(bundle: Bundle, size: tuple[int, int], precision: str) -> Walked:
    """Walks both graphs of a bundle; see ``build_chain``."""
    spec = bundle.manifest.require_clip()
    H, W = bundle.manifest.padding.padded_size(*size)
    grid = WindowGrid.cover(H, W, window=spec.window, overlap=spec.overlap, patch=spec.patch)
    batch, s = clip_batch(len(grid)), spec.window
    clip = graph_cost(bundle.graph("clip", precision), {"stereo": (batch, 3, s, 2 * s), "center": (batch, 3, s, s)})
    logits = (1, 1, H // spec.patch, W // spec.patch)
    deblur = graph_cost(bundle.graph("deblur", precision), {"pair": (1, 6, H, W), "blur_logits": logits})
    return Walked((H, W), grid, math.ceil(len(grid) / batch), clip, deblur)


def build_chain(bundle: Bundle, size: tuple[int, int], precision: str) -> Chain:
    """Walks a bundle's graphs at one size of the photo.

    Args:
        bundle: The bundle.
        size: ``(h, w)`` of the photo in px.
        precision: Which of its graphs, "fp16" or "fp32".

    Raises:
        LDPError: The bundle lacks the graphs, or they hold an unknown operator.
    """
    walked = walk_graphs(bundle, size, precision)
    clip, deblur, batches, grid = walked.clip, walked.deblur, walked.batches, walked.grid
    dtype = np.dtype(np.float16 if precision == "fp16" else np.float32)
    before, after = _own_kernels(bundle, size, walked.padded, grid, dtype)

    def steps(group: Callable[[GraphCost], FusedGraph]) -> tuple[Step, ...]:
        clip_steps = [replace(step, repeats=batches) for step in _steps("clip", clip, group(clip))]
        return tuple([before[0], *clip_steps, before[1], *_steps("deblur", deblur, group(deblur)), after])

    return Chain(size, walked.padded, len(grid), batches, clip, deblur, steps(fuse), steps(unfused))


def _steps(stage: str, graph: GraphCost, fused: FusedGraph) -> list[Step]:
    steps = []
    for kernel in fused.kernels:
        moved = [*kernel.reads.items(), *kernel.writes.items()]
        traffic = tuple((size, fused.cacheable.get(name, 0)) for name, size in moved)
        steps.append(
            Step(stage, kernel.kind, kernel.label, kernel.shape, kernel.matrix_flops, kernel.vector_flops, traffic)
        )
    return steps


def _own_kernels(
    bundle: Bundle, size: tuple[int, int], padded: tuple[int, int], grid: WindowGrid, dtype: np.dtype[Any]
) -> tuple[tuple[Step, Step], Step]:
    """``prepare``, ``blur_logits`` and ``finish`` for a photo of 8 bits."""
    spec = bundle.manifest.require_clip()
    h, w = size
    view = Pixels(_ADDRESS, 3 * w)
    canvases = Canvases(_ADDRESS, _ADDRESS, dtype, grid, spec.patch, spec.mean, spec.std)
    region = PairRegion(_ADDRESS, (0, 0), padded)
    assert bundle.text_embeddings is not None  # it has a CLIP graph
    table = PromptTable.create(bundle.text_embeddings, bundle.manifest.prompts, bundle.manifest.ensemble)
    tokens = (padded[0] // spec.patch, padded[1] // spec.patch)
    chosen = len(select_prompts(bundle.manifest.prompts, bundle.manifest.ensemble))
    logits_flops = 2 * 3 * tokens[0] * tokens[1] * table.channels * (chosen + 1)
    made = prepare(view, view, np.uint8, size, padded, pair=region, canvases=canvases)
    logits = blur_logits(_ADDRESS, _ADDRESS, dtype, table, _ADDRESS, grid, _ADDRESS, tokens, _ADDRESS)
    done = finish(_ADDRESS, padded, view, np.uint8, size, _ADDRESS)
    first = _own("prepare", made, (1, 6, *padded), 2 * 6 * padded[0] * padded[1])
    second = _own("blur_logits", logits, (1, 1, *tokens), logits_flops)
    return (first, second), _own("finish", done, (h, w, 3), 3 * 3 * h * w)


def _own(stage: str, launch: Launch, shape: tuple[int, ...], flops: int) -> Step:
    return Step(stage, "cuda", f"kernel {launch.kernel}", shape, 0, flops, ((launch.minimum_bytes, 0),))
