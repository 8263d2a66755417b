import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reliability
from benchmarks.harness.machine import Commit
from benchmarks.harness.results import BenchmarkError, Report
from benchmarks.reliability import KINDS, SHARES, all_problems, read_others, to_markdown
from tests.faults.scenarios import Scenario


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
    assert "3 kills (SIGKILL) at random moments of a command's work, of which 2 were before it was done" in page
    assert "Nothing was lost, half-written or left behind." in page
    assert "| ldp deblur | 3 | 2 | 3 | 12 | 1 | 0 |" in page
    assert "## Problems" not in page
    data["full_disk"]["ldp deblur"]["problems"].append("a traceback was printed")
    page = to_markdown(report(data))
    assert all_problems(data) == ["ldp deblur: a traceback was printed"]
    assert "1 problems, below." in page
    assert "- ldp deblur: a traceback was printed" in page


def test_counts_of_other_reports_are_taken_in(data: dict[str, Any], tmp_path: Path) -> None:
    assert read_others(tmp_path) == {}
    (tmp_path / "fuzz.json").write_text(json.dumps({"cases": 300, "findings": []}))
    slow = {"connections": 5, "left": 0}
    parts = {
        "malformed": {"forms": 9, "statuses": {"400": 6, "422": 2, "500": 1}},
        "overload": {"clients": 16, "statuses": {"200": 4, "429": 50}},
        **dict.fromkeys(("slow heads", "slow bodies", "half-open"), slow),
    }
    report({"parts": parts}, "service").write(tmp_path / "service.json")
    data["others"] = read_others(tmp_path)
    page = to_markdown(report(data))
    assert "- Fuzzing: 300 hostile photos, bundles and arrays, 0 findings ([all counts](fuzzing.md))." in page
    assert "of 9 malformed forms 1 were answered with 5xx; 16 clients on a queue for fewer were served 4 times" in page
    assert "of 15 slow or half-open connections 0 were left ([all counts](service.md))." in page
    (tmp_path / "fuzz.json").write_text("[]")
    with pytest.raises(BenchmarkError, match="expected results of the fuzzing"):
        read_others(tmp_path)
