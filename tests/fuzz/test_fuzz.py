"""A few hundred fuzz cases with fixed seeds, and proof that the harness notices faults."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz.cases import ERROR, FINDINGS, KINDS, RESULT, Case, draw, run_case
from tests.fuzz.harness import quiet, run_cases

pytestmark = pytest.mark.usefixtures("own_cache")

SEED = 20_261_125
CASES = 25


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_case_ends_in_a_right_result_or_in_our_error(kind: str) -> None:
    ends: Counter[str] = Counter()
    for seed in range(CASES):
        case = Case(kind, SEED + seed)
        outcome = run_case(case)
        assert outcome.end not in FINDINGS, f"{case}: {outcome.end}\n{outcome.detail}"
        ends[outcome.end] += 1
    assert ends[RESULT] + ends[ERROR] == CASES
    # The changes are hostile enough to be refused, and mild enough to pass the first checks.
    assert ends[ERROR] > 0 or kind == "exif"
    assert ends[RESULT] > 0


def test_cases_are_made_from_their_seed_alone() -> None:
    assert list(draw(3, 50)) == list(draw(3, 50)) != list(draw(4, 50))
    shares = Counter(case.kind for case in draw(1, 5000))
    assert shares.keys() == KINDS.keys()
    assert sum(share for share, _ in KINDS.values()) == 100


def test_the_harness_notices_a_traceback_and_a_leftover_file() -> None:
    traceback = run_case(Case("control-traceback", 0))
    assert traceback.end == "exception"
    assert "struct.error" in traceback.detail
    assert run_case(Case("control-leftover", 0)).end == "leftover"


@pytest.mark.slow
def test_the_harness_survives_a_hang_and_a_crash() -> None:
    quiet()
    cases = [Case("control-crash", 0), Case("control-hang", 0), Case("exif", 1), Case("control-traceback", 0)]
    ends = {case.kind: outcome.end for case, outcome in run_cases(iter(cases), limit=20)}
    assert ends == {
        "control-crash": "crash",
        "control-hang": "hang",
        "exif": "result",
        "control-traceback": "exception",
    }


@pytest.mark.slow
def test_the_command_writes_a_summary(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--cases", "30", "--seed", "5", "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "summary.json").is_file()
    assert "| all | 30 |" in (tmp_path / "summary.md").read_text(encoding="utf-8")
