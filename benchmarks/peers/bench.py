"""``ldp bench peers``: the peers beside ours on the same pair, backend by backend, at two sizes or more.

Ours is the whole chain, CLIP and blur map included; a peer is its network with the runtime's padding and rounding. Each
measurement is a process of its own, so that peak memory is honest, and those of one round alternate, so that whatever
else the machine does hits all alike. Peers are timed in eager torch and as ONNX graphs that go through our exporter and
backends. All weights of the peers are random; accuracy is quoted from the LDP paper and labelled so.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.bundles import ROOT, keep_deblur_graph, open_bundle
from benchmarks.harness.processes import run_spec
from benchmarks.harness.results import REPORTS, BenchmarkError, Report, markdown_table, save, significant
from benchmarks.harness.timing import ratio, summarise
from benchmarks.latency.worker import FIRST_COUNTS
from benchmarks.peers import PEERS, Peer
from benchmarks.roofline.bench import parse_size, walk_graphs
from benchmarks.roofline.flops import graph_cost
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.cache import cache_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmarks.latency.worker import Block, Spec
    from benchmarks.peers.worker import PeerSpec

HELP = "time other deblurring networks beside ours on the same pair"
EXAMPLES = """examples:
  ldp bench peers
  ldp bench peers --config small --shape 280x420 560x840 1120x1680
  ldp bench peers --peer nafnet --backend torch:fp32 onnxruntime:fp32 --shape 128x192 256x384 384x576
"""
DEFAULT_SHAPES = ((160, 240), (240, 360), (320, 480))
"""Small, so that the slowest peer takes seconds a run on a CPU, not minutes."""
DEFAULT_BACKENDS = ("torch:fp32", "auto")
OURS = "ours"

_SECONDS = 2.0
_MOST = 50
_QUOTED_OURS = {"small": "Ours (Small)", "large": "Ours (Large)"}
_SAMPLE = ROOT / "samples" / "motorcycle"
_MULTIPLE = 16
_FILTER_GAIN = 0.3


@dataclass
class Measurement:
    """Who was measured how, and the outcome.

    Attributes:
        who: ``OURS`` or a name of ``PEERS``.
        backend: "torch" or a backend.
        precision: Its precision.
        size: ``(h, w)`` in px.
        blocks: One for each round.
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


def export_peer(peer: Peer, *, half: bool) -> Path:
    """The ONNX graph of a peer with random weights, from the cache or exported into it.

    The exporter's deblur graph takes any network of a pair: a peer gets its form, with a blur map that nobody reads.

    Args:
        peer: The peer.
        half: FP16 inside; else FP32.

    Raises:
        BenchmarkError: There is no folder to keep it in.
    """
    folder = cache_folder("benchmarks", "peers", _peers_key())
    if folder is None:
        raise BenchmarkError("expected a folder that exported graphs can be kept in, got none; set LDP_CACHE to one")
    path = folder / f"{peer.name}{'.fp16' if half else ''}.onnx"
    if not path.is_file():
        print(f"export: {peer.title}, {'fp16' if half else 'fp32'}", file=sys.stderr)
        network: Any = as_deblur_network(random_network(peer))
        keep_deblur_graph(network, math.lcm(_MULTIPLE, peer.multiple), path, half=half)
    return path


def random_network(peer: Peer) -> nn.Module:
    """A peer with all parameters drawn; IFAN's filters with little gain, as 17 of them in a row would overflow."""
    import torch

    from benchmarks.peers.ifan import IFAN
    from ldp_export.network.randomise import randomise

    network = randomise(peer.build())
    if isinstance(network, IFAN):
        with torch.no_grad():
            for parameter in network.filters[-1].parameters():
                parameter.mul_(_FILTER_GAIN)
    return network


def as_deblur_network(peer: nn.Module) -> nn.Module:
    """A peer in the form of our deblurring network: FP32 ends whatever the weights, and a blur map that is not read."""
    from torch import nn

    class DeblurForm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.peer = peer

        def forward(self, pair: Tensor, blur_logits: Tensor) -> Tensor:
            restored: Tensor = self.peer(pair.to(next(self.peer.parameters()).dtype))
            return restored.float()

    return DeblurForm()


def _peers_key() -> str:
    digest = hashlib.sha256()
    sources = [*(ROOT / "benchmarks" / "peers").glob("*.py"), ROOT / "ldp_export" / "onnx_export.py"]
    for path in sorted(sources):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def measure(
    bundle: Bundle,
    peers: Sequence[Peer],
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
        rounds: How many processes each gets.
        threads: CPU threads, or None for each backend's own choice.

    Returns:
        One measurement for each combination, smallest size first; a failure is noted in it.
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
            _write_pair(folder, size)
        with tqdm(total=rounds * len(measurements), unit="run", disable=None, file=sys.stderr) as bar:
            for _ in range(rounds):
                for measurement in measurements:
                    bar.set_postfix_str(f"{measurement.who} {measurement.backend} {_text(measurement.size)}")
                    if measurement.error is None:
                        _add_block(measurement, bundle, folder, threads)
                    bar.update()
    return measurements


def _add_block(measurement: Measurement, bundle: Bundle, folder: Path, threads: int | None) -> None:
    from benchmarks.latency.worker import Block, Spec
    from benchmarks.peers.worker import PeerSpec

    backend, precision = measurement.backend, measurement.precision
    left, right = (str(_view(folder, name, measurement.size)) for name in ("left", "right"))
    spec: Spec | PeerSpec
    if measurement.who == OURS:
        module = "benchmarks.latency.worker"
        path = str(bundle.path.absolute())
        spec = Spec(path, backend, precision, left, right, threads, None, 0.0, _SECONDS, _MOST, None, time.time())
    else:
        module = "benchmarks.peers.worker"
        graph = ""
        if backend != "torch":
            graph = str(export_peer(PEERS[measurement.who], half=precision == "fp16"))
        spec = PeerSpec(measurement.who, backend, precision, graph, left, right, threads, _SECONDS, _MOST, time.time())
    result, ended = run_spec(module, asdict(spec), folder)
    if result is None:
        measurement.error = f"the process {ended}"
    elif "error" in result:
        measurement.error = result["error"]
    else:
        measurement.blocks.append(Block(**result))


def _write_pair(folder: Path, size: tuple[int, int]) -> None:
    """Both views of the sample, continued by reflection or cut to a size."""
    import numpy as np

    from ldp_runtime.images.decode import Photo
    from ldp_runtime.images.photo import read_photo, write_photo
    from ldp_runtime.stages.geometry import reflect_indices

    for name in ("left", "right"):
        pixels = read_photo(_SAMPLE / f"{name}.png").pixels
        for axis, side in enumerate(size):
            have = pixels.shape[axis]
            pixels = np.take(pixels, reflect_indices(have, max(side, have))[:side], axis=axis)
        write_photo(_view(folder, name, size), Photo(np.ascontiguousarray(pixels)))


def _view(folder: Path, name: str, size: tuple[int, int]) -> Path:
    return folder / f"{name}-{_text(size)}.png"


def _text(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


# --- what it says -------------------------------------------------------------------------------------------------


def summarise_all(bundle: Bundle, peers: Sequence[Peer], measurements: Sequence[Measurement]) -> dict[str, Any]:
    """The report's figures, as plain JSON values.

    Returns:
        ``networks`` (parameters, their source, quoted accuracy, and FLOPs of one photo of each size as the ONNX graphs
        have them), ``rows`` (one a measurement: times, memory, both as ratios to ours), ``scaling`` (of each network on
        each backend: exponent of time against pixels, MB of peak memory a megapixel, both between the smallest and the
        largest size).
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


def _network(peer: Peer, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    from ldp_export.evaluation.paper import load_table
    from ldp_runtime.stages.geometry import Padding

    quoted = None
    if peer.quoted:
        quoted = _quote(load_table(1).find(peer.quoted).values, f"LDP paper, Table 1, {peer.quoted}", "average_")
    elif peer.quoted_ablation:
        quoted = _quote(load_table(6).find(peer.quoted_ablation).values, "LDP paper, Table 6, i", "")
    graph = export_peer(peer, half=False)
    flops = {}
    for size in sizes:
        H, W = Padding(math.lcm(_MULTIPLE, peer.multiple)).padded_size(*size)
        cost = graph_cost(graph, {"pair": (1, 6, H, W), "blur_logits": (1, 1, 1, 1)})
        flops[_text(size)] = cost.contraction_flops
    return {
        "who": peer.name,
        "title": peer.title,
        "parameters": sum(parameter.numel() for parameter in peer.build().parameters()),
        "source": peer.source,
        "checked": peer.checked,
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
        flops[_text(size)] = walked.batches * walked.clip.contraction_flops + walked.deblur.contraction_flops
    return {
        "who": OURS,
        "title": f"{bundle.manifest.name}, the whole chain",
        "parameters": _weights(bundle.graph("clip")) + _weights(bundle.graph("deblur")),
        "source": "weights in both graphs, CLIP's included",
        "checked": "the graphs",
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


def markdown(data: Mapping[str, Any]) -> str:
    """The report's tables, from ``summarise_all``'s values alone."""
    titles = {network["who"]: network["title"] for network in data["networks"]}
    sizes = list(data["networks"][0]["flops"])
    parts = [
        "# Peers",
        "Times and memory are measured; PSNR and SSIM are **quoted** from the LDP paper's tables (DPD-blur), where "
        "they belong to the authors' trained weights, not to the random ones timed here.",
        markdown_table(
            ["network", "parameters", *(f"GFLOP at {size}" for size in sizes), "PSNR, quoted", "SSIM, quoted", "where"],
            [
                [
                    network["title"],
                    f"{network['parameters'] / 1e6:.2f} M",
                    *(significant(network["flops"][size] / 1e9) for size in sizes),
                    *(None if network["quoted"] is None else network["quoted"][key] for key in ("psnr", "ssim")),
                    None if network["quoted"] is None else network["quoted"]["source"],
                ]
                for network in data["networks"]
            ],
            "lr" + "r" * len(sizes) + "rrl",
        ),
        "GFLOP: convolutions and matrix products of the graphs, a multiply-add as two. The first run of each process "
        f"is not counted, but for torch's where it takes {FIRST_COUNTS:g} s or more.",
    ]
    for backend, precision in dict.fromkeys((row["backend"], row["precision"]) for row in data["rows"]):
        rows = [row for row in data["rows"] if (row["backend"], row["precision"]) == (backend, precision)]
        parts += [
            f"## {backend}, {precision}",
            markdown_table(
                ["network", "size", "seconds", "5 % to 95 %", "times ours", "peak MB", "times ours's peak"],
                [_cells(row, titles[row["who"]]) for row in rows],
                "llrrrrr",
            ),
        ]
    if data["scaling"]:
        parts += [
            "## Scaling with the number of pixels",
            markdown_table(
                ["network", "backend", "precision", "time grows as pixels to the power", "peak MB a megapixel"],
                [
                    [
                        *(titles[row["who"]], row["backend"], row["precision"]),
                        *(f"{row['exponent']:.2f}", significant(row["mb_a_megapixel"])),
                    ]
                    for row in data["scaling"]
                ],
                "lllrr",
            ),
            "Between the smallest and the largest size; memory is that of the whole process.",
        ]
    parts += [
        "## Parameter counts",
        "\n".join(f"- {n['title']}: {n['source']}; {_checked(n)}." for n in data["networks"]),
    ]
    return "\n\n".join(parts) + "\n"


def _checked(network: Mapping[str, Any]) -> str:
    return f"checked against {network['checked']}" if network["checked"] else "**unverified**"


def _cells(row: Mapping[str, Any], title: str) -> list[object]:
    size = _text(row["size"])
    if row["seconds"] is None:
        return [f"{title}: {row['error']}", size, None, None, None, None, None]
    return [
        title,
        size,
        significant(row["seconds"]),
        f"{significant(row['p5'])} to {significant(row['p95'])}",
        significant(row["time_ratio"]),
        significant(row["host_bytes"] / 1e6),
        significant(row["memory_ratio"]),
    ]


# --- the command --------------------------------------------------------------------------------------------------


def choose_backends(asked: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of backend and precision of ``NAME`` or ``NAME:PRECISION``; "auto" is the runtime's own choice.

    Only backends that open graphs: peers have no engines.

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--bundle", metavar="NAME|DIR", help="ours (default: ldp-nano)")
    which.add_argument("--config", help="ours with random weights: nano, small or large")
    parser.add_argument("--peer", nargs="+", choices=tuple(PEERS), default=list(PEERS), help="which (default: all)")
    parser.add_argument(
        "--backend",
        nargs="+",
        default=list(DEFAULT_BACKENDS),
        metavar="NAME[:PRECISION]",
        help="what runs them: torch, auto or a backend (default: torch:fp32 and auto)",
    )
    parser.add_argument(
        "--shape",
        nargs="+",
        type=parse_size,
        default=list(DEFAULT_SHAPES),
        metavar="HxW",
        help=f"sizes of the photo in px (default: {' '.join(map(_text, DEFAULT_SHAPES))})",
    )
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="processes for each (default: 1)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: each backend's own choice)")
    parser.add_argument("-o", "--output", type=Path, default=REPORTS, metavar="DIR", help="where the results go")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the tables and writes the results."""
    if arguments.repeats < 1:
        raise BenchmarkError(f"expected at least 1 repeat, got {arguments.repeats}")
    backends = choose_backends(arguments.backend)
    bundle = open_bundle(arguments.bundle, arguments.config)
    peers = [PEERS[name] for name in arguments.peer]
    measurements = measure(
        bundle, peers, backends, arguments.shape, rounds=arguments.repeats, threads=arguments.threads
    )
    if not any(measurement.blocks for measurement in measurements):
        raise BenchmarkError(f"nothing could be measured: {measurements[0].error}")
    data = summarise_all(bundle, peers, measurements)
    text = markdown(data)
    paths = save(Report.new("peers", data, bundle), arguments.output, f"peers-{bundle.manifest.name}", text)
    print(text)
    print(f"wrote {' and '.join(map(str, paths))}", file=sys.stderr)
