"""Results that are kept for a while, so that a client can fetch each picture."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from ldp_runtime.service.problems import ProblemError

if TYPE_CHECKING:
    from ldp_runtime.service.restore import RestorationJob


class Results:
    """Restorations by an unguessable name; bounded in number, bytes and age. For one thread."""

    def __init__(self, *, seconds: float, most_bytes: int, count: int) -> None:
        """Makes an empty one.

        Args:
            seconds: How long a finished restoration is kept.
            most_bytes: Most bytes of finished restorations.
            count: Most finished restorations.
        """
        self._seconds, self._bytes, self._count = seconds, most_bytes, count
        self._jobs: dict[str, RestorationJob] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: RestorationJob) -> str:
        """Keeps a restoration, in whatever state; returns its name."""
        self.purge()
        name = secrets.token_urlsafe(18)
        self._jobs[name] = job
        return name

    def get(self, name: str) -> RestorationJob:
        """The restoration of that name.

        Raises:
            ProblemError: There is none, or no longer.
        """
        self.purge()
        try:
            return self._jobs[name]
        except KeyError:
            raise ProblemError(
                404, "no such restoration; results are deleted after a while: send the pair again"
            ) from None

    def remove(self, name: str) -> RestorationJob:
        """Deletes a restoration, and returns it.

        Raises:
            ProblemError: There is none.
        """
        job = self.get(name)
        del self._jobs[name]
        return job

    def purge(self) -> None:
        """Deletes results that are too old, and the oldest of too many. The newest is kept, however large."""
        now = time.monotonic()
        finished = [(job.finished, name) for name, job in self._jobs.items() if job.finished is not None]
        size = 0
        for place, (end, name) in enumerate(sorted(finished, reverse=True)):
            size += _size(self._jobs[name])
            if now - end > self._seconds or (place > 0 and size > self._bytes) or place >= self._count:
                del self._jobs[name]


def _size(job: RestorationJob) -> int:
    if not job.future.done() or job.future.cancelled() or job.future.exception() is not None:
        return 0
    # A preview may be the image itself.
    return sum(len(data) for data in {id(file.data): file.data for file in job.future.result().files.values()}.values())
