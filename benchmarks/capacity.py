"""What a million pairs a day take, on CPUs and on GPUs, and what runs out first.

The CPU's seconds come from the results of ``ldp bench latency`` and ``ldp bench scaling`` for the same bundle. A GPU's
are the predicted floor of ``ldp bench roofline``, computed anew for each size: the least that the chain can take.
Reading and writing pictures is measured here, in seconds of CPU time, since it is the host's work with either. Money is
left to the
reader: the plan gives core-hours and GPU-hours.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.results import REPORTS, BenchmarkError, Report, load_text, markdown_table, save, significant
from benchmarks.latency.bench import CONFIG_NAMES, TORCH

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ldp_runtime.bundle.bundle import Bundle

HELP = "Plans a million pairs a day: cores, GPUs, picture files, and what runs out first."
EXAMPLES = """\
examples:
  ldp bench capacity
  ldp bench capacity --pairs 50000 --network 1 --host-cores 16
  ldp bench capacity --config small

Run ldp bench latency or ldp bench scaling for the same bundle before, on a quiet
machine: their results are read from the output folder. Writes capacity.json and
capacity.md there (capacity-NAME for another bundle than ldp-nano).
"""

DAY = 86400
PHOTO = (4000, 6000)
"""A photo of 24 megapixels."""
PAPER = (1120, 1680)
"""The pairs of the dual-pixel test set (Section 4.1)."""

FORMATS = (("PNG", 8), ("PNG", 16), ("TIFF", 8), ("TIFF", 16), ("JPEG", 8))
"""The files that are timed, and their bits."""
FEED = ("PNG", 16)
"""The files that the bottleneck is told for."""

DEFAULT = "ldp-nano"
_SUFFIXES = {"PNG": ".png", "TIFF": ".tif", "JPEG": ".jpg"}
_REPEATS = 5
_HOST, _GPU, _NETWORK = "files on the host", "GPU", "network"


@dataclass(frozen=True)
class Rate:
    """What a pair takes on the CPUs of the machine that was measured.

    Attributes:
        shape: Height and width in px.
        seconds: Wall time of a pair.
        cores: CPUs that it had, as the system counts them.
        basis: Where the seconds come from, for people.
    """

    shape: tuple[int, int]
    seconds: float
    cores: int
    basis: str

    @property
    def core_seconds(self) -> float:
        """Seconds of all these CPUs together."""
        return self.seconds * self.cores


@dataclass(frozen=True)
class Coding:
    """What files of one kind take.

    Attributes:
        format: "PNG", "TIFF" or "JPEG".
        bits: Of a sample.
        read: Seconds of CPU time a megapixel.
        write: Likewise.
        nbytes: Bytes a megapixel of one picture.
    """

    format: str
    bits: int
    read: float
    write: float
    nbytes: float

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.format} {self.bits} bits"

    def core_seconds(self, shape: tuple[int, int]) -> float:
        """Reading both views and writing the restored image."""
        return (2 * self.read + self.write) * megapixels(shape)

    def pair_bytes(self, shape: tuple[int, int]) -> float:
        """Bytes of both views and the restored image."""
        return 3 * self.nbytes * megapixels(shape)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--bundle", metavar="NAME|DIR", help="the bundle to plan for (default: ldp-nano)")
    what.add_argument("--config", choices=CONFIG_NAMES, help="random weights of this network in place of a bundle")
    parser.add_argument("--pairs", type=int, default=1_000_000, metavar="N", help="pairs a day (default: %(default)s)")
    parser.add_argument(
        "--host-cores", type=int, metavar="N", help="CPUs beside each GPU (default: those of this machine)"
    )
    parser.add_argument(
        "--network", type=float, default=10.0, metavar="GBIT", help="Gbit/s of a machine (default: %(default)g)"
    )
    parser.add_argument("-o", "--output", type=Path, default=REPORTS, metavar="DIR", help="where the results are")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints the plan and writes it.

    Raises:
        BenchmarkError: There is no result to plan with, or an option is out of its range.
    """
    from benchmarks.harness.bundles import open_bundle
    from benchmarks.harness.machine import describe

    bundle = open_bundle(arguments.bundle, arguments.config)
    cores = arguments.host_cores or int(describe()["cpu"]["usable"])
    for name, value in (("--pairs", arguments.pairs), ("--host-cores", cores), ("--network", arguments.network)):
        if not value > 0:
            raise BenchmarkError(f"expected {name} above 0, got {value}")
    measured = read_measured(arguments.output, bundle)
    data = plan(bundle, measured, measure_coding(), arguments.pairs, host_cores=cores, network=arguments.network)
    report = Report.new("capacity", data, bundle)
    markdown = to_markdown(report)
    print(markdown)
    name = bundle.manifest.name
    paths = save(report, arguments.output, "capacity" if name == DEFAULT else f"capacity-{name}", markdown)
    print(f"wrote {' and '.join(map(str, paths))}")


def megapixels(shape: tuple[int, int]) -> float:
    """10^6 px of a height and width."""
    return shape[0] * shape[1] / 1e6


def sample_shape() -> tuple[int, int]:
    """Height and width of the sample in px."""
    from benchmarks.scaling import SAMPLE
    from ldp_runtime.images.photo import read_photo

    h, w = read_photo(SAMPLE / "left.png").pixels.shape[:2]
    return h, w


# --- the CPU ------------------------------------------------------------------------------------------------------


def read_measured(folder: Path, bundle: Bundle) -> dict[str, Report]:
    """The results of latency and scaling that there are for a bundle, by their kinds.

    Raises:
        BenchmarkError: There is none, or one is of another bundle of that name.
    """
    name = bundle.manifest.name
    files = {kind: folder / f"{kind}-{name}.json" for kind in ("latency", "scaling")}
    found = {kind: Report.read(path) for kind, path in files.items() if path.is_file()}
    if not found:
        raise BenchmarkError(
            f"expected {' or '.join(path.name for path in files.values())} in {folder}, got neither; run ldp bench "
            "latency and ldp bench scaling for this bundle first"
        )
    for kind, report in found.items():
        if report.bundle is None or report.bundle.content != bundle.content:
            raise BenchmarkError(
                f"{files[kind]}: expected figures of {name} with content {bundle.content[:12]}, got those of "
                f"{report.bundle}; run ldp bench {kind} again"
            )
    return found


def measured_rates(measured: Mapping[str, Report]) -> list[Rate]:
    """Every size that was measured, the quickest backend of the CPU; of latency before those of scaling."""
    rates = []
    if (report := measured.get("latency")) is not None:
        cores = report.data["settings"]["threads"] or report.machine["cpu"]["usable"]
        for series in report.data["series"]:
            own = [
                (configuration["seconds"]["median"], configuration["name"])
                for configuration in series["configurations"]
                if configuration["error"] is None and not configuration["gpu"] and configuration["backend"] not in TORCH
            ]
            if own:
                seconds, name = min(own)
                rates.append(Rate(tuple(series["shape"]), seconds, cores, f"median of {name}"))
    if (report := measured.get("scaling")) is not None:
        cores = report.data["threads"] or report.machine["cpu"]["usable"]
        for point in report.data["points"]:
            name = f"one run of {point['backend']} {point['precision']}"
            rates.append(Rate(tuple(point["shape"]), point["seconds"], cores, name))
    return rates


def rate_at(measured: Mapping[str, Report], shape: tuple[int, int]) -> Rate:
    """What a pair of some size takes: as measured, else by the fitted line within its sizes, else by the nearest size.

    Args:
        measured: Results as of ``read_measured``.
        shape: Height and width in px.

    Raises:
        BenchmarkError: The results hold no size at all.
    """
    rates = measured_rates(measured)
    if not rates:
        raise BenchmarkError("expected a backend that ran on the CPU in the results, got none; run ldp bench latency")
    for rate in rates:
        if rate.shape == shape:
            return rate
    size = megapixels(shape)
    if (report := measured.get("scaling")) is not None and (line := report.data["fits"]["seconds"]) is not None:
        points = [megapixels(tuple(point["shape"])) for point in report.data["points"]]
        seconds = line["a"] + line["b"] * size
        if min(points) <= size <= max(points) and seconds > 0:
            cores = report.data["threads"] or report.machine["cpu"]["usable"]
            return Rate(shape, seconds, cores, f"line through {len(points)} sizes")
    nearest = min(rates, key=lambda rate: abs(math.log(megapixels(rate.shape) / size)))
    seconds = nearest.seconds * size / megapixels(nearest.shape)
    return Rate(shape, seconds, nearest.cores, f"that of {_size(nearest.shape)}, by the px")


# --- files --------------------------------------------------------------------------------------------------------


def measure_coding(shape: tuple[int, int] = PAPER) -> list[Coding]:
    """Times reading and writing the sample, repeated or cut to a size, in files of each of ``FORMATS``."""
    from tqdm import tqdm

    from benchmarks.scaling import sample_pair
    from ldp_runtime.images.decode import Photo
    from ldp_runtime.images.photo import encode_photo, read_photo

    pixels = sample_pair(shape)[0]
    found = []
    with tempfile.TemporaryDirectory(prefix="ldp-bench-") as folder:
        for kind, bits in tqdm(FORMATS, "files", disable=None):
            photo = Photo(pixels if bits == 8 else _with_low_bits(pixels))
            path = Path(folder) / f"picture{_SUFFIXES[kind]}"
            content = encode_photo(path, photo)
            path.write_bytes(content)
            write = _cpu_seconds(functools.partial(encode_photo, path, photo))
            read = _cpu_seconds(functools.partial(read_photo, path))
            size = megapixels(shape)
            found.append(Coding(kind, bits, read / size, write / size, len(content) / size))
    return found


def _with_low_bits(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """16 bits of which the low ones are noise, as a sensor's are; without it they would compress to nothing."""
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint16)
    sixteen: NDArray[np.uint16] = pixels.astype(np.uint16) * np.uint16(256) + noise
    return sixteen


def _cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of all threads; the median of a few runs."""
    work()
    times = []
    for _ in range(_REPEATS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


# --- the plan -----------------------------------------------------------------------------------------------------


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
        bundle: What runs.
        measured: Results as of ``read_measured``.
        codings: What files take.
        pairs: Pairs a day.
        host_cores: CPUs beside each GPU.
        network: Gbit/s of the machine that a GPU is in.
    """
    shapes = [sample_shape(), PAPER, PHOTO]
    a_second = pairs / DAY
    floors = {shape: gpu_floors(bundle, shape) for shape in shapes}
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
        for device, seconds in floors[shape].items():
            bounds = {
                _GPU: 1 / seconds,
                _HOST: host_cores / feed.core_seconds(shape),
                _NETWORK: network * 1e9 / 8 / feed.pair_bytes(shape),
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


def gpu_floors(bundle: Bundle, shape: tuple[int, int]) -> dict[str, float]:
    """The predicted floor of the FP16 chain in seconds, by GPU; of the whole image, without the halos of tiles.

    Args:
        bundle: What runs.
        shape: Height and width in px.
    """
    from benchmarks.roofline.bench import build_chain, floor
    from benchmarks.roofline.hardware import gpus

    chain = build_chain(bundle, shape, "fp16")
    return {card.name: floor(chain.steps, card) for card in gpus()}


def to_markdown(report: Report) -> str:
    """The page, below a title.

    Args:
        report: Of kind "capacity".
    """
    data = report.data
    name = report.bundle.name if report.bundle else "the bundle"
    sizes = [_size(shape) for shape in data["shapes"]]
    a_second = data["pairs_a_day"] / DAY
    cpu_rows = [
        [
            _size(row["shape"]),
            significant(row["megapixels"]),
            significant(row["seconds"]),
            row["basis"],
            significant(row["pairs_a_second_a_core"]),
            _count(row["cores"]),
            _count(row["core_hours_a_day"]),
        ]
        for row in data["cpu"]
    ]
    file_rows = [
        [
            row["name"],
            significant(1e3 * row["read"]),
            significant(1e3 * row["write"]),
            significant(row["nbytes"] / 1e6),
            *(significant(value) for value in row["cores"]),
            *(significant(value / 1e6) for value in row["bytes_a_second"]),
        ]
        for row in data["files"]
    ]
    devices = dict.fromkeys(row["device"] for row in data["gpu"])
    feeds = [row["name"] for row in data["files"]]
    gpu_rows = []
    for device in devices:
        own = [row for row in data["gpu"] if row["device"] == device]
        paper = next(row for row in own if tuple(row["shape"]) == PAPER)
        gpu_rows.append(
            [
                device,
                *(f"{significant(1e3 * row['seconds'])} ms, {_count(row['gpus'])}" for row in own),
                *(significant(paper["cores_to_feed"][feed]) for feed in feeds),
            ]
        )
    cores = data["cpu"][0]["measured_with_cores"]
    parts = [
        f"# Capacity: {data['pairs_a_day']:,} pairs a day with {name}".replace(",", " "),
        f"That is {significant(a_second)} pairs a second, day and night; leave room for peaks on top.",
        "## On CPUs, by the measured rate",
        markdown_table(
            ["px", "megapixels", "s a pair", "from", "pairs/s a core", "cores", "core-hours a day"], cpu_rows, "lrrlrrr"
        ),
        f"A pair was measured on {cores} cores at a time, as the system counts them; that rate a core is taken to hold "
        "for machines of the same cores.",
        "## Picture files, measured",
        markdown_table(
            [
                "files",
                "read ms/Mpx",
                "write ms/Mpx",
                "MB/Mpx",
                *(f"cores, {size}" for size in sizes),
                *(f"MB/s, {size}" for size in sizes),
            ],
            file_rows,
        ),
        "CPU time of reading both views and writing one image, and what goes over disks and network both ways. The "
        "low bits of 16 are noise here, as in a photo.",
        "## On GPUs, by the predicted floor",
        markdown_table(
            ["GPU, **predicted floor**", *(f"ms and GPUs, {size}" for size in sizes)]
            + [f"cores to feed it, {feed}" for feed in feeds],
            gpu_rows,
        ),
        "No GPU was used: a floor is the least that the chain can take at the vendor's peak rates, so real GPUs needed "
        f"are more. Cores to feed one GPU at its floor are for {_size(PAPER)} px: measured times of files over the "
        "floor, so an upper bound.",
        "## The first bottleneck",
        *bottlenecks(data),
        "Core-hours and GPU-hours times what yours cost is the price; power is not in it, since "
        "`benchmarks/roofline/hardware.json` has no figure for it. CPU figures: "
        + "; ".join(f"{kind}: {source}" for kind, source in data["sources"].items())
        + ".",
    ]
    return "\n\n".join(parts)


def bottlenecks(data: Mapping[str, Any]) -> list[str]:
    """What runs out first, in sentences made of the figures: on CPUs, then for each size on GPUs."""
    feed = next(row for row in data["files"] if row["name"] == data["feed"])
    shares = [files / (files + row["cores"]) for files, row in zip(feed["cores"], data["cpu"], strict=True)]
    lines = [
        f"* On CPUs it is the restoration itself: files ({data['feed']}) take {min(shares):.0%} to {max(shares):.0%} "
        "of all cores."
        if max(shares) < 0.5
        else f"* On CPUs files ({data['feed']}) take up to {max(shares):.0%} of all cores: it is these."
    ]
    for shape in data["shapes"]:
        rows = [row for row in data["gpu"] if row["shape"] == shape]
        told = [
            _told(first, [row for row in rows if row["first"] == first])
            for first in dict.fromkeys(row["first"] for row in rows)
        ]
        cores = f"{data['host_cores']} cores beside it"
        lines.append(f"* On a GPU, {_size(shape)} px, {cores}, {data['feed']}: {'; '.join(told)}.")
    cheapest = min(data["files"], key=lambda row: 2 * row["read"] + row["write"])
    dearest = max(data["files"], key=lambda row: 2 * row["read"] + row["write"])
    ratio = (2 * dearest["read"] + dearest["write"]) / (2 * cheapest["read"] + cheapest["write"])
    lines.append(
        f"* The host's part depends on the files: {cheapest['name']} take {significant(ratio, 2)} times less CPU time "
        f"than {dearest['name']}. The network counts with {significant(data['network_gbit'])} Gbit/s."
    )
    return ["\n".join(lines)]


def _source(report: Report) -> str:
    return f"{report.provenance()}; load average {load_text(report.data.get('load_average', {})) or 'unknown'}"


def _told(first: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The GPUs that one thing holds back, and how far."""
    text = f"**{first}** with {', '.join(row['device'] for row in rows)}"
    if first == _GPU:
        return text
    rate = significant(rows[0]["pairs_a_second"][first])
    floors = sorted(row["pairs_a_second"][_GPU] for row in rows)
    return f"{text}: {rate} pairs/s, where the floors allow {significant(floors[0])} to {significant(floors[-1])}"


def _count(value: float) -> str:
    """A number of machines or hours: two digits below ten, whole above."""
    return str(significant(value, 2)) if value < 10 else f"{value:.0f}"


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]}"
