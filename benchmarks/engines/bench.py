"""Builds TensorRT engines and measures time, sizes, memory, and the layers that TensorRT fuses.

No GPU is needed: TensorRT-RTX compiles for GPUs that are absent and reports their layers. The speed of an engine is not
measured here.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.engines.graph_report import count_nodes, needless_nodes, read_report
from benchmarks.harness import options
from benchmarks.harness.bundles import random_bundle
from benchmarks.harness.results import Report, publish
from benchmarks.harness.tables import markdown_table
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import ENGINE_PRECISION, FLAVOURS
from ldp_runtime.bundle.manifest import GRAPHS
from ldp_runtime.commands.options import parse_size

if TYPE_CHECKING:
    from ldp_export.bundling.engine import SizeRange
    from ldp_export.bundling.tensorrt_builder import Part, Plan, TensorRT

EXAMPLES = """\
examples:
  python -m benchmarks engines
  python -m benchmarks engines --bundle ldp-nano --config small --config large --shape 1120x1680
  python -m benchmarks engines --bundle ldp-nano --before older/ldp-nano

--config exports a bundle with random weights and a random ViT-B/32, once, into
LDP's cache; neither sizes nor times depend on the weights' values. Each engine
is built twice: for time and size, and for TensorRT's report of its layers.
Nothing is written into the bundles. Writes engine_build.json and engine_build.md.
"""
NAME = "engine_build"


@dataclass(frozen=True)
class Graph:
    """A graph before TensorRT.

    Attributes:
        bundle: Name of its bundle.
        kind: "clip" or "deblur".
        nodes: Its nodes.
        casts: Of these, casts.
        transposes: Of these, transpositions.
        needless: ``graph_report.needless_nodes`` among them.
        bytes: Size of its files.
    """

    bundle: str
    kind: str
    nodes: int
    casts: int
    transposes: int
    needless: int
    bytes: int


@dataclass(frozen=True)
class Build:
    """A build of an engine.

    Attributes:
        bundle: Name of its bundle.
        kind: "clip", "head" (what of the deblur graph needs no blur map) or "deblur" (the rest).
        targets: Architectures of its GPUs.
        sizes: Padded sizes of its pairs.
        fixed: It accepts a single size.
        wall_s: Seconds of the build.
        cpu_s: Seconds of processor time, of all threads.
        bytes: Size of the engine.
        activation_bytes: GPU memory beside weights, inputs and outputs, at the largest shapes.
        parsed_layers: Layers of the network as parsed.
        layers: Layers of the engine.
        attentions: Layers that compute a whole attention.
        moved_bytes: Bytes that the engine's layers read and write, without weights; for a single size only.
        warnings: Warnings of TensorRT.
    """

    bundle: str
    kind: str
    targets: tuple[str, ...]
    sizes: str
    fixed: bool
    wall_s: float
    cpu_s: float
    bytes: int
    activation_bytes: int | None
    parsed_layers: int
    layers: int
    attentions: int
    moved_bytes: int | None
    warnings: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--bundle", action="append", metavar="BUNDLE", help="a bundle (default: ldp-nano)")
    parser.add_argument("--config", action="append", metavar="NAME", help="a config with random weights, such as small")
    parser.add_argument("--before", action="append", metavar="BUNDLE", help="a bundle with older graphs, to compare")
    parser.add_argument(
        "--shape",
        type=parse_size,
        default="1120x1680",
        metavar="HxW",
        help="the one size (default: 1120x1680)",
    )
    parser.add_argument("--flavour", default="rtx", choices=tuple(FLAVOURS), help="which TensorRT (default: rtx)")
    parser.add_argument("--arch", metavar="SM,...", help="GPUs to build for (default: as ldp-export engine)")
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Builds, prints the tables and writes the results."""
    from ldp_export.bundling.engine import SizeRange
    from ldp_export.bundling.tensorrt_builder import TensorRT

    names = arguments.bundle or ([] if arguments.config else ["ldp-nano"])
    bundles = [Bundle.load(name) for name in names]
    bundles += [Bundle.load(random_bundle(config)) for config in arguments.config or ()]
    older = [Bundle.load(name) for name in arguments.before or ()]
    tensorrt = TensorRT(arguments.flavour)
    targets = tensorrt.targets(None if arguments.arch is None else arguments.arch.split(","))
    shape = arguments.shape

    graphs = [graph for bundle in bundles for graph in measure_graphs(bundle)]
    builds = []
    for bundle in bundles:
        padding = bundle.manifest.padding
        for sizes in (SizeRange.fixed(padding, shape), SizeRange.covering(padding, None, None, None)):
            for group in targets:
                builds += list(measure_builds(bundle, tensorrt, sizes, group))
    data: dict[str, Any] = {
        "tensorrt": f"{tensorrt.name} {tensorrt.version}",
        "graphs": [asdict(graph) for graph in graphs],
        "builds": [asdict(build) for build in builds],
    }
    if older:
        data["before"] = {
            "graphs": [asdict(graph) for bundle in older for graph in measure_graphs(bundle)],
            "builds": [
                asdict(build)
                for bundle in older
                for build in measure_builds(
                    bundle, tensorrt, SizeRange.fixed(bundle.manifest.padding, shape), targets[0]
                )
            ],
        }
    report = Report.new(NAME, data, bundles[0] if len(bundles) == 1 else None)
    publish(report, markdown(data), arguments.output, NAME)


def measure_graphs(bundle: Bundle) -> list[Graph]:
    """Counts the nodes of a bundle's FP16 graphs."""
    measured = []
    for kind in GRAPHS:
        path = bundle.graph(kind, ENGINE_PRECISION)
        counts = count_nodes(path)
        size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
        measured.append(
            Graph(
                bundle=bundle.manifest.name,
                kind=kind,
                nodes=counts.total(),
                casts=counts["Cast"],
                transposes=counts["Transpose"],
                needless=len(needless_nodes(path)),
                bytes=size,
            )
        )
    return measured


def measure_builds(bundle: Bundle, tensorrt: TensorRT, sizes: SizeRange, targets: tuple[str, ...]) -> Iterator[Build]:
    """Builds the engines of a bundle.

    Args:
        bundle: The bundle; nothing is written into it.
        tensorrt: The builder.
        sizes: Padded sizes.
        targets: Architectures of the GPUs.
    """
    from ldp_export.bundling.engine import graph_parts, profiles

    with tempfile.TemporaryDirectory() as folder:
        parts = [
            part
            for kind, profile in profiles(bundle.manifest, sizes).items()
            for part in graph_parts(bundle, kind, profile, Path(folder), tensorrt.flavour)
        ]
        for part in parts:
            yield _build(bundle, tensorrt, part, sizes, targets)


def _build(bundle: Bundle, tensorrt: TensorRT, part: Part, sizes: SizeRange, targets: tuple[str, ...]) -> Build:
    print(f"{bundle.manifest.name}: {part.name} for {', '.join(targets)}, {sizes}", file=sys.stderr)

    def compiled(*, detailed: bool = False) -> Plan:
        return tensorrt.build(part.graph, part.profile, targets, channels_last=part.channels_last, detailed=detailed)

    wall, cpu = time.perf_counter(), time.process_time()
    plan = compiled()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    report = read_report(compiled(detailed=True).messages)
    return Build(
        bundle=bundle.manifest.name,
        kind=part.name,
        targets=targets,
        sizes=str(sizes),
        fixed=sizes.min == sizes.max,
        wall_s=round(wall, 2),
        cpu_s=round(cpu, 2),
        bytes=len(plan.content),
        activation_bytes=report.activation_bytes,
        parsed_layers=plan.layers,
        layers=len(report.layers),
        attentions=report.attentions,
        moved_bytes=report.bytes,
        warnings=plan.warnings,
    )


def markdown(data: dict[str, Any]) -> str:
    """The report's tables.

    Args:
        data: The report's data.
    """
    parts = [
        "# Engine builds",
        "",
        f"{data['tensorrt']}, with no GPU. Times are of one build each, on a machine with other load: compare "
        "processor time (all threads). Memory is what a run needs beside weights, inputs and outputs, at the largest "
        "shapes, as TensorRT plans it. Bytes moved are the inputs and outputs of the engine's layers, each read or "
        "written once, without weights, as TensorRT reports the layers. Nothing here ran on a GPU.",
        "",
        _build_table(data["builds"]),
        "",
        "## Graphs",
        "",
        "Needless are nodes that pass their input on, and casts and transpositions of another one of their kind.",
        "",
        _graph_table(data["graphs"]),
    ]
    if "before" in data:
        parts += [
            "",
            "## Before",
            "",
            "Bundles with older graphs.",
            "",
            _graph_table(data["before"]["graphs"]),
            "",
            _build_table(data["before"]["builds"]),
        ]
    warned = sorted({warning for build in data["builds"] for warning in build["warnings"]})
    parts += ["", "Warnings of TensorRT: " + ("; ".join(warned) if warned else "none") + "."]
    return "\n".join(parts)


def _build_table(builds: list[dict[str, Any]]) -> str:
    header = ("bundle", "graph", "GPUs", "sizes", "wall s", "CPU s", "engine MiB", "memory MiB", "layers", "GB moved")
    rows = [
        (
            build["bundle"],
            build["kind"],
            " ".join(build["targets"]),
            build["sizes"],
            f"{build['wall_s']:.1f}",
            f"{build['cpu_s']:.1f}",
            f"{build['bytes'] / 2**20:.1f}",
            None if build["activation_bytes"] is None else f"{build['activation_bytes'] / 2**20:.0f}",
            f"{build['parsed_layers']} to {build['layers']}",
            None if build["moved_bytes"] is None else f"{build['moved_bytes'] / 1e9:.2f}",
        )
        for build in builds
    ]
    return markdown_table(header, rows, "llllrrrrrr")


def _graph_table(graphs: list[dict[str, Any]]) -> str:
    header = ("bundle", "graph", "MiB", "nodes", "casts", "transpositions", "needless")
    rows = [
        (g["bundle"], g["kind"], f"{g['bytes'] / 2**20:.1f}", g["nodes"], g["casts"], g["transposes"], g["needless"])
        for g in graphs
    ]
    return markdown_table(header, rows, "llrrrrr")
