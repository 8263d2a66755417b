"""The work on one pair in three steps, which runners overlap: read, restore, write.

A step that fails raises the pair's ``PairError``, and the other pairs continue. An output folder that cannot be
written would make every pair fail, so it raises ``OutputError`` instead.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec import Struct

from ldp_runtime.batch.jobs import Job, Settings
from ldp_runtime.batch.journal import FileFacts, OutputError, Record
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import BackendError, BundleError, ImageError, LDPError, WriteError, one_line
from ldp_runtime.files import cannot_read, cannot_write, write_files
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.pair_files import Views, encode_blur_map, read_target, read_views
from ldp_runtime.images.photo import check_format, encode_photo
from ldp_runtime.images.quality import against_target
from ldp_runtime.result import PendingResult, Result
from ldp_runtime.stages.tiles import ran_out_of_memory


class Failure(Struct, frozen=True, tag=True):
    """A pair that could not be restored.

    Attributes:
        name: ``Job.name``.
        left: Its left view.
        right: Its right view; None if one file holds both.
        error: Why, a line.
        whole: The backend or the bundle failed, so other pairs are likely to fail too.
        traceback: The traceback of a bug.
    """

    name: str
    left: str
    right: str | None
    error: str
    whole: bool = False
    traceback: str | None = None


class Done(Struct, frozen=True, tag=True):
    """A pair that was restored.

    Attributes:
        record: For the journal.
        warnings: Sentences for people.
    """

    record: Record
    warnings: tuple[str, ...]


Outcome = Done | Failure


class PairError(Exception):
    """Ends the work on a pair; carries its ``Failure``."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error)
        self.failure = failure


@dataclass(frozen=True)
class Read:
    """A pair that was read: its job, its views, the facts of its files, and the seconds of reading."""

    job: Job
    views: Views
    files: dict[Path, FileFacts]
    target: Photo | None
    seconds: float


@dataclass(frozen=True)
class Restored:
    """A pair that was restored: what was read, and the result."""

    read: Read
    result: Result


def make_deblurrer(bundle: Bundle, settings: Settings) -> Deblurrer:
    """Makes the deblurrer of all pairs.

    Raises:
        BundleError: The bundle is not that of ``settings``.
        BackendError: The backend does not work here.
    """
    if bundle.content != settings.content:
        raise BundleError(
            f"expected {settings.bundle} with content {settings.content[:12]}, got {bundle.content[:12]}; put the "
            "same bundle on every machine"
        )
    return Deblurrer(
        bundle,
        backend=settings.backend,
        precision=settings.precision,
        threads=settings.threads,
        tile=settings.tile,
        check=settings.check,
        scale=settings.scale,
    )


def read(job: Job, settings: Settings) -> Read:
    """Reads and checks the views.

    Raises:
        PairError: They cannot be restored.
    """
    with failing_alone(job):
        begin = time.perf_counter()
        try:
            facts = {path: FileFacts.from_file(path) for path in job.inputs}
        except OSError as error:
            raise ImageError(cannot_read(error.filename, error)) from error
        views = read_views(
            job.left, job.right, axis=settings.axis, swap=settings.swap, side_by_side=settings.side_by_side
        )
        check_format(job.output, views.left)
        target = None if job.target is None else read_target(job.target, views.left)
        return Read(job, views, facts, target, time.perf_counter() - begin)


def start(deblurrer: Deblurrer, pair: Read) -> PendingResult:
    """Starts on a pair; ``finish`` waits for its result.

    Raises:
        PairError: The backend failed.
    """
    with failing_alone(pair.job):
        views = pair.views
        return deblurrer.start(views.left.pixels, views.right.pixels, axis=views.axis, linear=views.linear)


def finish(pair: Read, pending: PendingResult) -> Restored:
    """Waits for the result of a pair.

    Raises:
        PairError: It cannot be restored.
    """
    with failing_alone(pair.job):
        return Restored(pair, pending.result())


def write(restored: Restored, settings: Settings) -> Done:
    """Encodes and writes the outputs of a pair, each in one step.

    Raises:
        PairError: They cannot be encoded.
        OutputError: They cannot be written, and neither could those of other pairs.
    """
    pair, result = restored.read, restored.result
    job = pair.job
    with failing_alone(job):
        begin = time.perf_counter()
        contents: dict[Path, bytes] = {}
        contents[job.output] = encode_photo(job.output, replace(pair.views.left, pixels=result.restored))
        if job.blur_map is not None:
            contents[job.blur_map] = encode_blur_map(job.blur_map, result.blur_map)
        _write_files(contents)
        left, right = pair.views.left, pair.views.right
        quality = None
        if pair.target is not None:
            quality = against_target(left.pixels, right.pixels, result.restored, pair.target.pixels)
        seconds = {"read": pair.seconds, **result.timings, "write": time.perf_counter() - begin}
        made = {
            "backend": result.backend,
            "precision": result.precision,
            "tiles": result.tiles,
            "scale": result.scale,
            "pixels": pair.views.pixels,
            "seconds": {name: round(value, 6) for name, value in seconds.items()},
            **({} if quality is None else {"quality": quality}),
        }
        folder = _root(job)
        outputs = {path.relative_to(folder).as_posix(): _facts(path, content) for path, content in contents.items()}
        files = [None if path is None else pair.files[path] for path in (job.right, job.target)]
        record = Record(job.name, settings.key(), pair.files[job.left], files[0], outputs, made, files[1])
        return Done(record, (*pair.views.warnings, *pair.views.notes, *result.notes))


@contextmanager
def failing_alone(job: Job) -> Iterator[None]:
    """Turns any error into the pair's ``PairError``, except ``OutputError``, which all pairs share."""
    try:
        yield
    except (OutputError, PairError):
        raise
    except MemoryError as error:
        text = "out of memory; give smaller images, a smaller --tile, or close other programs"
        raise PairError(failure(job, text)) from error
    except LDPError as error:
        whole = isinstance(error, (BackendError, BundleError)) and not ran_out_of_memory(error)
        raise PairError(failure(job, str(error), whole=whole)) from error
    except Exception as error:
        text = f"{type(error).__name__}: {one_line(error)} (a bug; please report it with the log)"
        raise PairError(failure(job, text, traceback=traceback.format_exc())) from error


def failure(job: Job, error: str, *, whole: bool = False, traceback: str | None = None) -> Failure:
    """The failure of a job."""
    right = None if job.right is None else str(job.right)
    return Failure(job.name, str(job.left), right, error, whole, traceback)


def _write_files(contents: dict[Path, bytes]) -> None:
    try:
        for folder in {path.parent for path in contents}:
            folder.mkdir(parents=True, exist_ok=True)
        write_files(contents)
    except (OSError, WriteError) as error:
        cause = error.__cause__ if isinstance(error, WriteError) else error
        if isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG:
            raise ImageError(
                f"{next(iter(contents))} cannot be written: its name is too long; rename the views"
            ) from error
        text = str(error) if isinstance(error, WriteError) else cannot_write(error.filename, error)
        raise OutputError(text) from error


def _root(job: Job) -> Path:
    """The output folder."""
    return job.output.parents[job.name.count("/")]


def _facts(path: Path, content: bytes) -> FileFacts:
    status = os.stat(path)
    return FileFacts(status.st_size, status.st_mtime_ns, hashlib.sha256(content).hexdigest())
