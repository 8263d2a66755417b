"""Runs a module of the benchmarks in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from benchmarks.bundles import ROOT


def run_module(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Runs `python -m MODULE ARGUMENTS` with this interpreter; its output is thrown away.

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
