"""The tables of a comparison with peers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness.tables import markdown_table, significant, size_text
from benchmarks.latency.worker import FIRST_COUNTS


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
        f"is not counted, except torch's where it takes {FIRST_COUNTS:g} s or more.",
    ]
    for backend, precision in dict.fromkeys((row["backend"], row["precision"]) for row in data["rows"]):
        rows = [row for row in data["rows"] if (row["backend"], row["precision"]) == (backend, precision)]
        parts += [
            f"## {backend}, {precision}",
            markdown_table(
                ["network", "size", "seconds", "5 % to 95 %", "times ours", "peak MB", "times our peak"],
                [_cells(row, titles[row["who"]]) for row in rows],
                "llrrrrr",
            ),
        ]
    if data["scaling"]:
        parts += [
            "## Scaling with the number of pixels",
            markdown_table(
                ["network", "backend", "precision", "time grows as pixels to the power", "peak MB per megapixel"],
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
        "\n".join(f"- {n['title']}: {n['source']}." for n in data["networks"]),
    ]
    return "\n\n".join(parts) + "\n"


def _cells(row: Mapping[str, Any], title: str) -> list[object]:
    size = size_text(row["size"])
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
