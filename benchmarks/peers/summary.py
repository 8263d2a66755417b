"""Figures of a comparison with peers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.tables import size_text
from benchmarks.harness.timing import ratio, summarise
from benchmarks.peers.export import export_peer
from benchmarks.roofline.chain import walk_graphs
from benchmarks.roofline.flops import graph_cost
from ldp_export.network.published import Published
from ldp_runtime.bundle.bundle import Bundle

if TYPE_CHECKING:
    from benchmarks.latency.worker import Block


OURS = "ours"

_QUOTED_OURS = {"small": "Ours (Small)", "large": "Ours (Large)"}


@dataclass
class Measurement:
    """The blocks of a network on a backend at one size.

    Attributes:
        who: ``OURS`` or a name of ``PEERS``.
        backend: "torch" or a backend.
        precision: Its precision.
        size: ``(h, w)`` in px.
        blocks: One per round.
        error: Why there are none.
    """

    who: str
    backend: str
    precision: str
    size: tuple[int, int]
    blocks: list[Block] = field(default_factory=list)
    error: str | None = None

    @property
    def seconds(self) -> list[list[float]]:
        """Seconds of the runs of each round."""
        return [block.seconds for block in self.blocks]


def summarise_all(bundle: Bundle, peers: Sequence[Published], measurements: Sequence[Measurement]) -> dict[str, Any]:
    """The report's figures, as plain JSON values.

    Returns:
        ``networks`` (parameters, their source, quoted accuracy, and FLOPs of the ONNX graphs for one photo of each
        size), ``rows`` (one per measurement: times, memory, both as ratios to ours), ``scaling`` (of each network on
        each backend: exponent of time against pixels, MB of peak memory per megapixel, both between the smallest and
        the largest size).
    """
    ours = {(m.backend, m.precision, m.size): m for m in measurements if m.who == OURS}
    sizes = sorted({m.size for m in measurements}, key=math.prod)
    return {
        "networks": [_own_network(bundle, sizes), *(_network(peer, sizes) for peer in peers)],
        "rows": [_row(m, ours[m.backend, m.precision, m.size]) for m in measurements],
        "scaling": _scaling(measurements),
    }


def _row(measurement: Measurement, ours: Measurement) -> dict[str, Any]:
    row: dict[str, Any] = {
        "who": measurement.who,
        "backend": measurement.backend,
        "precision": measurement.precision,
        "size": list(measurement.size),
        "error": measurement.error,
    }
    if measurement.error is not None or not measurement.blocks:
        return row | dict.fromkeys(
            ("seconds", "p5", "p95", "runs", "host_bytes", "time_ratio", "memory_ratio", "device")
        )
    summary = summarise(measurement.seconds)
    memory = max(block.host_bytes for block in measurement.blocks)
    both = bool(ours.blocks) and len(ours.blocks) == len(measurement.blocks)
    return row | {
        "seconds": summary.median,
        "p5": summary.p5,
        "p95": summary.p95,
        "runs": summary.runs,
        "host_bytes": memory,
        "time_ratio": ratio(measurement.seconds, ours.seconds).value if both else None,
        "memory_ratio": memory / max(block.host_bytes for block in ours.blocks) if both else None,
        "device": measurement.blocks[0].device,
    }


def _scaling(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    series: dict[tuple[str, str, str], list[Measurement]] = {}
    for m in measurements:
        if m.blocks:
            series.setdefault((m.who, m.backend, m.precision), []).append(m)
    rows = []
    for (who, backend, precision), points in series.items():
        first, last = points[0], points[-1]
        pixels = [math.prod(first.size), math.prod(last.size)]
        if pixels[0] == pixels[1]:
            continue
        times = [summarise(point.seconds).median for point in (first, last)]
        memory = [max(block.host_bytes for block in point.blocks) for point in (first, last)]
        rows.append(
            {
                "who": who,
                "backend": backend,
                "precision": precision,
                "exponent": math.log(times[1] / times[0]) / math.log(pixels[1] / pixels[0]),
                "mb_a_megapixel": (memory[1] - memory[0]) / (pixels[1] - pixels[0]),
            }
        )
    return rows


def _network(peer: Published, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    from ldp_export.evaluation.paper import load_table
    from ldp_runtime.stages.geometry import Padding, padding_multiple

    quoted = None
    if peer.quoted:
        quoted = _quote(load_table(1).find(peer.quoted).values, f"LDP paper, Table 1, {peer.quoted}", "average_")
    elif peer.quoted_ablation:
        quoted = _quote(load_table(6).find(peer.quoted_ablation).values, "LDP paper, Table 6, i", "")
    graph = export_peer(peer, half=False)
    flops = {}
    for size in sizes:
        H, W = Padding(padding_multiple(peer.multiple)).padded_size(*size)
        cost = graph_cost(graph, {"pair": (1, 6, H, W)})
        flops[size_text(size)] = cost.contraction_flops
    return {
        "who": peer.name,
        "title": peer.title,
        "parameters": peer.parameters,
        "source": peer.source,
        "quoted": quoted,
        "flops": flops,
    }


def _own_network(bundle: Bundle, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    from ldp_export.evaluation.paper import load_table

    name = str(bundle.manifest.network.get("name"))
    row = _QUOTED_OURS.get(name)
    flops = {}
    for size in sizes:
        walked = walk_graphs(bundle, size, "fp32")
        flops[size_text(size)] = walked.batches * walked.clip.contraction_flops + walked.deblur.contraction_flops
    return {
        "who": OURS,
        "title": f"{bundle.manifest.name}, the whole chain",
        "parameters": _weights(bundle.graph("clip")) + _weights(bundle.graph("deblur")),
        "source": "weights in both graphs, CLIP's included",
        "quoted": None
        if row is None
        else _quote(load_table(1).find(row).values, f"LDP paper, Table 1, {row}", "average_"),
        "flops": flops,
    }


def _weights(graph: Path) -> int:
    import onnx

    return sum(math.prod(t.dims) for t in onnx.load(graph, load_external_data=False).graph.initializer if t.dims)


def _quote(values: Mapping[str, float], source: str, prefix: str) -> dict[str, Any]:
    return {"psnr": values[f"{prefix}psnr"], "ssim": values[f"{prefix}ssim"], "source": source}
