"""The floor of the whole chain, from the exported graphs and the devices' peak rates.

The chain is that of the GPU runtime: ``prepare``, the CLIP graph on batches of windows, ``blur_logits``, the deblur
graph, ``finish``. ``benchmarks.roofline.flops`` counts the cost of every node of the graphs at one size,
``benchmarks.roofline.fusion`` says which nodes run as one kernel; the kernels of ``ldp_runtime.cuda`` state their own
minimum bytes. The floor of a kernel is the longest of: matrix FLOPs at the tensor cores' peak, other FLOPs at the CUDA
cores' peak, bytes at the memory's peak. The floor of the chain is their sum: kernels run one after the other. Launches,
waves that do not fill the device, halos, and every rate below its peak add to it.

No figure of a GPU here is measured: each is a ``predicted floor``.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.harness import options
from benchmarks.harness.bundles import open_bundle
from benchmarks.harness.results import BenchmarkError, Report, publish
from benchmarks.roofline.chain import Chain, Step, build_chain, floor
from benchmarks.roofline.fusion import EXTRA, fuse
from benchmarks.roofline.hardware import Device, gpus, measure_cpu, sources
from benchmarks.roofline.plot import plot
from benchmarks.roofline.tables import COSTLIEST, PREDICTED, markdown
from benchmarks.roofline.variants import variant_floors, variants_are_exported
from ldp_runtime.bundle.bundle import Bundle

EXAMPLES = """\
examples:
  python -m benchmarks roofline --config small --shape 1120x1680
  python -m benchmarks roofline --config small --variants
  python -m benchmarks roofline --bundle ldp-nano --device "RTX 3060"

Writes roofline-NAME.json, roofline-NAME.md and roofline-NAME.png into the
output folder.
"""

DEFAULT_DEVICE = "RTX 4090"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    options.add_bundle(parser)
    parser.add_argument(
        "--shape",
        type=options.parse_shape,
        default=options.DEFAULT_SHAPE,
        metavar="HxW",
        help="size of the photo (default: 1120x1680)",
    )
    parser.add_argument("--device", default=DEFAULT_DEVICE, help=f"GPU of the tables (default: {DEFAULT_DEVICE})")
    parser.add_argument(
        "--variants",
        action="store_true",
        help="compare other designs of the network as well; their export takes minutes, once; always on afterwards",
    )
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Computes the floors, prints the tables and writes the results."""
    bundle = open_bundle(arguments.bundle, arguments.config)
    variants = arguments.variants or variants_are_exported(bundle.manifest)
    data = analyse(bundle, arguments.shape, arguments.device, variants=variants)
    picture = f"roofline-{bundle.manifest.name}.png"
    plot(data, arguments.output / picture)
    publish(Report.new("roofline", data, bundle), f"{markdown(data)}\n![roofline]({picture})\n", arguments.output)


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
