import threading

import pytest

from ldp_runtime.errors import BundleError
from ldp_runtime.service.jobs import Job, JobQueue
from ldp_runtime.service.problems import ProblemError


def add(number: int, job: Job[int, int]) -> int:
    return number + 1


class Blocked:
    """Work that waits for the test."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, number: int, job: Job[int, int]) -> int:
        self.begun.set()
        assert self.go.wait(60)
        job.check()
        return number


def test_each_worker_has_a_tool_of_its_own() -> None:
    threads: list[str] = []

    def open_tool() -> int:
        threads.append(threading.current_thread().name)
        return len(threads)

    queue: JobQueue[int, int] = JobQueue(open_tool, workers=2, waiting=2)
    blocked = [Blocked(), Blocked()]
    jobs = [queue.submit(work, 60) for work in blocked]
    for work in blocked:
        assert work.begun.wait(60)  # both at a time
    for work in blocked:
        work.go.set()
    assert {job.future.result(60) for job in jobs} == {1, 2}
    assert len(set(threads)) == 2
    queue.close()
    assert queue.join(60)


def test_a_tool_that_does_not_open_is_an_error_of_the_start() -> None:
    def open_tool() -> int:
        raise BundleError("no bundle")

    with pytest.raises(BundleError, match="no bundle"):
        JobQueue(open_tool, workers=2, waiting=1)


def test_work_that_was_abandoned_ends_at_its_next_check() -> None:
    queue: JobQueue[int, int] = JobQueue(lambda: 1, workers=1, waiting=1)
    blocked = Blocked()
    job = queue.submit(blocked, 60)
    assert blocked.begun.wait(60)
    assert not queue.drop(job)
    blocked.go.set()
    with pytest.raises(ProblemError, match="the client left"):
        job.future.result(60)
    queue.close()
    assert queue.join(60)


def test_a_job_past_its_time_is_not_begun() -> None:
    queue: JobQueue[int, int] = JobQueue(lambda: 1, workers=1, waiting=1)
    blocked = Blocked()
    queue.submit(blocked, 60)
    assert blocked.begun.wait(60)
    late = queue.submit(add, 0)
    blocked.go.set()
    with pytest.raises(ProblemError) as error:
        late.future.result(60)
    assert error.value.status_code in (503, 504)
    queue.close()
    assert queue.join(60)
