"""The command line ``ldp``; its commands are the modules of ``ldp_runtime.commands``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from ldp_runtime.command import make_parser, run

COMMANDS = (
    "deblur",
    "split",
    "blur-map",
    "check",
    "batch",
    "serve",
    "info",
    "selftest",
    "trust",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments, without the program's name; those of the process if None.

    Returns:
        The exit code.
    """
    # We print one clear line; the libraries' own messages about damaged files would only add to it.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    # OpenVINO's converter of models is not used here, and takes most of the time of its import; it may be missing.
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        return run("ldp", _parser, argv)


def _parser() -> argparse.ArgumentParser:
    return make_parser(
        "ldp",
        "Turns a blurred dual-pixel photo pair into an all-in-focus image.",
        "ldp_runtime.commands",
        COMMANDS,
    )
