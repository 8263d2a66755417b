"""Runs a module of the benchmarks in a process of its own, so that start-up and peak memory are its own too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import ROOT
from benchmarks.harness.results import BenchmarkError, write_text
from ldp_runtime.errors import LDPError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def run_module(
    module: str, *arguments: str, environment: Mapping[str, str] | None = None, most_seconds: float | None = None
) -> tuple[int, str]:
    """Runs ``python -m MODULE ARGUMENTS`` with this interpreter; its standard output is dropped.

    Args:
        module: Name of the module.
        arguments: Its arguments.
        environment: Variables on top of this process's own.
        most_seconds: It is killed if it takes longer; None lets it run.

    Returns:
        Its exit code, and its last line on standard error, or "no message".

    Raises:
        BenchmarkError: It was killed.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **(environment or {}), "PYTHONPATH": python_path()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
            timeout=most_seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"the process took more than {most_seconds:g} s and was killed") from error
    lines = done.stderr.strip().splitlines()
    return done.returncode, lines[-1] if lines else "no message"


def python_path() -> str:
    """``PYTHONPATH`` for a child process: the repository first."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def run_spec(
    module: str,
    spec: DataclassInstance,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    most_seconds: float | None = None,
) -> Any:
    """Runs a module whose ``main`` is ``answer_spec``.

    Args:
        module: Name of the module.
        spec: Its spec.
        folder: Where the files of the exchange go.
        environment: See ``run_module``.
        most_seconds: See ``run_module``.

    Returns:
        Its result, as JSON values.

    Raises:
        BenchmarkError: It raised an ``LDPError``, whose text this has, was killed, or ended otherwise.
    """
    files = folder / "spec.json", folder / "answer.json"
    files[0].write_text(json.dumps(asdict(spec)))
    files[1].unlink(missing_ok=True)
    code, message = run_module(module, *map(str, files), environment=environment, most_seconds=most_seconds)
    if code != 0 or not files[1].is_file():
        raise BenchmarkError(f"the process ended with {code}: {message}")
    answer = json.loads(files[1].read_text(encoding="utf-8"))
    if "error" in answer:
        raise BenchmarkError(answer["error"])
    return answer["result"]


def answer_spec(measure: Callable[[dict[str, Any]], Any]) -> None:
    """Measures what ``run_spec`` asks of this process.

    Args:
        measure: From the fields of the spec to JSON values.
    """
    source, target = map(Path, sys.argv[1:3])
    try:
        answer = {"result": measure(json.loads(source.read_text(encoding="utf-8")))}
    except LDPError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "out of memory"}
    write_text(target, json.dumps(answer))
