"""The command line ``ldp``; its commands are the modules of ``ldp_runtime.commands``."""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Sequence

from ldp_runtime.command import make_parser, run

COMMANDS = (
    "deblur",
    "blur-map",
    "batch",
    "serve",
    "info",
    "selftest",
    "trust",
    "bench",
)

_EXIT_CODES = """\
exit codes:
  0    done
  2    something to fix: a file, an option, the disk or the installation; one line on stderr says what
  1    a check that was asked for failed (its line on stderr says which), some pairs of ldp batch failed, or a bug
       in ldp; please report it
  130  interrupted with Ctrl-C
  141  whoever read the output, such as `head`, left before its end
An output file is whole or not there, whatever the exit code; one that was there before stays until then. ldp batch
keeps what is done.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments, without the program's name; those of the process if None.

    Returns:
        The exit code.
    """
    # One clear line is ours to give; the libraries' own remarks on damaged files would only add to it.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        return run("ldp", _parser, argv)


def _parser() -> argparse.ArgumentParser:
    return make_parser(
        "ldp",
        "Turns a blurred dual-pixel photo pair into an all-in-focus image.",
        "ldp_runtime.commands",
        COMMANDS,
        _EXIT_CODES,
    )
