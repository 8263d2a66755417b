from __future__ import annotations

import threading

import pytest

from ldp_runtime.errors import BundleError
from ldp_runtime.service.jobs import Job, JobQueue
from ldp_runtime.service.problems import ProblemError
from ldp_runtime.service.results import Results


def add(number: int, job: Job[int, int]) -> int:
    return number + 1


class Held:
    """Work that waits until a test lets it go."""

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
    held = [Held(), Held()]
    jobs = [queue.submit(work, 60) for work in held]
    for work in held:
        assert work.begun.wait(60)  # both at a time
    for work in held:
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


def test_order_room_drop_and_close() -> None:
    queue: JobQueue[int, int] = JobQueue(lambda: 1, workers=1, waiting=3)
    held = Held()
    first = queue.submit(held, 60)
    assert held.begun.wait(60)
    second, third, fourth = (queue.submit(add, 60) for _ in range(3))
    assert (queue.running, queue.waiting) == (1, 3)
    with pytest.raises(ProblemError, match="3 pairs wait") as refused:
        queue.submit(add, 60)
    assert refused.value.status_code == 429
    assert [queue.position(job) for job in (first, second, third, fourth)] == [None, 1, 2, 3]
    assert queue.drop(second)
    assert second.future.cancelled()
    assert not queue.drop(second)
    assert queue.position(third) == 1
    held.go.set()
    assert third.future.result(60) == fourth.future.result(60) == 2
    queue.close()
    with pytest.raises(ProblemError, match="shutting down"):
        queue.submit(add, 60)
    assert queue.join(60)


def test_work_that_was_abandoned_ends_at_its_next_check() -> None:
    queue: JobQueue[int, int] = JobQueue(lambda: 1, workers=1, waiting=1)
    held = Held()
    job = queue.submit(held, 60)
    assert held.begun.wait(60)
    assert not queue.drop(job)
    held.go.set()
    with pytest.raises(ProblemError, match="the client left"):
        job.future.result(60)
    queue.close()
    assert queue.join(60)


def test_a_job_past_its_time_is_not_begun() -> None:
    queue: JobQueue[int, int] = JobQueue(lambda: 1, workers=1, waiting=1)
    held = Held()
    queue.submit(held, 60)
    assert held.begun.wait(60)
    late = queue.submit(add, 0)
    held.go.set()
    with pytest.raises(ProblemError) as error:
        late.future.result(60)
    assert error.value.status_code in (503, 504)
    queue.close()
    assert queue.join(60)


class Kept:
    """A job that has ended, as ``Results`` sees one."""

    def __init__(self, size: int, finished: float) -> None:
        from concurrent.futures import Future
        from types import SimpleNamespace

        self.finished = finished
        self.future: Future[object] = Future()
        data = bytes(size)
        files = {name: SimpleNamespace(data=data) for name in ("image", "after")}  # one and the same
        self.future.set_result(SimpleNamespace(files=files))


def test_results_are_bounded_in_age_bytes_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("ldp_runtime.service.results.time.monotonic", lambda: now)
    results = Results(seconds=50, most_bytes=100, count=3)

    def add(size: int, finished: float) -> str:
        return results.add(Kept(size, finished))  # type: ignore[arg-type]

    old = add(40, 60)
    kept = [add(40, 80), add(40, 81)]
    with pytest.raises(ProblemError, match="no such restoration"):
        results.get(old)  # 120 bytes are too many
    assert all(results.get(name) for name in kept)
    now = 130.5  # the first of both is too old
    with pytest.raises(ProblemError):
        results.get(kept[0])
    large = add(1000, 130)  # the newest is kept, however large
    assert results.get(large)
    with pytest.raises(ProblemError):
        results.get(kept[1])
    results.remove(large)
    assert len(results) == 0
    small = [add(1, 130 + i) for i in range(4)]
    results.purge()
    assert len(results) == 3
    assert len({*small, large}) == 5  # no two names alike
