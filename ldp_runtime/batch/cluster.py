"""Runs jobs on a Ray cluster: actors hold the model; paths go out to them, outcomes come back.

Views and restored images do not pass through Ray. Each worker reads and writes the files itself, so all machines need
the same folders, the same bundle and LDP installed. A worker that dies is started again with its pairs; since a file is
put in place in one step and the driver keeps the journal, a pair in flight is done once.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ldp_runtime.batch.jobs import Job, Settings
from ldp_runtime.batch.journal import OutputError, tries_file
from ldp_runtime.batch.work import (
    Done,
    Failure,
    Outcome,
    PairError,
    failure,
    finish,
    make_deblurrer,
    read,
    start,
    write,
)
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.errors import LDPError, one_line
from ldp_runtime.files import cannot_write

LOCAL = "local"

CPU_BACKENDS = ("openvino", "onnxruntime")
TRIES = 3
"""A pair over which so many workers died has failed; Ray itself would retry it forever."""

_CALLS = 3
"""Pairs that a worker has at a time: one is read, one restored, one written."""
_OBJECT_STORE = 80 * 2**20
"""Bytes of shared memory of a local cluster, little more than Ray's minimum: only paths pass through it."""
_LONGEST_TEMPORARY = 40
"""Below a longer folder the paths of Ray's sockets would exceed the system's limit."""


class ClusterError(LDPError):
    """Ray is not installed, the cluster cannot be reached, or a worker cannot work."""


@dataclass(frozen=True)
class Share:
    """The resources of the workers.

    Attributes:
        workers: How many there are.
        cpus: CPUs of each.
        gpus: GPUs of each, 0 or 1.
        threads: CPU threads of its backend; None for the backend's own choice.
    """

    workers: int
    cpus: int
    gpus: int
    threads: int | None


def share_out(nodes: Sequence[dict[str, float]], settings: Settings, *, workers: int | None = None) -> Share:
    """Divides a cluster: one worker per GPU where the backend uses one, else one per machine, or as many as asked.

    Args:
        nodes: The resources of each machine, ``CPU`` and ``GPU``.
        settings: The settings of the run.
        workers: How many workers; None for one per GPU or machine.

    Raises:
        ClusterError: There are no resources, or too few for so many workers.
    """
    nodes = [node for node in nodes if node.get("CPU", 0) >= 1]
    if not nodes:
        raise ClusterError("expected a cluster with CPUs, got none; start a Ray node on each machine")
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1 and settings.backend not in CPU_BACKENDS]
    nodes = with_gpu or nodes
    gpus = int(sum(node["GPU"] for node in with_gpu))
    count = workers or gpus or len(nodes)
    if gpus and count > gpus:
        raise ClusterError(f"expected at most {gpus} workers, one per GPU, got {count}; ask for fewer with --workers")
    alone = count <= len(nodes)
    cpus = int(min(node["CPU"] for node in nodes)) // (1 if alone else -(-count // len(nodes)))
    if cpus < 1:
        total = int(sum(node["CPU"] for node in nodes))
        raise ClusterError(f"expected at most {total} workers, one per CPU, got {count}; ask for fewer with --workers")
    threads = settings.threads or (None if alone or gpus else cpus)
    return Share(count, cpus, 1 if gpus else 0, threads)


class Stopped(Struct, tag=True):
    """A worker that cannot continue, and why."""

    error: str


class Worker:
    """An actor that holds the model. Ray calls it from several threads; one at a time restores."""

    def __init__(self, settings: Settings) -> None:
        """Opens the bundle; an error is reported with the first pair, since Ray would create the actor again."""
        self._settings = settings
        self._compute = threading.Lock()
        self._turns, self._free = threading.Lock(), threading.Semaphore(_CALLS)
        self._fault: str | None = None
        try:
            self._deblurrer = make_deblurrer(Bundle.load(self._settings.bundle), self._settings)
        except LDPError as error:
            self._fault = str(error)

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """Restores a pair: a job as JSON in, its outcome as JSON out."""
        return {"outcome": json.dumps(msgspec.to_builtins(self._outcome(_job(row["job"]))))}

    def _outcome(self, job: Job) -> Outcome | Stopped:
        if self._fault is not None:
            return Stopped(self._fault)
        mark = tries_file(job)
        try:
            with self._turn(alone=_tries(mark) > 0):
                if _tries(mark) >= TRIES:
                    text = f"{TRIES} workers died over it; check that the pair fits into a worker's memory"
                    return failure(job, text)
                _try_again(mark)
                try:
                    return self._restored(job)
                finally:
                    mark.unlink(missing_ok=True)
        except PairError as error:
            return error.failure
        except OutputError as error:
            return Stopped(str(error))

    def _restored(self, job: Job) -> Done:
        pair = read(job, self._settings)
        with self._compute:
            restored = finish(pair, start(self._deblurrer, pair))
        return write(restored, self._settings)

    @contextmanager
    def _turn(self, *, alone: bool) -> Iterator[None]:
        """Waits for room; a pair over which a worker died gets the next one alone, so that no other dies with it."""
        wanted = _CALLS if alone else 1
        with self._turns:
            for _ in range(wanted):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(wanted)


def run_ray(jobs: Sequence[Job], settings: Settings, address: str, *, workers: int | None = None) -> Iterator[Outcome]:
    """Restores pairs on a cluster.

    Args:
        jobs: The pairs.
        settings: The settings that all share.
        address: That of the cluster's head, as ``host:port`` or ``auto``; ``LOCAL`` starts one on this machine.
        workers: As for ``share_out``.

    Yields:
        The outcome of each pair, in the order in which they end.

    Raises:
        ClusterError: The cluster cannot be reached or fails; or a worker has another bundle, or cannot write.
    """
    # Ray prints about its workers on stdout, which is for our report alone.
    with redirect_stdout(sys.stderr), _connected(address) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        share = share_out(nodes, settings, workers=workers)
        settings = replace(settings, threads=share.threads)
        items = [{"job": json.dumps(vars(job), default=str)} for job in jobs]
        workforce = ray.data.ActorPoolStrategy(
            size=min(share.workers, len(items)),
            max_concurrent_calls_per_actor=_CALLS,
            enable_true_multi_threading=True,
        )
        # A block is a pair. Ray Data restarts an actor that died, with the blocks that it had.
        outcomes = ray.data.from_items(items, override_num_blocks=len(items)).map(
            Worker,
            fn_constructor_args=(settings,),
            compute=workforce,
            num_cpus=share.cpus,
            num_gpus=share.gpus or None,
        )
        try:
            for row in outcomes.iter_rows():
                outcome = msgspec.convert(json.loads(row["outcome"]), Done | Failure | Stopped)
                if isinstance(outcome, Stopped):
                    raise ClusterError(f"a worker cannot continue: {outcome.error}")
                yield outcome
        except ray.exceptions.RayError as error:
            raise ClusterError(f"the cluster failed ({one_line(error)}); check its machines") from error


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster; a local one ends with the context."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when Ray is imported: no usage statistics
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ModuleNotFoundError as error:
        raise ClusterError(f"expected Ray, got {one_line(error)}; install it with pip install 'ldp[ray]'") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    options: dict[str, Any] = {"logging_level": "error", "log_to_driver": False, "include_dashboard": None}
    folder: str | None = None
    try:
        if address == LOCAL:
            # On the user's own machine workers run as ldp itself would: Ray would kill them when other programs fill
            # the memory, and run them at low priority.
            os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
            os.environ.setdefault("RAY_worker_niceness", "0")
            base = tempfile.gettempdir()
            folder = tempfile.mkdtemp(prefix="ldp-ray-", dir=base if len(base) <= _LONGEST_TEMPORARY else "/tmp")
            options |= {
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE,
                "_temp_dir": folder,
            }
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about Ray's future defaults
                ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ClusterError(
                f"expected a Ray cluster at {address}, got {one_line(error)}; give the host:port of its head, auto on "
                f"one of its machines, or {LOCAL}"
            ) from error
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield ray
    finally:
        with suppress(Exception):
            ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _tries(mark: Path) -> int:
    """How many workers began a pair and did not end it: a byte each."""
    try:
        return mark.stat().st_size
    except OSError:
        return 0


def _try_again(mark: Path) -> None:
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        with mark.open("ab") as file:
            file.write(b".")
    except OSError as error:
        raise OutputError(cannot_write(mark.parent, error)) from error


def _job(text: str) -> Job:
    fields = json.loads(text)
    return Job(name=fields.pop("name"), **{key: value and Path(value) for key, value in fields.items()})
