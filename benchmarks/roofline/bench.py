"""The floor of the whole chain on GPUs, by TensorRT-RTX's own plan and the devices' peak rates.

The chain is that of the GPU runtime: ``prepare``, CLIP's engine on batches of windows, ``blur_logits``, the deblur
engine in two parts, ``blur_map`` and ``finish``. The engines are built here, with no GPU; TensorRT-RTX says which
layers it runs and what each reads and writes, ``benchmarks.roofline.flops`` counts what their nodes compute, and the
kernels of ``ldp_runtime.cuda`` state their own minimum bytes. The floor of a layer is the longest of: matrix FLOPs at
the tensor cores' peak, other FLOPs at the CUDA cores' peak, bytes at the memory's peak. The floor of the chain is their
sum, as if layers ran one after the other; what CLIP beside the first part of the deblur engine takes off at best is
told apart. Launches, waves that do not fill the device, and every rate below its peak add to it; a cache takes from it,
at most as far as the column for an ideal one says.

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
from benchmarks.roofline.chain import Step, build_chain, by_stream, floor, floor_beside, walk_graphs
from benchmarks.roofline.hardware import Device, gpus, measure_cpu, sources
from benchmarks.roofline.plot import plot
from benchmarks.roofline.tables import COSTLIEST, PREDICTED, markdown
from ldp_runtime.bundle.bundle import Bundle

EXAMPLES = """\
examples:
  python -m benchmarks roofline --config small --shape 1120x1680
  python -m benchmarks roofline --bundle ldp-nano --device "RTX 3060"

Needs TensorRT-RTX (the extra rtx), and no GPU. Writes roofline-NAME.json,
roofline-NAME.md and roofline-NAME.png into the output folder.
"""

DEFAULT_DEVICE = "RTX 4090"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    options.add_bundle(parser)
    options.add_shape(parser)
    parser.add_argument("--device", default=DEFAULT_DEVICE, help=f"GPU of the tables (default: {DEFAULT_DEVICE})")
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Computes the floors, prints the tables and writes the results."""
    bundle = open_bundle(arguments.bundle, arguments.config)
    data = analyse(bundle, arguments.shape, arguments.device)
    picture = f"roofline-{bundle.manifest.name}.png"
    plot(data, arguments.output / picture)
    publish(Report.new("roofline", data, bundle), f"{markdown(data)}\n![roofline]({picture})\n", arguments.output)


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
            "what": step.kind,
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
    """The ``COSTLIEST`` layers, highest first, as ``points``; equal ones are summed in one row."""
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
    bundle: Bundle, size: tuple[int, int], device: str = DEFAULT_DEVICE, *, cpu: Sequence[Device] | None = None
) -> dict[str, Any]:
    """Everything that the command reports, as plain JSON values.

    Args:
        bundle: The bundle.
        size: ``(h, w)`` of the photo in px.
        device: The GPU that the tables of layers are for, a name of ``hardware.json``.
        cpu: This CPU's rates; measured if None.

    Raises:
        LDPError: The device is unknown, TensorRT-RTX is not installed, or the bundle's graphs cannot be walked.
    """
    cards = gpus()
    names = [card.name for card in cards]
    if device not in names:
        raise BenchmarkError(f"expected a device, one of {', '.join(names)}, got {device!r}")
    main = cards[names.index(device)]
    chain = build_chain(bundle, size)
    steps = chain.steps
    deblur = [step for step in steps if step.stage in ("head", "deblur")]
    wides = gpus("fp32")
    return {
        "size": list(size),
        "padded": list(chain.padded),
        "windows": chain.windows,
        "batches": chain.batches,
        "plan": chain.plan,
        "device": asdict(main),
        "devices": [
            *(_gpu_row(card, wide, steps, chain.copied) for card, wide in zip(cards, wides, strict=True)),
            *(_cpu_row(card, bundle, size) for card in (measure_cpu() if cpu is None else cpu)),
        ],
        "totals": {
            "matrix_gflop": sum(step.repeats * step.matrix_flops for step in steps) / 1e9,
            "vector_gflop": sum(step.repeats * step.vector_flops for step in steps) / 1e9,
            "gb": sum(step.repeats * step.nbytes() for step in steps) / 1e9,
            "launches": sum(step.repeats for step in steps),
        },
        "stages": shares(steps, main, lambda step: step.stage),
        "kinds": shares(deblur, main, lambda step: step.kind),
        "scales": shares(deblur, main, lambda step: _scale(step, chain.padded)),
        "bounds": shares(steps, main, lambda step: step.bound(main)),
        "layers": costliest(steps, main),
        "points": points(steps, main),
        "beside": {
            "crossing_mb": chain.crossing / 1e6,
            "rows": [
                _beside_row(device, accumulation, cached, steps)
                for card, wide in zip(cards, wides, strict=True)
                for accumulation, device in (("FP16", card), ("FP32", wide))
                for cached in (False, True)
            ],
        },
        "sources": sources(),
    }


def _gpu_row(card: Device, wide: Device, steps: Sequence[Step], copied: tuple[int, int]) -> dict[str, Any]:
    """The floors on a GPU; ``wide`` is the same card with FP32 accumulation."""
    total = floor(steps, card)
    return {
        "device": card.name,
        "label": PREDICTED,
        "precision": card.precision,
        "floor_ms": 1e3 * total,
        "fp32_accumulate_ms": 1e3 * floor(steps, wide),
        "cached_ms": 1e3 * floor(steps, card, cached=True),
        "cached_fp32_accumulate_ms": 1e3 * floor(steps, wide, cached=True),
        "copies_ms": 1e3 * sum(copied) / card.link,
        "memory_share": sum(step.seconds(card) for step in steps if step.bound(card) == "memory") / total,
        "matrix_tflops": card.matrix / 1e12,
        "gb_s": card.bandwidth / 1e9,
    }


def _beside_row(device: Device, accumulation: str, cached: bool, steps: Sequence[Step]) -> dict[str, Any]:
    """The chain on a GPU with CLIP beside the deblur graph's head, in ms."""
    clip, head, _ = by_stream(steps)
    return {
        "device": device.name,
        "accumulation": accumulation,
        "cached": cached,
        "clip_ms": 1e3 * floor(clip, device, cached=cached),
        "head_ms": 1e3 * floor(head, device, cached=cached),
        "in_turn_ms": 1e3 * floor(steps, device, cached=cached),
        "at_best_ms": 1e3 * floor_beside(steps, device, cached=cached),
    }


def _cpu_row(card: Device, bundle: Bundle, size: tuple[int, int]) -> dict[str, Any]:
    """The floor on this CPU: the convolutions and matrix products alone, at its measured rate."""
    walked = walk_graphs(bundle, size, "fp32")
    flops = walked.batches * walked.clip.matrix_flops + walked.deblur.matrix_flops
    unknown = dict.fromkeys(("fp32_accumulate_ms", "cached_ms", "cached_fp32_accumulate_ms", "copies_ms"))
    return unknown | {
        "device": card.name,
        "label": "arithmetic alone, at the measured rate",
        "precision": card.precision,
        "floor_ms": 1e3 * flops / card.matrix,
        "memory_share": None,
        "matrix_tflops": card.matrix / 1e12,
        "gb_s": card.bandwidth / 1e9,
    }


def _scale(step: Step, padded: tuple[int, int]) -> str:
    """Which part of the padded frame's pixels a layer of the network writes: "1/1", "1/2" ...; by its side."""
    if len(step.shape) != 4 or step.shape[0] != 1:
        return "windows and pooled cells"
    ratio = math.sqrt(padded[0] * padded[1] / max(step.shape[2] * step.shape[3], 1))
    return f"1/{2 ** round(math.log2(ratio))}"
