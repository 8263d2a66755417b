"""Peers beside ours on the same pair, backend by backend, at two sizes or more.

Ours is the whole chain, CLIP and blur map included; a peer is its network with the runtime's padding and rounding. Each
measurement is a process of its own, so that its peak memory is its own too, and those of one round alternate, so that
other load on the machine affects all alike. Peers run in eager torch, and as ONNX graphs by our exporter and backends.
All weights of the peers are random; their accuracy is quoted from the LDP paper and labelled so.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import options
from benchmarks.harness.bundles import open_bundle
from benchmarks.harness.processes import run_spec
from benchmarks.harness.results import BenchmarkError, Report, publish
from benchmarks.harness.sample import pair_files, write_pair
from benchmarks.harness.tables import size_text
from benchmarks.latency.worker import Block, Spec, Timing
from benchmarks.peers import PEERS
from benchmarks.peers.export import export_peer
from benchmarks.peers.summary import OURS, Measurement, summarise_all
from benchmarks.peers.tables import markdown
from benchmarks.peers.worker import PeerSpec
from ldp_export.network.published import Published
from ldp_runtime.bundle.bundle import Bundle

EXAMPLES = """\
examples:
  python -m benchmarks peers
  python -m benchmarks peers --config small --shape 280x420 560x840 1120x1680
  python -m benchmarks peers --peer nafnet --backend torch:fp32 onnxruntime:fp32

Writes peers-NAME.json and peers-NAME.md into the output folder.
"""

DEFAULT_SHAPES = ((160, 240), (240, 360), (320, 480))
"""Small, so that the slowest peer takes seconds per run on a CPU, not minutes."""

DEFAULT_BACKENDS = ("torch:fp32", "auto")

SLOW_PEERS = ("k3dn", "deeprft")
"""They work at a size or in windows of their own, however small the photo: up to minutes per run on a CPU."""

_SECONDS = 2.0
_MOST = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    options.add_bundle(parser)
    parser.add_argument(
        "--peer",
        nargs="+",
        choices=tuple(PEERS),
        default=[name for name in PEERS if name not in SLOW_PEERS],
        help=f"which (default: all but {', '.join(SLOW_PEERS)})",
    )
    parser.add_argument(
        "--backend",
        nargs="+",
        default=list(DEFAULT_BACKENDS),
        metavar="NAME[:PRECISION]",
        help="what runs them: torch, auto or a backend (default: torch:fp32 and auto)",
    )
    options.add_shapes(parser, DEFAULT_SHAPES)
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="processes for each (default: 1)")
    options.add_threads(parser)
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the tables and writes the results."""
    options.check_positive(arguments, "repeats")
    backends = choose_backends(arguments.backend)
    bundle = open_bundle(arguments.bundle, arguments.config)
    peers = [PEERS[name] for name in arguments.peer]
    measurements = measure(
        bundle, peers, backends, arguments.shape, rounds=arguments.repeats, threads=arguments.threads
    )
    if not any(measurement.blocks for measurement in measurements):
        raise BenchmarkError(f"nothing could be measured: {measurements[0].error}")
    data = summarise_all(bundle, peers, measurements)
    publish(Report.new("peers", data, bundle), markdown(data), arguments.output)


def choose_backends(asked: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of backend and precision of ``NAME`` or ``NAME:PRECISION``; "auto" is the runtime's own choice.

    Only backends that open graphs count: peers have no engines.

    Raises:
        LDPError: A backend or precision does not work here.
    """
    from ldp_runtime.chain import ChainBackend
    from ldp_runtime.registry import BACKENDS, select

    engines = {name: "it runs engines" for name, backend in BACKENDS.items() if isinstance(backend, ChainBackend)}
    graphs = [name for name in BACKENDS if name not in engines]
    chosen = []
    for item in asked:
        name, _, precision = item.partition(":")
        if name == "torch":
            if (precision or "fp32") not in ("fp32", "bf16", "fp16"):
                raise BenchmarkError(f"expected a precision of torch, one of fp32, bf16, fp16, got {precision!r}")
            chosen.append(("torch", precision or "fp32"))
            continue
        if name not in ("auto", *graphs):
            raise BenchmarkError(f"expected a backend, one of torch, auto, {', '.join(graphs)}, got {name!r}")
        backend = select(name, precision or "auto", failed=engines).backend
        chosen.append((backend.name, backend.resolve(precision or "auto")))
    return list(dict.fromkeys(chosen))


def measure(
    bundle: Bundle,
    peers: Sequence[Published],
    backends: Sequence[tuple[str, str]],
    sizes: Sequence[tuple[int, int]],
    *,
    rounds: int = 1,
    threads: int | None = None,
) -> list[Measurement]:
    """Measures ours and the peers, each in processes of their own.

    Args:
        bundle: Ours.
        peers: The peers.
        backends: Pairs of backend and precision; "torch" is eager torch.
        sizes: ``(h, w)`` in px.
        rounds: Processes for each.
        threads: CPU threads, or None for each backend's own choice.

    Returns:
        One measurement for each combination, smallest size first; one that fails has its error.
    """
    from tqdm import tqdm

    measurements = [
        Measurement(who, backend, precision, size)
        for size in sorted(sizes, key=math.prod)
        for backend, precision in backends
        for who in (OURS, *(peer.name for peer in peers))
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in sizes:
            write_pair(folder, size)
        with tqdm(total=rounds * len(measurements), unit="run", disable=None, file=sys.stderr) as bar:
            for _ in range(rounds):
                for measurement in measurements:
                    bar.set_postfix_str(f"{measurement.who} {measurement.backend} {size_text(measurement.size)}")
                    if measurement.error is None:
                        _add_block(measurement, bundle, folder, threads)
                    bar.update()
    return measurements


def _add_block(measurement: Measurement, bundle: Bundle, folder: Path, threads: int | None) -> None:
    backend, precision = measurement.backend, measurement.precision
    left, right = map(str, pair_files(folder, measurement.size))
    ours, in_torch = measurement.who == OURS, backend == "torch"
    graph = "" if ours or in_torch else str(export_peer(PEERS[measurement.who], half=precision == "fp16"))
    timing = Timing(backend, precision, left, right, threads, _SECONDS, _MOST, time.time())
    module = "benchmarks.latency.worker" if ours else "benchmarks.peers.worker"
    spec = Spec(timing, str(bundle.path.absolute()), None) if ours else PeerSpec(timing, measurement.who, graph)
    try:
        measurement.blocks.append(Block(**run_spec(module, spec, folder)))
    except BenchmarkError as error:
        measurement.error = str(error)
