"""The page of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.capacity.files import PAPER
from benchmarks.harness.results import Report
from benchmarks.harness.tables import markdown_table, significant, size_text

DAY = 86400


def to_markdown(report: Report) -> str:
    """The page, below a title.

    Args:
        report: Of kind "capacity".
    """
    data = report.data
    sizes = [size_text(shape) for shape in data["shapes"]]
    a_second = data["pairs_a_day"] / DAY
    cpu_rows = [
        [
            size_text(row["shape"]),
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
        f"# Capacity: {data['pairs_a_day']:,} pairs per day with {report.name}".replace(",", " "),
        f"That is {significant(a_second)} pairs per second, day and night; leave room for peaks on top.",
        "## On CPUs, by the measured rate",
        markdown_table(
            ["px", "megapixels", "s per pair", "from", "pairs/s per core", "cores", "core-hours per day"],
            cpu_rows,
            "lrrlrrr",
        ),
        f"A pair was measured on {cores} cores at a time, as the system counts them; the rate per core is assumed to "
        "hold for machines of the same cores.",
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
        "No GPU was used: a floor is the least time of the chain at the vendor's peak rates, so more GPUs are needed. "
        f"It is computed for {size_text(PAPER)} px, for other sizes by pixels. Cores to feed one GPU at its "
        f"floor are for {size_text(PAPER)} px: measured times of files over the floor, so an upper bound.",
        "## The first bottleneck",
        *bottlenecks(data),
        "Core-hours and GPU-hours times what yours cost is the price; power is not in it, since "
        "`benchmarks/roofline/hardware.json` has no figure for it. CPU figures: "
        + "; ".join(f"{kind}: {source}" for kind, source in data["sources"].items())
        + ".",
    ]
    return "\n\n".join(parts)


def bottlenecks(data: Mapping[str, Any]) -> list[str]:
    """The first bottleneck, in sentences: on CPUs, then for each size on GPUs."""
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
        causes = [
            _bottleneck(first, [row for row in rows if row["first"] == first])
            for first in dict.fromkeys(row["first"] for row in rows)
        ]
        cores = f"{data['host_cores']} cores beside it"
        lines.append(f"* On a GPU, {size_text(shape)} px, {cores}, {data['feed']}: {'; '.join(causes)}.")
    cheapest = min(data["files"], key=lambda row: 2 * row["read"] + row["write"])
    dearest = max(data["files"], key=lambda row: 2 * row["read"] + row["write"])
    ratio = (2 * dearest["read"] + dearest["write"]) / (2 * cheapest["read"] + cheapest["write"])
    lines.append(
        f"* The host's part depends on the files: {cheapest['name']} take {significant(ratio, 2)} times less CPU time "
        f"than {dearest['name']}. The network counts with {significant(data['network_gbit'])} Gbit/s."
    )
    return ["\n".join(lines)]


def _bottleneck(first: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The GPUs with one bottleneck, and what it costs them."""
    text = f"**{first}** with {', '.join(row['device'] for row in rows)}"
    if first == "GPU":
        return text
    rate = significant(rows[0]["pairs_a_second"][first])
    floors = sorted(row["pairs_a_second"]["GPU"] for row in rows)
    return f"{text}: {rate} pairs/s, where the floors allow {significant(floors[0])} to {significant(floors[-1])}"


def _count(value: float) -> str:
    """A number of machines or hours: two digits below ten, whole above."""
    return str(significant(value, 2)) if value < 10 else f"{value:.0f}"
