"""Python in a process of its own, with packages out of its reach where a test asks for that."""

import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Block())
"""


def python(
    code: str, *arguments: str, blocked: Collection[str] = (), executable: str = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs code in the repository's root, where importing the ``blocked`` packages fails."""
    return subprocess.run(
        [executable, "-c", (_BLOCK.format(tuple(blocked)) if blocked else "") + code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=300,
    )


def output(code: str, *arguments: str, blocked: Collection[str] = (), **environment: str) -> str:
    """What code that succeeds writes to stdout; arguments as for ``python``."""
    done = python(code, *arguments, blocked=blocked, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
