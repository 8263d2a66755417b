"""Figures of the comparison."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.figure1.contenders import Contender
from benchmarks.figure1.store import Store
from benchmarks.harness.timing import summarise


def summarise_all(
    contenders: Sequence[Contender], store: Store, scores: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The report's figures, as plain JSON values.

    Args:
        contenders: The methods; the first is the one that others are compared with.
        store: What was measured.
        scores: See ``score_bundles``.

    Returns:
        ``rows``, one per method: what ``Contender.to_json`` says, ``measured`` (see ``score_bundles``), ``error``,
        times in seconds, bytes, both as ratios to the first; and the lowest and the highest ``load_average``.
    """
    rows = [_row(contender, store) | {"measured": scores.get(contender.name)} for contender in contenders]
    first = rows[0]
    for row in rows:
        for key, of in (("time_ratio", "seconds"), ("memory_ratio", "host_bytes")):
            both = row[of] is not None and first[of] is not None
            row[key] = row[of] / first[of] if both else None
    names = [contender.name for contender in contenders]
    loads = [v for n in names for r in store.records.get(n, {}).values() for v in r.load if v is not None]
    return {"rows": rows, "load_average": [min(loads), max(loads)] if loads else None}


def _row(contender: Contender, store: Store) -> dict[str, Any]:
    row = contender.to_json() | {"error": store.error(contender.name)}
    blocks = store.blocks(contender.name)
    if row["error"] is not None or not blocks:
        keys = ("seconds", "p5", "p95", "cpu_seconds", "runs", "rounds", "host_bytes", "device_bytes", "device")
        return row | dict.fromkeys(keys)
    summary = summarise([block.seconds for block in blocks])
    return row | {
        "seconds": summary.median,
        "p5": summary.p5,
        "p95": summary.p95,
        "cpu_seconds": statistics.median(value for block in blocks for value in block.cpu_seconds),
        "runs": summary.runs,
        "rounds": summary.blocks,
        "host_bytes": max(block.host_bytes for block in blocks),
        "device_bytes": max((b.device_bytes for b in blocks if b.device_bytes is not None), default=None),
        "device": blocks[0].device,
    }
