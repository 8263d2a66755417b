import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.processes import answer_spec, run_module, run_spec
from benchmarks.harness.results import BenchmarkError
from ldp_runtime.errors import BackendError


@dataclass(frozen=True)
class Spec:
    value: int


def measure(fields: dict[str, Any]) -> int:
    if fields["value"] == 2:
        raise BackendError("no such device")
    if fields["value"] == 3:
        raise MemoryError
    return 10 * int(fields["value"])


def test_a_result_or_an_error_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(module: str, *arguments: str, environment: object, most_seconds: object) -> tuple[int, str]:
        assert (module, environment, most_seconds) == ("a.module", None, None)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        answer_spec(measure)
        return 0, ""

    monkeypatch.setattr("benchmarks.harness.processes.run_module", run)
    assert run_spec("a.module", Spec(1), tmp_path) == 10
    for value, words in ((2, "no such device"), (3, "out of memory")):
        with pytest.raises(BenchmarkError, match=words):
            run_spec("a.module", Spec(value), tmp_path)


def test_a_process_that_dies_is_an_error_with_its_last_line(tmp_path: Path) -> None:
    assert run_module("benchmarks", "--help") == (0, "no message")
    with pytest.raises(BenchmarkError, match=r"the process ended with 2: .*invalid choice"):
        run_spec("benchmarks", Spec(1), tmp_path)


def test_a_process_that_takes_too_long_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_module.py").write_text("import time\ntime.sleep(3600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BenchmarkError, match=r"the process took more than 0.5 s and was killed"):
        run_spec("slow_module", Spec(1), tmp_path, most_seconds=0.5)
