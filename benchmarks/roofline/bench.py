"""``ldp bench roofline``: the floor of the whole chain, from the exported graphs and the devices' peak rates.

The chain is what the GPU runtime runs: ``prepare``, the CLIP graph on batches of windows, ``blur_logits``, the deblur
graph, ``finish``. ``benchmarks.roofline.flops`` counts what every node of the graphs costs at the wanted size,
``benchmarks.roofline.fusion`` says which nodes run as one kernel; the kernels of ``ldp_runtime.cuda`` state their own
minimum bytes. The floor of a
kernel is the longest of: matrix FLOPs at the tensor cores' peak, other FLOPs at the CUDA cores' peak, bytes at the
memory's peak. The floor of the chain is their sum: kernels run one after the other. Launches, waves that do not fill
the device, halos, and every rate below its peak come on top.

No figure for a GPU here was measured: each is a ``predicted floor``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.bundles import exporter_key, keep_deblur_graph, open_bundle
from benchmarks.harness.results import REPORTS, BenchmarkError, Report, markdown_table, save, significant
from benchmarks.roofline.flops import GraphCost, graph_cost
from benchmarks.roofline.fusion import EXTRA, FusedGraph, fuse, unfused
from benchmarks.roofline.hardware import FILE, Device, gpus, measure_cpu, sources
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.cache import cache_folder
from ldp_runtime.cuda.launch import Launch, Pixels
from ldp_runtime.cuda.launches import Canvases, PairRegion, blur_logits, finish, prepare
from ldp_runtime.cuda.prompt_table import PromptTable
from ldp_runtime.stages.blur_map import select_prompts
from ldp_runtime.stages.geometry import WindowGrid, clip_batch

if TYPE_CHECKING:
    from ldp_export.network import LDPConfig

HELP = "predict the least time that the chain can take, from its graphs and peak rates"
EXAMPLES = """examples:
  ldp bench roofline --config small --shape 1120x1680
  ldp bench roofline --config small --variants
  ldp bench roofline --bundle ldp-nano --device "RTX 3060"
"""
DEFAULT_SHAPE = (1120, 1680)
DEFAULT_DEVICE = "RTX 4090"
PREDICTED = "predicted floor"
COSTLIEST = 10

_ADDRESS = 1 << 20  # stands for any aligned device address: nothing is run
_SMALL = 0.005
_DEVICE_COLUMNS = {
    "unfused_ms": "unfused, ms",
    "fused_ms": "fused, ms",
    "fp32_accumulate_ms": "FP32 accumulation, ms",
    "cached_ms": "with cache, ms",
}


@dataclass(frozen=True)
class Step:
    """One kernel of the chain.

    Attributes:
        stage: "prepare", "clip", "blur_logits", "deblur" or "finish".
        kind: As for ``fusion.Kernel``; "cuda" for the runtime's own.
        label: What it is, for people.
        shape: Shape of its result.
        matrix_flops: For tensor cores.
        vector_flops: For CUDA cores.
        traffic: Bytes that it moves, tensor by tensor, each with the tensor's whole size if a cache may hold it between
            kernels, else with 0.
        repeats: How often it runs: CLIP's run for each batch.
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
        """What limits it: "matrix", "vector" or "memory"."""
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
        padded: ``(H, W)`` that the network sees.
        windows: Windows of CLIP.
        batches: Batches that they run in.
        clip: Cost of CLIP's graph for one batch.
        deblur: Cost of the deblur graph.
        steps: The kernels, fused by the rules.
        unfused: The same with every node by itself.
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
        """The fused steps with another deblur graph in place of the own."""
        own = [step for step in self.steps if step.stage != "deblur"]
        return tuple([*own, *_steps("deblur", deblur, fused)])


def floor(steps: Iterable[Step], device: Device, *, cached: bool = False) -> float:
    """Seconds that kernels take at least, one after the other."""
    return sum(step.seconds(device, cached=cached) for step in steps)


@dataclass(frozen=True)
class Walked:
    """A bundle's graphs at one size of the photo.

    Attributes:
        padded: ``(H, W)`` that the network sees.
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
    """Walks both graphs of a bundle; arguments and errors as for ``build_chain``."""
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
        LDPError: The bundle lacks the graphs, or they hold something unknown.
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


# --- what it says -------------------------------------------------------------------------------------------------


def design_variants(config: LDPConfig) -> dict[str, LDPConfig]:
    """Changes of a network's design whose floors are worth comparing, by what they do. None of them was trained."""
    variants = {
        "channel attention pools the whole map (NAFNet's own SCA; frame and tiles then differ)": replace(
            config, sca_cell=None
        ),
        "no BPA blocks": replace(config, bpa=()),
    }
    if config.encoder[0] > 1:
        variants["one block in place of two at the first scale, each way"] = replace(
            config, encoder=(1, *config.encoder[1:]), decoder=(*config.decoder[:-1], 1)
        )
        variants["the same, the two blocks moved to the deepest level"] = replace(
            config,
            encoder=(1, *config.encoder[1:-1], config.encoder[-1] + 1),
            decoder=(config.decoder[0] + 1, *config.decoder[1:-1], 1),
        )
    if config.stem == 1 and len(config.encoder) > 1:
        variants["pixel-unshuffle stem of 2 in place of the first scale, all other scales as they are"] = replace(
            config, stem=2, width=2 * config.width, encoder=config.encoder[1:], decoder=config.decoder[:-1]
        )
        variants["pixel-unshuffle stem of 2 before all scales, same widths"] = replace(config, stem=2)
    return {
        what: variant
        for what, variant in variants.items()
        if variant.sca_cell is None or variant.sca_cell % variant.stride == 0
    }


def variant_floors(chain: Chain, manifest: Manifest, device: Device) -> list[dict[str, Any]]:
    """The floor of the chain with each of ``design_variants`` in place of the bundle's network.

    Args:
        chain: The bundle's chain, FP16.
        manifest: Its manifest.
        device: The device.

    Returns:
        Rows of ``change``, ``parameters``, ``ms`` of the chain; the unchanged network first.
    """
    from tqdm import tqdm

    from ldp_export.network import LDPConfig

    config = LDPConfig.from_dict(manifest.network)
    rows = [_variant_row("as it is", config, chain.steps, device)]
    h, w = chain.size
    patch = manifest.require_clip().patch
    for what, variant in tqdm(design_variants(config).items(), "variants", disable=None, file=sys.stderr):
        multiple = math.lcm(16, variant.multiple, patch)
        H, W = (-(-side // multiple) * multiple for side in (h, w))
        path = export_variant(variant, patch)
        graph = graph_cost(path, {"pair": (1, 6, H, W), "blur_logits": (1, 1, H // patch, W // patch)})
        rows.append(_variant_row(what, variant, chain.with_deblur(graph, fuse(graph)), device))
    return rows


def export_variant(config: LDPConfig, patch: int) -> Path:
    """The deblur graph of a network with random weights, FP16, from the cache or exported into it.

    Args:
        config: The network.
        patch: Side of CLIP's patch in px; the graph's sides are multiples of it.

    Raises:
        BenchmarkError: There is no folder to keep it in.
    """
    path = _variant_path(config, patch)
    if path is None:
        raise BenchmarkError("expected a folder that exported graphs can be kept in, got none; set LDP_CACHE to one")
    if not path.is_file():
        from ldp_export.network import LDPNet
        from ldp_export.network.randomise import randomise

        keep_deblur_graph(randomise(LDPNet(config)), math.lcm(16, config.multiple, patch), path, half=True)
    return path


def variants_are_exported(manifest: Manifest) -> bool:
    """Whether the cache has the graphs of all of ``design_variants`` of a bundle's network."""
    from ldp_export.network import LDPConfig

    variants = design_variants(LDPConfig.from_dict(manifest.network)).values()
    paths = [_variant_path(variant, manifest.require_clip().patch) for variant in variants]
    return all(path is not None and path.is_file() for path in paths)


def _variant_path(config: LDPConfig, patch: int) -> Path | None:
    folder = cache_folder("benchmarks", exporter_key(), "variants")
    key = hashlib.sha256(json.dumps([config.to_dict(), patch], sort_keys=True).encode()).hexdigest()[:16]
    return None if folder is None else folder / f"{key}.onnx"


def _variant_row(what: str, config: LDPConfig, steps: Sequence[Step], device: Device) -> dict[str, Any]:
    import torch

    from ldp_export.network import LDPNet

    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in LDPNet(config).parameters())
    return {"change": what, "parameters": count, "ms": 1e3 * floor(steps, device)}


def fusion_floors(chain: Chain, device: Device) -> list[dict[str, Any]]:
    """The floor with fusions beyond the rules: each alone, then all; rows of ``change`` and ``ms``."""
    rows = [{"change": "the rules alone", "ms": 1e3 * floor(chain.steps, device)}]
    for what, extra in [*((name, (name,)) for name in EXTRA), ("all of these", tuple(EXTRA))]:
        steps = chain.with_deblur(chain.deblur, fuse(chain.deblur, extra))
        rows.append({"change": what, "ms": 1e3 * floor(steps, device)})
    return rows


def shares(steps: Sequence[Step], device: Device, key: Callable[[Step], str]) -> list[dict[str, Any]]:
    """Floors summed by a key, largest first: rows of ``what``, ``ms``, ``share``, ``gflop``, ``mb``."""
    groups: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        groups[key(step)].append(step)
    total = floor(steps, device)
    rows = [
        {
            "what": what,
            "ms": 1e3 * floor(group, device),
            "share": floor(group, device) / total,
            "gflop": sum(s.repeats * (s.matrix_flops + s.vector_flops) for s in group) / 1e9,
            "mb": sum(s.repeats * s.nbytes() for s in group) / 1e6,
        }
        for what, group in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])


def points(steps: Sequence[Step], device: Device) -> list[dict[str, Any]]:
    """Every step as a row: ``stage``, ``what``, ``count``, ``ms`` in all, ``share``, ``gflop``, ``mb``, ``bound``."""
    total = floor(steps, device)
    return [
        {
            "stage": step.stage,
            "what": step.label,
            "count": step.repeats,
            "ms": 1e3 * step.seconds(device),
            "share": step.seconds(device) / total,
            "gflop": step.repeats * (step.matrix_flops + step.vector_flops) / 1e9,
            "mb": step.repeats * step.nbytes() / 1e6,
            "bound": step.bound(device),
        }
        for step in steps
    ]


def costliest(steps: Sequence[Step], device: Device) -> list[dict[str, Any]]:
    """The ``COSTLIEST`` kernels, highest first, as ``points``; equal ones are summed in one row."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in points(steps, device):
        alike = (row["stage"], row["what"], row["bound"], row["ms"] / row["count"])
        if alike in groups:
            for key in ("count", "ms", "share", "gflop", "mb"):
                groups[alike][key] += row[key]
        else:
            groups[alike] = row
    return sorted(groups.values(), key=lambda row: -row["ms"])[:COSTLIEST]


def analyse(
    bundle: Bundle,
    size: tuple[int, int],
    device: str = DEFAULT_DEVICE,
    *,
    variants: bool = False,
    cpu: Sequence[Device] | None = None,
) -> dict[str, Any]:
    """Everything that the command reports, as plain JSON values.

    Args:
        bundle: The bundle.
        size: ``(h, w)`` of the photo in px.
        device: The GPU that the tables of kernels are for, a name of ``hardware.json``.
        variants: Also export the design's variants and compare their floors.
        cpu: This CPU's rates; measured if None.

    Raises:
        LDPError: The device is unknown, or the bundle's graphs cannot be walked.
    """
    cards = gpus()
    names = [card.name for card in cards]
    if device not in names:
        raise BenchmarkError(f"expected a device, one of {', '.join(names)}, got {device!r}")
    main = cards[names.index(device)]
    chains = {precision: build_chain(bundle, size, precision) for precision in ("fp16", "fp32")}
    chain = chains["fp16"]
    wide = {card.name: card for card in gpus("fp32")}
    rows = []
    for card in [*cards, *(measure_cpu() if cpu is None else cpu)]:
        own = chains[card.graph]
        bound = sum(step.seconds(card) for step in own.steps if step.bound(card) == "memory")
        rows.append(
            {
                "device": card.name,
                "label": "floor at measured rates" if card.measured else PREDICTED,
                "precision": card.precision,
                "unfused_ms": 1e3 * floor(own.unfused, card),
                "fused_ms": 1e3 * floor(own.steps, card),
                "fp32_accumulate_ms": None if card.measured else 1e3 * floor(own.steps, wide[card.name]),
                "cached_ms": None if card.measured else 1e3 * floor(own.steps, card, cached=True),
                "memory_share": bound / floor(own.steps, card),
                "matrix_tflops": card.matrix / 1e12,
                "vector_tflops": card.vector / 1e12,
                "gb_s": card.bandwidth / 1e9,
            }
        )
    deblur = [step for step in chain.steps if step.stage == "deblur"]
    return {
        "size": list(size),
        "padded": list(chain.padded),
        "windows": chain.windows,
        "batches": chain.batches,
        "device": asdict(main),
        "devices": rows,
        "totals": [_totals(name, own) for name, own in chains.items()],
        "stages": shares(chain.steps, main, lambda step: step.stage),
        "kinds": shares(deblur, main, _kind_name),
        "scales": shares(deblur, main, lambda step: _scale(step, chain.padded)),
        "bounds": shares(chain.steps, main, lambda step: step.bound(main)),
        "kernels": costliest(chain.steps, main),
        "nodes": costliest(chain.unfused, main),
        "fusions": fusion_floors(chain, main),
        "variants": variant_floors(chain, bundle.manifest, main) if variants else None,
        "points": points(chain.steps, main),
        "sources": sources(),
    }


def _totals(precision: str, chain: Chain) -> dict[str, Any]:
    def total(count: Callable[[Step], int], steps: Sequence[Step]) -> float:
        return sum(step.repeats * count(step) for step in steps) / 1e9

    return {
        "precision": precision,
        "matrix_gflop": total(lambda step: step.matrix_flops, chain.steps),
        "vector_gflop": total(lambda step: step.vector_flops, chain.steps),
        "unfused_gb": total(Step.nbytes, chain.unfused),
        "fused_gb": total(Step.nbytes, chain.steps),
        "unfused_kernels": sum(step.repeats for step in chain.unfused),
        "fused_kernels": sum(step.repeats for step in chain.steps),
    }


def _kind_name(step: Step) -> str:
    if step.kind in ("matrix", "depthwise"):
        return step.label.split(",")[0]
    names = {"norm": "layer norm", "pointwise": "pointwise", "copy": "copies (Pad, Concat)"}
    return names.get(step.kind, step.kind)


def _scale(step: Step, padded: tuple[int, int]) -> str:
    """Which part of the padded frame's pixels a kernel of the network works on: "1/1", "1/2" ...; by its side."""
    if step.kind in ("attention", "copy") or len(step.shape) != 4:
        return "BPA windows"
    ratio = math.sqrt(padded[0] * padded[1] / (step.shape[2] * step.shape[3]))
    return f"1/{2 ** round(math.log2(ratio))}"


# --- how it says it -----------------------------------------------------------------------------------------------


def markdown(data: Mapping[str, Any]) -> str:
    """The report's tables and its finding, from ``analyse``'s values alone."""
    (h, w), (H, W), main = data["size"], data["padded"], data["device"]["name"]
    parts = [
        f"# Roofline, {h} x {w} px",
        f"Padded to {H} x {W} px; {data['windows']} CLIP windows in {data['batches']} batches. No GPU was used: every "
        f"figure for one is a **{PREDICTED}**, made of the graphs and the peak rates in `benchmarks/{FILE.name}`. The "
        "rules of counting and fusing stand in `benchmarks/roofline/flops.py` and `benchmarks/roofline/fusion.py`.",
        "## Devices",
        markdown_table(
            ["device", "figure", "precision", *_DEVICE_COLUMNS.values(), "bound by memory"],
            [
                [
                    *(row["device"], row["label"], row["precision"]),
                    *(significant(row[key]) for key in _DEVICE_COLUMNS),
                    f"{row['memory_share']:.0%}",
                ]
                for row in data["devices"]
            ],
            "lllrrrrr",
        ),
        "*FP32 accumulation*: fused, tensor cores at that rate. *With cache*: fused, and tensors between kernels that "
        "fit into the last-level cache whole cost no memory traffic: the most that a cache could do, and so the lowest "
        "of the bounds. CPU rates are measured by a matrix product and a copy on this machine. "
        f"{unverified(data['sources'])}",
        "## Work",
        markdown_table(
            ["graphs", "matrix GFLOP", "other GFLOP", "GB unfused", "GB fused", "kernels unfused", "fused"],
            [
                [row["precision"]]
                + [significant(row[key]) for key in ("matrix_gflop", "vector_gflop", "unfused_gb", "fused_gb")]
                + [row["unfused_kernels"], row["fused_kernels"]]
                for row in data["totals"]
            ],
        ),
        f"## Where the time goes: {main}, {PREDICTED}",
        _share_table("stage", data["stages"]),
        _share_table("deblur graph, by kind of kernel", data["kinds"]),
        _share_table("deblur graph, by scale", data["scales"]),
        f"## The {COSTLIEST} costliest kernels, fused, equal ones together ({main}, {PREDICTED})",
        _cost_table(data["kernels"]),
        f"## The {COSTLIEST} costliest nodes, unfused, equal ones together ({main}, {PREDICTED})",
        _cost_table(data["nodes"]),
        f"## What would lower the floor ({main}, {PREDICTED} of the chain)",
        _change_table("fusions beyond the rules, same network", data["fusions"]),
    ]
    if data["variants"]:
        parts.append(_change_table("other designs of the network, none of them trained", data["variants"]))
    parts += ["## Finding", finding(data), "## Where the rates come from", _source_table(data["sources"])]
    return "\n\n".join(parts) + "\n"


def finding(data: Mapping[str, Any]) -> str:
    """What dominates, and which change would lower the floor most, in sentences made of the figures."""
    main, total = data["device"]["name"], data["fusions"][0]["ms"]
    stage, scale, bound = data["stages"][0], data["scales"][0], data["bounds"][0]
    kinds = ", ".join(f"{row['what']} {row['share']:.0%}" for row in data["kinds"][:4])
    h, w = data["size"]
    lines = [
        f"On the {main} the {PREDICTED} of the chain at {h} x {w} px is {significant(total)} ms, of which the "
        f"{stage['what']} stage takes {stage['share']:.0%}. Kernels bound by {bound['what']} make up "
        f"{bound['share']:.0%} of it.",
        f"Within the deblur graph, kernels at scale {scale['what']} take {scale['share']:.0%}; by kind: {kinds}.",
    ]
    alone = data["fusions"][1:-1]
    best = min(alone, key=lambda row: row["ms"])
    everything = data["fusions"][-1]
    lines.append(
        f"With the network as it is, the fusion that would lower the floor most by itself is *{best['change']}*: "
        f"{significant(best['ms'])} ms ({_change(best['ms'], total)}); all of those in the table together: "
        f"{significant(everything['ms'])} ms ({_change(everything['ms'], total)})."
    )
    if data["variants"]:
        best = min(data["variants"][1:], key=lambda row: row["ms"])
        lines.append(
            f"Among the designs, *{best['change']}* would lower it most: {significant(best['ms'])} ms "
            f"({_change(best['ms'], total)}) with {best['parameters'] / 1e6:.1f} M parameters. What it would do to the "
            "restored image is unknown until it is trained."
        )
    else:
        lines.append("Other designs of the network were not compared; `ldp bench roofline --variants` does it.")
    return "\n\n".join(lines)


def unverified(rows: Sequence[Mapping[str, str]]) -> str:
    """Which peak rates were not found in, or derived from, what a document says, in a sentence."""
    found = [f"{row['figures']} of the {row['device']}" for row in rows if row["status"] == "unverified"]
    return f"Unverified: {'; '.join(found)}." if found else "Every peak rate has a source that was checked."


def _source_table(rows: Sequence[Mapping[str, str]]) -> str:
    cells = [
        [row["device"], row["figures"], f"{row['document']}, {row['where']}", f"**{row['status']}**: {row['check']}"]
        for row in rows
    ]
    return markdown_table(["device", "figures", "document, where", "how far it was checked"], cells, "llll")


def _share_table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [row for row in rows if row["share"] >= _SMALL]
    cells = [
        [row["what"], significant(row["ms"]), f"{row['share']:.1%}", significant(row["gflop"]), significant(row["mb"])]
        for row in shown
    ]
    return markdown_table([title, "ms", "share", "GFLOP", "MB"], cells)


def _cost_table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [
            *(row["what"], row["stage"], row["bound"], row["count"], significant(row["ms"]), f"{row['share']:.1%}"),
            *(significant(row["gflop"]), significant(row["mb"])),
        ]
        for row in rows
    ]
    header = ["what", "stage", "bound by", "runs", "ms in all", "share", "GFLOP", "MB"]
    return markdown_table(header, cells, "lllrrrrr")


def _change_table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    first = rows[0]["ms"]
    sized = "parameters" in rows[0]
    cells = [
        [row["change"]]
        + ([f"{row['parameters'] / 1e6:.1f} M"] if sized else [])
        + [significant(row["ms"]), _change(row["ms"], first)]
        for row in rows
    ]
    return markdown_table([title, *(["parameters"] if sized else []), "ms", "change"], cells)


def _change(value: float, first: float) -> str:
    return f"{value / first - 1:+.1%}"


def plot(data: Mapping[str, Any], paths: Sequence[Path]) -> None:
    """Draws the roofs of all devices, and the kernels on the roof of the main one, area as share of the floor.

    Args:
        data: ``analyse``'s values.
        paths: Image files to write; the suffix is the format, png or svg.

    Raises:
        BenchmarkError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchmarkError(f"expected matplotlib for the plot, got {error}; install it") from error

    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    intensity = np.logspace(-1.5, 4, 200)
    for row in data["devices"]:
        roof = np.minimum(row["matrix_tflops"], intensity * row["gb_s"] / 1e3)
        main = row["device"] == data["device"]["name"]
        style = {"linewidth": 2.5} if main else {"linewidth": 1, "alpha": 0.7}
        line = "--" if row["label"] != PREDICTED else "-"
        axes.loglog(intensity, roof, line, label=f"{row['device']} ({row['label']})", **style)
    points = [p for p in data["points"] if p["gflop"] > 0 and p["ms"] > 0]
    for stage, marker in (("clip", "s"), ("deblur", "o")):
        own = [p for p in points if p["stage"] == stage]
        axes.scatter(
            [p["gflop"] * 1e3 / p["mb"] for p in own],
            [p["gflop"] / p["ms"] for p in own],
            [20 + 3000 * p["share"] for p in own],
            marker=marker,
            alpha=0.4,
            edgecolors="black",
            linewidths=0.3,
            label=f"{stage} kernels, {data['device']['name']}: area is the share of the floor",
        )
    axes.set(
        xlabel="FLOP a byte (fused kernels)",
        ylabel="TFLOP/s at the floor",
        title=f"Roofline at {data['size'][0]} x {data['size'][1]} px: {PREDICTED}, not measured",
    )
    axes.grid(which="both", alpha=0.2)
    figure.legend(fontsize=7, loc="outside lower center", ncols=2, markerscale=0.5)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        metadata = {"Date": None} if path.suffix == ".svg" else {}  # the same figures give the same file
        figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)
        temporary.replace(path)


# --- the command --------------------------------------------------------------------------------------------------


def parse_size(text: str) -> tuple[int, int]:
    """``HEIGHTxWIDTH`` in px, both at least 1; for argparse."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH in px, such as 1120x1680, got {text!r}")
    return int(sides[0]), int(sides[1])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--bundle", help="a bundle's name or folder (default: ldp-nano)")
    which.add_argument("--config", help="a config of the network, exported with random weights: nano, small or large")
    parser.add_argument(
        "--shape", type=parse_size, default=DEFAULT_SHAPE, metavar="HxW", help="size of the photo (default: 1120x1680)"
    )
    parser.add_argument("--device", default=DEFAULT_DEVICE, help=f"GPU of the tables (default: {DEFAULT_DEVICE})")
    parser.add_argument(
        "--variants",
        action="store_true",
        help="also compare other designs of the network, which are exported once (minutes); done anyway if they are",
    )
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    bundle = open_bundle(arguments.bundle, arguments.config)
    variants = arguments.variants or variants_are_exported(bundle.manifest)
    data = analyse(bundle, arguments.shape, arguments.device, variants=variants)
    name = f"roofline-{bundle.manifest.name}"
    plot(data, [arguments.output / f"{name}.{suffix}" for suffix in ("svg", "png")])
    text = f"{markdown(data)}\n![roofline]({name}.svg)\n"
    paths = save(Report.new("roofline", data, bundle), arguments.output, name, text)
    print(text)
    print(f"wrote {', '.join(map(str, paths))} and {name}.svg, .png", file=sys.stderr)
