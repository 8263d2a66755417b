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
    "floor_ms": "floor, ms",
    "fp32_accumulate_ms": "FP32 accumulation, ms",
    "cached_ms": "ideal cache, ms",
    "cached_fp32_accumulate_ms": "both, ms",
    "copies_ms": "copies over PCIe, ms",
}


def markdown(data: Mapping[str, Any]) -> str:
    """The report's tables and its finding, from the values of ``analyse`` alone."""
    (h, w), (H, W), main, totals = data["size"], data["padded"], data["device"]["name"], data["totals"]
    parts = [
        f"# Roofline, {h} x {w} px",
        f"Padded to {H} x {W} px; CLIP's windows: {data['windows']}, in batches: {data['batches']}. No GPU was used: "
        f"every figure for one is a **{PREDICTED}**, from the plan of {data['plan']} and the peak rates in "
        f"`roofline/{FILE.name}` of the benchmarks; H100 cards do not run TensorRT-RTX, so theirs are for comparison. "
        f"The chain computes {significant(totals['matrix_gflop'])} matrix GFLOP and "
        f"{significant(totals['vector_gflop'])} others and moves {significant(totals['gb'])} GB in "
        f"{totals['launches']} launches.",
        "## Devices",
        markdown_table(
            ["device", "figure", "precision", *_DEVICE_COLUMNS.values(), "bound by memory"],
            [
                [
                    *(row["device"], row["label"], row["precision"]),
                    *(significant(row[key]) for key in _DEVICE_COLUMNS),
                    None if row["memory_share"] is None else f"{row['memory_share']:.0%}",
                ]
                for row in data["devices"]
            ],
            "lllrrrrrr",
        ),
        "*FP32 accumulation*: tensor cores at that rate; which one TensorRT-RTX takes is not known. *Ideal cache*: "
        "tensors between layers that fit whole into the last-level cache cost no memory traffic, the most that a cache "
        "could do. Copies are of a photo of 8 bits, both ways, and overlap with the chain in sequences. CPU rates are "
        f"those of a matrix product on this machine. {unverified(data['sources'])}",
        f"## Where the time goes: {main}, {PREDICTED}",
        _share_table("stage", data["stages"]),
        _share_table("deblur engine, by kind of layer", data["kinds"]),
        _share_table("deblur engine, by scale", data["scales"]),
        f"## The {COSTLIEST} costliest layers, equal ones together ({main}, {PREDICTED})",
        _cost_table(data["layers"]),
        f"## CLIP beside the head ({main}, {PREDICTED})",
        _beside_text(data),
        "## Finding",
        finding(data),
        "## Where the rates come from",
        _source_table(data["sources"]),
    ]
    return "\n\n".join(parts) + "\n"


def finding(data: Mapping[str, Any]) -> str:
    """What dominates, in sentences."""
    main = data["device"]["name"]
    (row,) = (row for row in data["devices"] if row["device"] == main)
    scale, bound = data["scales"][0], data["bounds"][0]
    deblur = sum(kind["ms"] for kind in data["kinds"]) / row["floor_ms"]
    kinds = ", ".join(f"{kind['what']} {kind['share']:.0%}" for kind in data["kinds"][:4])
    h, w = data["size"]
    return (
        f"On the {main} the {PREDICTED} of the chain at {h} x {w} px is {significant(row['floor_ms'])} ms "
        f"({significant(row['fp32_accumulate_ms'])} ms with FP32 accumulation, {significant(row['cached_ms'])} ms with "
        f"an ideal cache), of which the deblur engine takes {deblur:.0%}. Layers bound by "
        f"{bound['what']} make up {bound['share']:.0%} of it. Within the deblur engine, layers at scale "
        f"{scale['what']} take {scale['share']:.0%}; by kind: {kinds}."
    )


def _beside_text(data: Mapping[str, Any]) -> str:
    """What the second stream could gain on the main device."""
    cells = [
        [
            row["accumulation"],
            "yes" if row["cached"] else "no",
            *(significant(row[key]) for key in ("clip_ms", "head_ms", "in_turn_ms", "at_best_ms")),
            f"{gain(row):.1%}",
        ]
        for row in data["beside"]["rows"]
        if row["device"] == data["device"]["name"]
    ]
    header = ["accumulation", "ideal cache", "CLIP, ms", "head, ms", "chain in turn, ms", "at best, ms", "gain at best"]
    return (
        "CLIP runs on one stream while the head of the deblur graph, which needs no blur map, runs on another; "
        f"{significant(data['beside']['crossing_mb'])} MB cross from it to the rest. *In turn*, as in the other "
        "tables: their kernels never share the device. *At best*: they share it without loss, which two kernels that "
        "each fill it do not.\n\n" + markdown_table(header, cells, "llrrrrr")
    )


def gain(row: Mapping[str, Any]) -> float:
    """Which part of the time in turn a row of ``beside`` saves at best."""
    return max(0.0, 1 - float(row["at_best_ms"]) / float(row["in_turn_ms"]))  # rounding may leave less than nothing


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
