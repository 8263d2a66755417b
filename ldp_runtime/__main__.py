"""Runs the command line: ``python -m ldp_runtime``."""

from __future__ import annotations

import sys

from ldp_runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
