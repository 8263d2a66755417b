"""Runs cases in worker processes, so that one that hangs or kills its process is counted and the others continue."""

import atexit
import logging
import multiprocessing
import os
import resource
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import cv2

from tests.fuzz.cases import Case, Outcome, run_case

LIMIT = 60.0
"""Seconds after which a case counts as a hang; the slowest take well below one on an idle core."""

ADDRESS_SPACE = 6 << 30
"""Bytes of addresses that a worker may have: a case that needs more ends in an error, and spares the machine."""


def quiet() -> None:
    """Silences the libraries' messages about damaged files, as the command line does."""
    cv2.utils.logging.setLogLevel(0)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _work(connection: Connection, scratch: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["LDP_CACHE"] = os.path.join(scratch, "cache")
    tempfile.tempdir = scratch
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries write to the descriptor
    quiet()
    connection.send(None)
    while (case := connection.recv()) is not None:
        connection.send(run_case(case))


class Worker:
    """A process that runs one case at a time; a dead one is replaced."""

    def __init__(self) -> None:
        """Starts the process."""
        self._start()

    def _start(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="ldp-fuzz-worker-")
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._scratch.name), daemon=True)
        self._process.start()
        theirs.close()
        self._connection.recv()  # it is ready

    def run(self, case: Case, limit: float) -> Outcome:
        """Runs a case; it is a hang after ``limit`` seconds."""
        self._connection.send(case)
        try:
            if self._connection.poll(limit):
                outcome: Outcome = self._connection.recv()
                return outcome
            outcome = Outcome("hang", "no end within the limit")
        except EOFError:
            self._process.join()
            outcome = Outcome("crash", f"the process ended with {self._process.exitcode}")
        self.stop()
        self._start()
        return outcome

    def stop(self) -> None:
        """Ends the process and removes its files."""
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._scratch.cleanup()


def run_cases(cases: Iterable[Case], jobs: int = 1, limit: float = LIMIT) -> Iterator[tuple[Case, Outcome]]:
    """Runs cases in ``jobs`` processes.

    Args:
        cases: The cases.
        jobs: Processes at a time.
        limit: Seconds after which a case counts as a hang.

    Yields:
        Each case with its outcome, in order.
    """
    workers = [Worker() for _ in range(jobs)]
    idle = list(workers)

    def run(case: Case) -> tuple[Case, Outcome]:
        worker = idle.pop()
        try:
            return case, worker.run(case, limit)
        finally:
            idle.append(worker)

    threads = ThreadPoolExecutor(jobs)
    try:
        yield from threads.map(run, cases)
    finally:
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.stop()


def save(folder: Path, case: Case, outcome: Outcome) -> Path:
    """Writes a finding: its input, and what happened."""
    place = folder / f"{outcome.end}-{case.kind}-{case.seed}"
    for name, content in outcome.files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    place.mkdir(parents=True, exist_ok=True)
    (place / "finding.txt").write_text(f"{case}\n{outcome.end}\n{outcome.detail}\n", encoding="utf-8", errors="replace")
    return place


def corpus(arguments: list[str], files: list[bytes]) -> list[str]:
    """A folder for a coverage-guided fuzzer to start from, unless its arguments name one.

    Args:
        arguments: Those of the command line.
        files: What to put there.

    Returns:
        What to append to the arguments.
    """
    if any(not argument.startswith("-") for argument in arguments):
        return []
    folder = Path(tempfile.mkdtemp(prefix="ldp-fuzz-corpus-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for i, content in enumerate(files):
        (folder / f"{i:03}").write_bytes(content)
    return [str(folder)]
