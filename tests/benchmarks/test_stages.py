from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import stages
from benchmarks.harness.results import Report
from benchmarks.stages import Stage, copy, host_stages, measure
from ldp_runtime.bundle.bundle import Bundle

NAMES = ["prepare, the pair", "prepare, CLIP's windows", "blur map", "finish", "read PNG, both", "write PNG"]


@pytest.mark.parametrize("bits", [8, 16])
def test_every_stage_runs_and_moves_its_bytes(bundle: Bundle, bits: int) -> None:
    found = host_stages(bundle.manifest, (40, 50), bits)
    assert [stage.name for stage in found] == NAMES
    for stage in found:
        result = stage.work()
        written = sum(n for _, n in stage.moves)
        if isinstance(result, np.ndarray):
            assert result.nbytes == written
        if isinstance(result, list):
            assert sum(photo.pixels.nbytes for photo in result) == written
        if isinstance(result, bytes):
            assert len(result) == written


def test_large_pairs_have_tiles(bundle: Bundle) -> None:
    assert "blend" in [stage.name for stage in host_stages(bundle.manifest, (700, 1000), 8)]


def test_a_copy_goes_once_over_what_is_read_and_written() -> None:
    class Memory(np.ndarray[Any, Any]):
        def copy(self, *_: Any) -> Memory:
            copied.append(self.tolist())
            return self

    copied: list[list[int]] = []
    copy(np.arange(20, dtype=np.uint8).view(Memory), [(2, 3), (4, 1)])
    assert copied == [[0, 1], [2, 3, 4], [5, 6, 7, 8], [9]]


def test_stage_and_copy_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Bundle) -> None:
    calls = []
    monkeypatch.setattr(stages, "_CACHE_BYTES", 1)
    monkeypatch.setattr(stages, "copy", lambda memory, moves: calls.append("copy"))
    rows = measure([Stage("a", lambda: calls.append("stage"), [(4, 8)])], 3)
    assert calls == ["stage", "copy"] * 4
    (row,) = rows
    assert row["bytes"] == [4, 8]
    assert row["seconds"]["runs"] == row["copy"]["runs"] == 3
    data = {"rounds": 3, "load_average": {"before": None, "after": None}}
    data |= {"series": [{"shape": [40, 50], "bits": 8, "stages": rows}]}
    report = Report.new("stages", data, bundle)
    report.write(tmp_path / "stages.json")  # plain JSON
    assert "\n| a | " in stages.to_markdown(report)
