"""Runs a module of the benchmarks in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.bundles import ROOT


def run_module(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Runs ``python -m MODULE ARGUMENTS`` with this interpreter; its output is thrown away.

    Args:
        module: Name of the module.
        arguments: What it is given.
        environment: Variables beside this process's own.

    Returns:
        Its exit code, and the last line that it wrote to standard error, or "no message".
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, **(environment or {}), "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    lines = done.stderr.strip().splitlines()
    return done.returncode, lines[-1] if lines else "no message"


def run_spec(
    module: str, spec: Mapping[str, Any], folder: Path, environment: Mapping[str, str] | None = None
) -> tuple[Any, str]:
    """Runs a module that reads a JSON file and writes another, the two being its arguments.

    Args:
        module: Name of the module.
        spec: What it reads.
        folder: Where both files go.
        environment: As for ``run_module``.

    Returns:
        What it wrote, or None and how it ended, as in "ended with 1: no message".
    """
    files = folder / "spec.json", folder / "result.json"
    files[0].write_text(json.dumps(spec))
    files[1].unlink(missing_ok=True)
    code, message = run_module(module, *map(str, files), environment=environment)
    if code != 0 or not files[1].is_file():
        return None, f"ended with {code}: {message}"
    return json.loads(files[1].read_text()), ""
