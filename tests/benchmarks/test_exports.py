"""The exports that other benchmarks need, several at a time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks import exports
from benchmarks.__main__ import main
from benchmarks.exports import Job, jobs_for, run_jobs
from benchmarks.harness.results import BenchmarkError
from ldp_export.network.published import PUBLISHED


def test_the_longest_come_first() -> None:
    jobs = jobs_for(["small"], list(PUBLISHED), "onnxruntime:fp32")
    assert [job.name for job in jobs[:2]] == ["small", "restormer"]
    assert {job.name for job in jobs} == {"small", *PUBLISHED}
    assert {job.detail for job in jobs[1:]} == {"fp32"}
    half = jobs_for([], ["nafnet"], "onnxruntime:fp16")
    assert half == [Job("published", "nafnet", "fp16")]
    assert str(half[0]) == "NAFNet, width 32, fp16" and str(jobs[0]) == "ldp-small-random"


def test_two_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    meet = threading.Barrier(2, timeout=60)

    def wait_for_the_other(job: Job) -> float:
        meet.wait()
        return 1.0

    monkeypatch.setattr(exports, "_run_process", wait_for_the_other)
    jobs = [Job("published", name) for name in PUBLISHED]
    assert run_jobs(jobs, 2) == dict.fromkeys(jobs, 1.0)


def test_an_export_that_fails_ends_the_rest_with_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, cancelled = [], threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            cancelled.set()
            super().shutdown(wait)

    def fail(module: str, *job: str) -> tuple[int, str]:
        assert not begun or cancelled.wait(60)  # an export takes longer than it takes to cancel the rest
        begun.append((module, *job))
        return 1, "KeyError: 'tiny'"

    monkeypatch.setattr(exports, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(exports, "run_module", fail)
    with pytest.raises(BenchmarkError, match=r"expected ldp-tiny-random to be exported, .* 1: KeyError: 'tiny'"):
        run_jobs([Job("config", "tiny"), *(Job("config", f"other-{i}") for i in range(20))], 1)
    assert begun[0] == ("benchmarks.exports", "config", "tiny", "")
    assert len(begun) <= 2


def test_the_command_checks_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exports", "--config", "--network", "--jobs", "0"]) == 2
    assert "expected --jobs above 0, got 0" in capsys.readouterr().err
