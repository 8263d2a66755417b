"""The machines for a million pairs per day, on CPUs and on GPUs, and the first bottleneck.

The seconds of a CPU are from the results of the benchmarks latency and scaling for the same bundle; those of a GPU are
the predicted floor of the benchmark roofline, by pixels. Reading and writing of image files is measured
here, in CPU time, since it is the host's work in both cases. The plan gives core-hours and GPU-hours, not prices.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmarks.capacity.files import PAPER, Coding, measure_coding
from benchmarks.capacity.rates import rate_at, read_measured
from benchmarks.capacity.tables import DAY, to_markdown
from benchmarks.harness import SAMPLE, options
from benchmarks.harness.results import Report, publish
from benchmarks.harness.tables import load_text, megapixels

if TYPE_CHECKING:
    from ldp_runtime.bundle.bundle import Bundle

EXAMPLES = """\
examples:
  python -m benchmarks capacity
  python -m benchmarks capacity --pairs 50000 --network 1 --host-cores 16
  python -m benchmarks capacity --config small

Run the benchmark latency or scaling for the same bundle before, on a quiet
machine: their results are read from the output folder. Writes capacity.json and
capacity.md there (capacity-NAME for another bundle than ldp-nano).
"""

PHOTO = (4000, 6000)
"""A photo of 24 megapixels."""

FEED = ("PNG", 16)
"""The image files of the sentences about the bottleneck."""

GPU, HOST, NETWORK = "GPU", "files on the host", "network"

DEFAULT = "ldp-nano"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    options.add_bundle(parser)
    parser.add_argument(
        "--pairs", type=int, default=1_000_000, metavar="N", help="pairs per day (default: %(default)s)"
    )
    parser.add_argument(
        "--host-cores", type=int, metavar="N", help="CPUs beside each GPU (default: those of this machine)"
    )
    parser.add_argument(
        "--network", type=float, default=10.0, metavar="GBIT", help="Gbit/s of a machine (default: %(default)g)"
    )
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the plan and writes it.

    Raises:
        BenchmarkError: There is no result to plan with, or an option is out of its range.
    """
    from benchmarks.harness.bundles import open_bundle
    from benchmarks.harness.machine import describe

    options.check_positive(arguments, "pairs", "host_cores", "network")
    bundle = open_bundle(arguments.bundle, arguments.config)
    cores = arguments.host_cores or int(describe()["cpu"]["usable"])
    measured = read_measured(arguments.output, bundle)
    data = plan(bundle, measured, measure_coding(), arguments.pairs, host_cores=cores, network=arguments.network)
    report = Report.new("capacity", data, bundle)
    publish(report, to_markdown(report), arguments.output, "capacity" if report.name == DEFAULT else None)


def sample_shape() -> tuple[int, int]:
    """Height and width of the sample in px."""
    from ldp_runtime.images.photo import read_photo

    h, w = read_photo(SAMPLE / "left.png").pixels.shape[:2]
    return h, w


def plan(
    bundle: Bundle,
    measured: Mapping[str, Report],
    codings: Sequence[Coding],
    pairs: int,
    *,
    host_cores: int,
    network: float,
) -> dict[str, Any]:
    """The figures of the plan, as plain JSON values.

    Args:
        bundle: The bundle.
        measured: The value of ``read_measured``.
        codings: The value of ``measure_coding``.
        pairs: Pairs per day.
        host_cores: CPUs beside each GPU.
        network: Gbit/s of a GPU's machine.
    """
    shapes = [sample_shape(), PAPER, PHOTO]
    a_second = pairs / DAY
    floors = gpu_floors(bundle)
    feed = next(coding for coding in codings if (coding.format, coding.bits) == FEED)
    cpu, gpu = [], []
    for shape in shapes:
        rate = rate_at(measured, shape)
        cpu.append(
            {
                **asdict(rate),
                "megapixels": megapixels(shape),
                "pairs_a_second_a_core": 1 / rate.core_seconds,
                "cores": a_second * rate.core_seconds,
                "core_hours_a_day": pairs * rate.core_seconds / 3600,
                "measured_with_cores": rate.cores,
            }
        )
        for device, a_pixel in floors.items():
            seconds = a_pixel * shape[0] * shape[1]
            bounds = {
                GPU: 1 / seconds,
                HOST: host_cores / feed.core_seconds(shape),
                NETWORK: network * 1e9 / 8 / feed.pair_bytes(shape),
            }
            gpu.append(
                {
                    "device": device,
                    "shape": list(shape),
                    "seconds": seconds,
                    "gpus": a_second * seconds,
                    "gpu_hours_a_day": pairs * seconds / 3600,
                    "cores_to_feed": {c.name: c.core_seconds(shape) / seconds for c in codings},
                    "pairs_a_second": bounds,
                    "first": min(bounds, key=lambda name: bounds[name]),
                }
            )
    files = [
        {
            **asdict(coding),
            "name": coding.name,
            "cores": [a_second * coding.core_seconds(shape) for shape in shapes],
            "bytes_a_second": [a_second * coding.pair_bytes(shape) for shape in shapes],
        }
        for coding in codings
    ]
    return {
        "pairs_a_day": pairs,
        "shapes": [list(shape) for shape in shapes],
        "host_cores": host_cores,
        "network_gbit": network,
        "feed": feed.name,
        "sources": {kind: _source(report) for kind, report in measured.items()},
        "cpu": cpu,
        "files": files,
        "gpu": gpu,
    }


def gpu_floors(bundle: Bundle) -> dict[str, float]:
    """The predicted floor of the FP16 chain in seconds per px, by GPU, from that at the size of ``PAPER``.

    Args:
        bundle: The bundle.
    """
    from benchmarks.roofline.chain import build_chain, floor
    from benchmarks.roofline.hardware import gpus

    steps = build_chain(bundle, PAPER).steps
    return {card.name: floor(steps, card) / (PAPER[0] * PAPER[1]) for card in gpus()}


def _source(report: Report) -> str:
    return f"{report.provenance()}; load average {load_text(report.data.get('load_average', {})) or 'unknown'}"
