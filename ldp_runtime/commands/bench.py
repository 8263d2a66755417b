"""``ldp bench NAME``: the benchmarks of the repository's package ``benchmarks``, one module each."""

from __future__ import annotations

import argparse
import importlib
from typing import cast

from ldp_runtime.command import Command
from ldp_runtime.errors import LDPError

HELP = "Measures latency, parity, rooflines and peers; writes the report."

BENCHMARKS = {
    "latency": "benchmarks.latency.bench",
    "parity": "benchmarks.parity",
    "roofline": "benchmarks.roofline.bench",
    "peers": "benchmarks.peers.bench",
    "scaling": "benchmarks.scaling",
    "windows": "benchmarks.windows",
    "batch": "benchmarks.batch",
    "engines": "benchmarks.engine_build",
    "exports": "benchmarks.harness.exports",
    "reliability": "benchmarks.reliability",
    "capacity": "benchmarks.capacity",
    "service": "benchmarks.service",
    "report": "benchmarks.report.page",
}
"""Name of a benchmark -> its module, which is laid out like that of a command."""

EXAMPLES = """\
examples:
  ldp bench latency --bundle ldp-nano --shape 560x840
  ldp bench parity
  ldp bench roofline
  ldp bench report

`ldp bench NAME --help` lists the options of one. The benchmarks are part of the
repository, not of the installed package; they write to benchmarks/reports. What
compares with torch needs the extra export, the report needs the extra bench.
"""


class BenchError(LDPError):
    """A benchmark is not there, or a package that it needs is not."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("name", metavar="NAME", choices=tuple(BENCHMARKS), help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="options of that benchmark")


def run(arguments: argparse.Namespace) -> None:
    """Imports the benchmark, parses its options and runs it.

    Raises:
        BenchError: The repository's package is missing, or one that the benchmark needs.
    """
    name = arguments.name
    try:
        benchmark = _load(name)
        parser = argparse.ArgumentParser(
            prog=f"ldp bench {name}",
            description=benchmark.HELP,
            epilog=benchmark.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        benchmark.add_arguments(parser)
        benchmark.run(parser.parse_args(arguments.arguments))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("ldp_runtime", "ldp_export", "benchmarks"):
            raise
        raise BenchError(
            f"ldp bench {name} needs the package {missing}, which is not installed; in the repository run "
            "pip install -e '.[export,bench]'"
        ) from error


def _load(name: str) -> Command:
    try:
        importlib.import_module("benchmarks.harness.results")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "benchmarks":
            raise
        raise BenchError(
            "expected the package benchmarks of the repository, got none; clone the repository and run "
            "pip install -e '.[export,bench]' in it"
        ) from error
    return cast(Command, importlib.import_module(BENCHMARKS[name]))
