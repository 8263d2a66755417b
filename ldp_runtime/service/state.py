"""What the routes of one application share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from ldp_runtime.service.jobs import JobQueue
from ldp_runtime.service.metrics import Metrics
from ldp_runtime.service.problems import ProblemError, problem_of
from ldp_runtime.service.restore import Restoration, RestorationJob, RestorationQueue, Upload, restore
from ldp_runtime.service.results import Results
from ldp_runtime.service.settings import Settings

if TYPE_CHECKING:
    from ldp_runtime.deblurrer import Deblurrer


class Uploads:
    """Counts the uploads that are being read, and limits them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.reading = 0

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Counts one more while the block runs.

        Raises:
            ProblemError: As many as may are being read.
        """
        if self.reading >= self._limit:
            raise ProblemError(
                429, f"{self._limit} uploads are being read, and no more may; try again later", retry_after=2
            )
        self.reading += 1
        try:
            yield
        finally:
            self.reading -= 1


class Service:
    """What the routes of one application share.

    Attributes:
        settings: The limits.
        queue: Where uploads wait for a worker.
        uploads: Those that are being read.
        results: Restorations whose pictures clients fetch later.
        metrics: The counters.
    """

    def __init__(self, settings: Settings, open_deblurrer: Callable[[], Deblurrer]) -> None:
        """Opens a deblurrer in each worker.

        Args:
            settings: The limits.
            open_deblurrer: Makes the deblurrer of a worker, in its thread.

        Raises:
            LDPError: Raised by ``open_deblurrer``.
        """
        self.settings = settings
        self.queue: RestorationQueue = JobQueue(open_deblurrer, workers=settings.workers, waiting=settings.queue)
        self.uploads = Uploads(settings.uploads)
        self.results = Results(seconds=settings.keep_seconds, most_bytes=settings.keep_bytes, count=settings.keep_count)
        self.metrics = Metrics()
        self.metrics.gauge("queue_waiting", "Pairs that wait for a worker", lambda: self.queue.waiting)
        self.metrics.gauge("queue_running", "Pairs that are being restored", lambda: self.queue.running)
        self.metrics.gauge("uploads_reading", "Uploads that are being read", lambda: self.uploads.reading)
        self.metrics.gauge("results_kept", "Restorations that are kept or in flight", lambda: len(self.results))

    def submit(self, upload: Upload, *, previews: bool) -> RestorationJob:
        """Puts an upload into the queue.

        Raises:
            ProblemError: There is no room.
        """
        work = partial(restore, upload=upload, max_pixels=self.settings.max_pixels, previews=previews)
        job = self.queue.submit(work, self.settings.time_limit)
        job.future.add_done_callback(self._count)
        return job

    def _count(self, future: Future[Restoration]) -> None:
        if future.cancelled():
            outcome = "dropped"
        elif (error := future.exception()) is not None:
            outcome = {422: "refused", 503: "dropped", 504: "late"}.get(problem_of(error).status_code, "failed")
        else:
            outcome = "restored"
            self.metrics.observe(future.result().report.seconds)
        self.metrics.count_restoration(outcome)
