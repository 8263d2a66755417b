from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import reliability
from benchmarks.reliability import KINDS, SHARES, all_problems, read_other, to_markdown
from benchmarks.results import Commit, Report
from tests.faults.harness import Scenario


def counts(problems: list[str], **more: int) -> dict[str, Any]:
    return {"runs": 3, "problems": problems, "killed": 2, "failed": 1, "temporary": 1, **more}


def report(data: dict[str, Any], kind: str = "reliability") -> Report:
    return Report(kind, {"summary": "a machine"}, "2026-01-01T00:00:00Z", Commit(None, False), None, data)


@pytest.fixture
def data() -> dict[str, Any]:
    return {kind: {"ldp deblur": counts([], operations=12)} for kind in KINDS} | {"seed": 0, "others": {}}


def test_kills_are_shared_in_the_ratio_of_the_shares() -> None:
    scenarios = [Scenario(name, "ldp", lambda out: [], lambda out: [], lambda out: []) for name in SHARES]
    assert reliability._shared(50, scenarios) == list(SHARES.values())
    assert sum(reliability._shared(7, scenarios)) == 7
    assert sum(reliability._shared(50, scenarios[:4])) == 50


def test_the_page_says_what_went_well_and_what_did_not(data: dict[str, Any]) -> None:
    page = to_markdown(report(data))
    assert "3 kills (SIGKILL) at random moments of a command's work, of which 2 came before it was done" in page
    assert "Nothing was lost, half-written or left behind." in page
    assert "| ldp deblur | 3 | 2 | 3 | 12 | 1 | 0 |" in page
    assert "## Problems" not in page
    data["full_disk"]["ldp deblur"]["problems"].append("a traceback was printed")
    page = to_markdown(report(data))
    assert all_problems(data) == ["ldp deblur: a traceback was printed"]
    assert "1 problems, below." in page
    assert "- ldp deblur: a traceback was printed" in page


def test_counts_of_other_reports_are_taken_in(data: dict[str, Any], tmp_path: Path) -> None:
    assert read_other(tmp_path / "fuzz.json") is None
    report({"bundles": 300, "crashes": 0, "parts": [1, 2]}, "fuzz").write(tmp_path / "fuzz.json")
    data["others"] = {"fuzz": read_other(tmp_path / "fuzz.json")}
    page = to_markdown(report(data))
    assert "## Fuzzing" in page
    assert "| bundles | 300 |" in page
    assert "parts" not in page
