"""Work that is spread over the CPU's cores: NumPy, OpenCV, zlib and the decoders of images release Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MOST_THREADS = 8
"""What is done here waits for memory rather than for arithmetic; more threads would not make it faster."""

Item = TypeVar("Item")
Made = TypeVar("Made")


def usable_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each(work: Callable[[Item], Made], items: Sequence[Item], threads: int | None = None) -> list[Made]:
    """Calls ``work`` on every item, several at a time.

    Args:
        work: Safe to call from several threads; it should release Python's lock for most of its time.
        items: What to call it on.
        threads: At most so many threads, at least 1; None takes one per core, up to ``MOST_THREADS``.

    Returns:
        What ``work`` returned, in the order of the items. If it raises, the error of the first such item is raised
        once the calls that had begun are over.
    """
    threads = min(len(items), threads or min(MOST_THREADS, usable_cores()))
    if threads < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads, thread_name_prefix="ldp-each") as pool:
        return list(pool.map(work, items))
