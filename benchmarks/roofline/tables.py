"""The tables and findings of a roofline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness.tables import markdown_table, significant
from benchmarks.roofline.hardware import FILE

PREDICTED = "predicted floor"

COSTLIEST = 10

_SMALL = 0.005

_DEVICE_COLUMNS = {
    "unfused_ms": "unfused, ms",
    "fused_ms": "fused, ms",
    "fp32_accumulate_ms": "FP32 accumulation, ms",
    "cached_ms": "with cache, ms",
}


def markdown(data: Mapping[str, Any]) -> str:
    """The report's tables and its finding, from the values of ``analyse`` alone."""
    (h, w), (H, W), main = data["size"], data["padded"], data["device"]["name"]
    parts = [
        f"# Roofline, {h} x {w} px",
        f"Padded to {H} x {W} px; {data['windows']} CLIP windows in {data['batches']} batches. No GPU was used: every "
        f"figure for one is a **{PREDICTED}**, from the graphs and the peak rates in "
        f"`benchmarks/roofline/{FILE.name}`. The rules of counting and fusing are in `flops.py` and `fusion.py` there.",
        "## Devices",
        markdown_table(
            ["device", "figure", "precision", *_DEVICE_COLUMNS.values(), "bound by memory"],
            [
                [
                    *(row["device"], row["label"], row["precision"]),
                    *(significant(row[key]) for key in _DEVICE_COLUMNS),
                    f"{row['memory_share']:.0%}",
                ]
                for row in data["devices"]
            ],
            "lllrrrrr",
        ),
        "*FP32 accumulation*: fused, tensor cores at that rate. *With cache*: fused, and tensors between kernels that "
        "fit into the last-level cache whole cost no memory traffic: the most that a cache could do, and so the lowest "
        "of the bounds. CPU rates are measured by a matrix product and a copy on this machine. "
        f"{unverified(data['sources'])}",
        "## Work",
        markdown_table(
            ["graphs", "matrix GFLOP", "other GFLOP", "GB unfused", "GB fused", "kernels unfused", "fused"],
            [
                [row["precision"]]
                + [significant(row[key]) for key in ("matrix_gflop", "vector_gflop", "unfused_gb", "fused_gb")]
                + [row["unfused_kernels"], row["fused_kernels"]]
                for row in data["totals"]
            ],
        ),
        f"## Where the time goes: {main}, {PREDICTED}",
        _share_table("stage", data["stages"]),
        _share_table("deblur graph, by kind of kernel", data["kinds"]),
        _share_table("deblur graph, by scale", data["scales"]),
        f"## The {COSTLIEST} costliest kernels, fused, equal ones together ({main}, {PREDICTED})",
        _cost_table(data["kernels"]),
        f"## The {COSTLIEST} costliest nodes, unfused, equal ones together ({main}, {PREDICTED})",
        _cost_table(data["nodes"]),
        f"## What would lower the floor ({main}, {PREDICTED} of the chain)",
        _change_table("fusions beyond the rules, same network", data["fusions"]),
    ]
    if data["variants"]:
        parts.append(_change_table("other designs of the network, none of them trained", data["variants"]))
    parts += ["## Finding", finding(data), "## Where the rates come from", _source_table(data["sources"])]
    return "\n\n".join(parts) + "\n"


def finding(data: Mapping[str, Any]) -> str:
    """What dominates, and which change would lower the floor most, in sentences."""
    main, total = data["device"]["name"], data["fusions"][0]["ms"]
    stage, scale, bound = data["stages"][0], data["scales"][0], data["bounds"][0]
    kinds = ", ".join(f"{row['what']} {row['share']:.0%}" for row in data["kinds"][:4])
    h, w = data["size"]
    lines = [
        f"On the {main} the {PREDICTED} of the chain at {h} x {w} px is {significant(total)} ms, of which the "
        f"{stage['what']} stage takes {stage['share']:.0%}. Kernels bound by {bound['what']} make up "
        f"{bound['share']:.0%} of it.",
        f"Within the deblur graph, kernels at scale {scale['what']} take {scale['share']:.0%}; by kind: {kinds}.",
    ]
    alone = data["fusions"][1:-1]
    best = min(alone, key=lambda row: row["ms"])
    everything = data["fusions"][-1]
    lines.append(
        f"With the network as it is, the fusion that would lower the floor most by itself is *{best['change']}*: "
        f"{significant(best['ms'])} ms ({_change(best['ms'], total)}); all of those in the table together: "
        f"{significant(everything['ms'])} ms ({_change(everything['ms'], total)})."
    )
    if data["variants"]:
        best = min(data["variants"][1:], key=lambda row: row["ms"])
        lines.append(
            f"Among the designs, *{best['change']}* would lower it most: {significant(best['ms'])} ms "
            f"({_change(best['ms'], total)}) with {best['parameters'] / 1e6:.1f} M parameters. What it would do to the "
            "restored image is unknown until it is trained."
        )
    else:
        lines.append("Other designs of the network were not compared; `--variants` does it.")
    return "\n\n".join(lines)


def unverified(rows: Sequence[Mapping[str, str]]) -> str:
    """Which peak rates no document states or implies, in a sentence."""
    found = [f"{row['figures']} of the {row['device']}" for row in rows if row["status"] == "unverified"]
    return f"Unverified: {'; '.join(found)}." if found else "Every peak rate has a source that was checked."


def _source_table(rows: Sequence[Mapping[str, str]]) -> str:
    cells = [
        [row["device"], row["figures"], f"{row['document']}, {row['where']}", f"**{row['status']}**: {row['check']}"]
        for row in rows
    ]
    return markdown_table(["device", "figures", "document, where", "how far it was checked"], cells, "llll")


def _share_table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [row for row in rows if row["share"] >= _SMALL]
    cells = [
        [row["what"], significant(row["ms"]), f"{row['share']:.1%}", significant(row["gflop"]), significant(row["mb"])]
        for row in shown
    ]
    return markdown_table([title, "ms", "share", "GFLOP", "MB"], cells)


def _cost_table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [
            *(row["what"], row["stage"], row["bound"], row["count"], significant(row["ms"]), f"{row['share']:.1%}"),
            *(significant(row["gflop"]), significant(row["mb"])),
        ]
        for row in rows
    ]
    header = ["what", "stage", "bound by", "runs", "ms in all", "share", "GFLOP", "MB"]
    return markdown_table(header, cells, "lllrrrrr")


def _change_table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    first = rows[0]["ms"]
    sized = "parameters" in rows[0]
    cells = [
        [row["change"]]
        + ([f"{row['parameters'] / 1e6:.1f} M"] if sized else [])
        + [significant(row["ms"]), _change(row["ms"], first)]
        for row in rows
    ]
    return markdown_table([title, *(["parameters"] if sized else []), "ms", "change"], cells)


def _change(value: float, first: float) -> str:
    return f"{value / first - 1:+.1%}"
