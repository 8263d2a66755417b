"""Runs cases in worker processes, so that one that hangs or kills its process is counted and the others continue."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import cv2

from tests.fuzz.cases import FINDINGS, Case, Outcome, run_case

LIMIT = 60.0
"""Seconds after which a case counts as a hang; the slowest take well below one on an idle core."""

START_LIMIT = 300.0
"""Seconds that a worker may take to start."""

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
    """A process that runs one case at a time."""

    def __init__(self) -> None:
        """Starts it."""
        self._scratch = tempfile.TemporaryDirectory(prefix="ldp-fuzz-worker-")
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._scratch.name), daemon=True)
        self._process.start()
        theirs.close()
        self._case: Case | None = None
        self._end = time.monotonic() + START_LIMIT
        self._limit = 0.0

    def start(self, case: Case, limit: float) -> None:
        """Hands it a case, which counts as a hang after ``limit`` seconds from when the process is ready."""
        self._case, self._limit = case, limit
        self._end = max(self._end, time.monotonic() + limit)
        self.connection.send(case)

    @property
    def seconds_left(self) -> float:
        """Seconds until the case counts as a hang."""
        return max(0.0, self._end - time.monotonic())

    def outcome(self, heard: bool) -> tuple[Case, Outcome] | None:
        """The outcome of the case, if it has ended or run out of time; the process may be dead afterwards.

        Args:
            heard: There is something to receive.
        """
        case = self._case
        assert case is not None
        if heard:
            try:
                outcome: Outcome | None = self.connection.recv()
            except EOFError:
                self._process.join()
                return case, Outcome("crash", f"the process ended with {self._process.exitcode}")
            if outcome is not None:
                return case, outcome
            self._end = time.monotonic() + self._limit  # the process is ready
        elif self.seconds_left == 0.0:
            return case, Outcome("hang", "no end within the limit")
        return None

    def stop(self) -> None:
        """Ends the process and removes its files."""
        self._process.kill()
        self._process.join()
        self.connection.close()
        self._scratch.cleanup()


def run_cases(cases: Iterator[Case], jobs: int = 1, limit: float = LIMIT) -> Iterator[tuple[Case, Outcome]]:
    """Runs cases in ``jobs`` processes.

    Args:
        cases: What to run.
        jobs: Processes at a time.
        limit: Seconds after which a case counts as a hang.

    Yields:
        Each case with its outcome, as they end.
    """
    idle: list[Worker] = []
    busy: dict[Any, Worker] = {}
    try:
        for case in cases:
            worker = idle.pop() if idle else Worker()
            worker.start(case, limit)
            busy[worker.connection] = worker
            while len(busy) >= jobs:
                yield from _ended(busy, idle)
        while busy:
            yield from _ended(busy, idle)
    finally:
        for worker in [*idle, *busy.values()]:
            worker.stop()


def _ended(busy: dict[Any, Worker], idle: list[Worker]) -> Iterator[tuple[Case, Outcome]]:
    """Waits until something happens, and gives the cases that have ended or run out of time."""
    heard = wait(list(busy), timeout=min(worker.seconds_left for worker in busy.values()))
    for connection, worker in list(busy.items()):
        if (ended := worker.outcome(connection in heard)) is None:
            continue
        del busy[connection]
        if ended[1].end in ("crash", "hang"):
            worker.stop()
        else:
            idle.append(worker)
        yield ended


def save(folder: Path, case: Case, outcome: Outcome) -> Path:
    """Writes a finding: its input, and what happened."""
    place = folder / f"{outcome.end}-{case.kind}-{case.seed}"
    for name, content in outcome.files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    place.mkdir(parents=True, exist_ok=True)
    (place / "finding.txt").write_text(f"{case}\n{outcome.end}\n{outcome.detail}\n", encoding="utf-8", errors="replace")
    return place


def is_finding(outcome: Outcome) -> bool:
    """Whether that is a bug."""
    return outcome.end in FINDINGS


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
