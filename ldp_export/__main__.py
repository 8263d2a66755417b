"""Lets ``python -m ldp_export`` run the command line."""

from __future__ import annotations

import sys

from ldp_export.cli import main

if __name__ == "__main__":
    sys.exit(main())
