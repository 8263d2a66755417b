"""Runs jobs in this process: threads read ahead and write behind while the caller's thread computes."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from ldp_runtime.batch.jobs import Job, Settings
from ldp_runtime.batch.work import Done, Outcome, PairError, Read, Restored, finish, read, start, write
from ldp_runtime.chain import in_flight
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.result import PendingResult

MOST_IO_THREADS = 4


def default_io_threads() -> int:
    """Threads that read, and as many that write: half of the CPUs, at most ``MOST_IO_THREADS``."""
    return min(MOST_IO_THREADS, max(1, (os.cpu_count() or 1) // 2))


def run_local(
    jobs: Iterable[Job], settings: Settings, deblurrer: Deblurrer, *, io_threads: int | None = None
) -> Iterator[Outcome]:
    """Restores pairs; at most ``io_threads`` are read ahead and as many wait to be written, which bounds memory.

    After Ctrl-C the restored pairs are written and yielded before the interrupt is raised; nothing else is begun.

    Args:
        jobs: The pairs.
        settings: The settings that all share.
        deblurrer: The deblurrer, made with ``settings``.
        io_threads: Threads that read and threads that write, each; None for ``default_io_threads``.

    Yields:
        The outcome of each pair, in the order in which they end.

    Raises:
        OutputError: The output folder cannot be written.
    """
    threads = io_threads or default_io_threads()
    readers = ThreadPoolExecutor(threads, thread_name_prefix="ldp-read")
    writers = ThreadPoolExecutor(threads, thread_name_prefix="ldp-write")
    writing: set[Future[Done]] = set()

    def written(*, at_most: int) -> Iterator[Outcome]:
        """Outcomes of pairs that were written, until no more than so many are left."""
        while writing:
            done, _ = wait(writing, timeout=None if len(writing) > at_most else 0, return_when=FIRST_COMPLETED)
            if not done:
                return
            for future in done:
                writing.discard(future)
                try:
                    yield future.result()
                except PairError as error:
                    yield error.failure

    try:
        for item in _restored(_read_ahead(readers, jobs, settings, threads), deblurrer):
            if isinstance(item, Restored):
                writing.add(writers.submit(write, item, settings))
            else:
                yield item.failure
            yield from written(at_most=threads)
        yield from written(at_most=0)
    except KeyboardInterrupt:
        yield from written(at_most=0)
        raise
    finally:
        readers.shutdown(wait=False, cancel_futures=True)
        writers.shutdown(wait=True, cancel_futures=True)
        readers.shutdown(wait=True)


def _read_ahead(
    readers: ThreadPoolExecutor, jobs: Iterable[Job], settings: Settings, ahead: int
) -> Iterator[Read | PairError]:
    """The pairs in order, each read before it is asked for."""
    waiting = iter(jobs)
    reading = deque(readers.submit(read, job, settings) for job in islice(waiting, ahead))
    while reading:
        try:
            item: Read | PairError = reading.popleft().result()
        except PairError as error:
            item = error
        reading.extend(readers.submit(read, job, settings) for job in islice(waiting, 1))
        yield item


def _restored(pairs: Iterable[Read | PairError], deblurrer: Deblurrer) -> Iterator[Restored | PairError]:
    """Restores the pairs that could be read; a GPU works on one while the result of the one before is written."""

    def begin(pair: Read | PairError) -> PendingResult:
        if isinstance(pair, PairError):
            return PendingResult.failed(pair)
        try:
            return start(deblurrer, pair)
        except PairError as error:
            return PendingResult.failed(error)

    with contextlib.closing(in_flight(pairs, begin)) as started:
        for pair, pending in started:
            try:
                yield pair if isinstance(pair, PairError) else finish(pair, pending)
            except PairError as error:
                yield error
