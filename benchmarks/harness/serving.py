"""``ldp serve`` as a process of its own, on a free port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from benchmarks.harness.processes import python_path
from benchmarks.harness.results import BenchmarkError


@dataclass(frozen=True)
class Serving:
    """A running ``ldp serve``.

    Attributes:
        process: Its process.
        url: Its address, without the slash at the end.
        printed: The lines that it printed until it was ready.
        errors: The file with its stderr.
    """

    process: subprocess.Popen[str]
    url: str
    printed: tuple[str, ...]
    errors: IO[str]

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def stop(self, sig: int = signal.SIGTERM) -> tuple[int, str]:
        """Sends a signal and waits; returns the exit code and its stderr."""
        self.process.send_signal(sig)
        code = self.process.wait(timeout=120)
        self.errors.seek(0)
        return code, self.errors.read()


@contextmanager
def serving(*arguments: object) -> Iterator[Serving]:
    """Runs ``ldp serve --port 0`` with these arguments until the block ends.

    Raises:
        BenchmarkError: It ended before it was ready; the message has its last line.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "ldp_runtime", "serve", "--port", "0", "--quiet", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": python_path()},
        )
        try:
            printed = _read_until_ready(process)
            if not printed or not printed[-1].startswith("serving"):
                errors.seek(0)
                lines = errors.read().strip().splitlines()
                raise BenchmarkError(f"expected a service, got {lines[-1] if lines else 'no message'}")
            yield Serving(process, printed[-1].split()[1].partition("#")[0].rstrip("/"), tuple(printed), errors)
        finally:
            process.kill()
            process.communicate()


def _read_until_ready(process: subprocess.Popen[str]) -> list[str]:
    printed: list[str] = []
    for line in process.stdout or ():
        printed.append(line.rstrip("\n"))
        if line.startswith("serving"):
            break
    return printed
