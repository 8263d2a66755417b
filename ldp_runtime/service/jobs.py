"""A bounded queue of jobs, and the threads that work on them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from ldp_runtime.errors import counted
from ldp_runtime.service.problems import ProblemError

W = TypeVar("W")
T = TypeVar("T")

_FIRST_GUESS = 5.0
"""Estimated seconds of a job before one has been timed."""


class Job(Generic[W, T]):
    """One piece of work.

    Attributes:
        work: A function of the worker's own tool and this job; it calls ``check`` between its steps.
        future: Its outcome. It is running once the job can no longer be withdrawn.
        submitted: When it was submitted, by ``time.monotonic``.
        deadline: When its result is useless, by the same clock.
        finished: When it ended, or None.
        done: Share of the work that is done, 0 to 1.
    """

    def __init__(self, work: Callable[[W, Job[W, T]], T], time_limit: float) -> None:
        self.work = work
        self.future: Future[T] = Future()
        self.submitted = time.monotonic()
        self.deadline = self.submitted + time_limit
        self.finished: float | None = None
        self.done = 0.0
        self._time_limit = time_limit
        self._abandoned = False

    def abandon(self) -> None:
        """Marks a job whose result nobody waits for; running work ends at its next check."""
        self._abandoned = True

    def check(self) -> None:
        """Ends work whose result nobody waits for.

        Raises:
            ProblemError: The time is over, or the job was abandoned.
        """
        if self._abandoned:
            raise ProblemError(503, "the client left")
        if time.monotonic() > self.deadline:
            raise self.late()

    def progress(self, done: float) -> None:
        """Keeps the share of the work that is done; ends work whose result nobody waits for, as ``check`` does."""
        self.check()
        self.done = done

    def late(self) -> ProblemError:
        """The error of a job that is not done in time."""
        if self.future.running():
            return ProblemError(
                504,
                f"expected a result within {self._time_limit:g} s, got none; send a smaller image, or start the "
                "service with a larger --time-limit",
            )
        return ProblemError(
            503, f"the pair waited for {self._time_limit:g} s and no worker was free; try again later", retry_after=10
        )


class JobQueue(Generic[W, T]):
    """Jobs wait in order for threads that each have a tool of their own.

    Attributes:
        running: How many jobs are running.
        closed: Whether new jobs are refused.
    """

    def __init__(self, open_tool: Callable[[], W], *, workers: int, waiting: int) -> None:
        """Starts the threads, and waits until each has its tool.

        Args:
            open_tool: Opens the tool of a thread, in that thread.
            workers: How many threads.
            waiting: Most jobs that may wait.

        Raises:
            Exception: Raised by ``open_tool``.
        """
        self._limit = waiting
        self._waiting: deque[Job[W, T]] = deque()
        self._changed = threading.Condition()
        self.running = 0
        self.closed = False
        self._seconds = _FIRST_GUESS
        self._workers = workers
        opened: list[Future[None]] = [Future() for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._work, args=(open_tool, ready), name=f"ldp-worker-{i}", daemon=True)
            for i, ready in enumerate(opened)
        ]
        try:
            for thread, ready in zip(self._threads, opened, strict=True):
                thread.start()
                ready.result()
        except BaseException:
            self.close()
            raise

    @property
    def waiting(self) -> int:
        """Jobs that no worker has begun."""
        return len(self._waiting)

    def check_room(self) -> None:
        """Checks that a job could be submitted now.

        Raises:
            ProblemError: The queue is full or closed.
        """
        if self.closed:
            raise ProblemError(503, "the service is shutting down; try again later", retry_after=10)
        if len(self._waiting) >= self._limit + max(0, self._workers - self.running):
            raise ProblemError(
                429,
                f"the queue is full with {counted(len(self._waiting), 'pair')}; try again later",
                retry_after=self._seconds * (len(self._waiting) + 1) / self._workers,
            )

    def submit(self, work: Callable[[W, Job[W, T]], T], time_limit: float) -> Job[W, T]:
        """Puts a job at the end of the queue.

        Args:
            work: As for ``Job``.
            time_limit: Seconds from now until its result is useless.

        Raises:
            ProblemError: The queue is full or closed.
        """
        job = Job(work, time_limit)
        with self._changed:
            self.check_room()
            self._waiting.append(job)
            self._changed.notify()
        return job

    def drop(self, job: Job[W, T]) -> bool:
        """Withdraws a job; True if no worker had begun it."""
        job.abandon()
        with self._changed:
            if job not in self._waiting:
                return False
            self._waiting.remove(job)
        job.future.cancel()
        return True

    def position(self, job: Job[W, T]) -> int | None:
        """The position of a waiting job, 1 is the next; None if it does not wait."""
        with self._changed:
            return self._waiting.index(job) + 1 if job in self._waiting else None

    def close(self) -> None:
        """Refuses new jobs and fails those that wait; running ones continue."""
        with self._changed:
            self.closed = True
            left, self._waiting = list(self._waiting), deque()
            self._changed.notify_all()
        for job in left:
            job.future.set_exception(ProblemError(503, "the service is shutting down; try again later", retry_after=10))

    def join(self, timeout: float) -> bool:
        """Waits for the threads to end; True if all have within ``timeout`` seconds."""
        end = time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, open_tool: Callable[[], W], ready: Future[None]) -> None:
        try:
            tool = open_tool()
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        while (job := self._next()) is not None:
            begin = time.monotonic()
            try:
                job.check()
                outcome = job.work(tool, job)
            except BaseException as error:
                self._end(job, begin)
                job.future.set_exception(error)
            else:
                self._end(job, begin)
                job.future.set_result(outcome)

    def _next(self) -> Job[W, T] | None:
        with self._changed:
            while not self._waiting:
                if self.closed:
                    return None
                self._changed.wait()
            job = self._waiting.popleft()
            self.running += 1
            job.future.set_running_or_notify_cancel()
            return job

    def _end(self, job: Job[W, T], begin: float) -> None:
        job.finished = time.monotonic()
        with self._changed:
            self.running -= 1
            self._seconds += 0.3 * (job.finished - begin - self._seconds)
