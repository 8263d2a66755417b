"""The command line ``ldp-export``; its commands are the modules of ``ldp_export.commands``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ldp_runtime.command import make_parser, run

COMMANDS = (
    "onnx",
    "import",
    "selftest",
    "quantize",
    "engine",
    "triton",
    "evaluate",
    "data",
    "train",
    "calibrate",
    "measure-psf",
    "simulate",
    "sample",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments, without the program's name; those of the process if None.

    Returns:
        The exit code.
    """
    return run("ldp-export", _parser, argv)


def _parser() -> argparse.ArgumentParser:
    return make_parser(
        "ldp-export",
        "Builds, checks and calibrates what `ldp` runs; simulates dual-pixel pairs.",
        "ldp_export.commands",
        COMMANDS,
    )
