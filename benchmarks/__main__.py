"""``python -m benchmarks NAME``: runs a benchmark, from a clone of the repository."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, cast

from benchmarks.harness.results import BenchmarkError
from ldp_runtime import command

BENCHMARKS = {
    "latency": ("benchmarks.latency.bench", "times every backend and precision, and torch with the same weights"),
    "parity": ("benchmarks.parity", "compares every backend with torch in FP32; fails where PSNR changes"),
    "roofline": ("benchmarks.roofline.bench", "predicts the least time of the chain from its graphs and peak rates"),
    "figure1": ("benchmarks.figure1.bench", "times every network on the same pair, and draws PSNR against time"),
    "scaling": ("benchmarks.scaling", "fits time and memory over the image size, and measures the seams of tiles"),
    "windows": ("benchmarks.windows.bench", "measures what CLIP's windows cost and what they do to the blur map"),
    "stages": ("benchmarks.stages", "times the stages on the host beside a copy of the bytes that they move"),
    "photographs": ("benchmarks.photographs", "scores a bundle on real pairs with targets"),
    "check": ("benchmarks.check", "times the check of a pair beside its restoration"),
    "batch": ("benchmarks.batch", "measures the throughput of ldp batch and the gain of overlapping"),
    "service": ("benchmarks.service", "loads ldp serve: sustained, overload, slow clients, malformed forms"),
    "engines": ("benchmarks.engines.bench", "builds TensorRT engines; measures time, size, memory and fusion"),
    "capacity": ("benchmarks.capacity.bench", "plans a million pairs per day: cores, GPUs, files, the bottleneck"),
    "reliability": ("benchmarks.reliability", "kills commands, fills the disk, interrupts; counts what goes wrong"),
    "exports": ("benchmarks.exports", "exports the graphs of the other benchmarks, several at a time"),
    "screenshot": ("benchmarks.screenshot", "draws docs/page.png, the page of ldp serve in Chromium"),
    "report": ("benchmarks.report.page", "makes one HTML page of the results, and the tables of the docs"),
}
"""Name of a benchmark -> its module, which has ``EXAMPLES``, ``add_arguments`` and ``run``; what it does."""

EXAMPLES = """\
examples:
  python -m benchmarks latency --bundle ldp-nano --shape 560x840
  python -m benchmarks parity
  python -m benchmarks roofline --config small
  python -m benchmarks report

`python -m benchmarks NAME --help` lists the options of one. Run it in a clone of
the repository with its packages: pip install -e '.[export,bench]'. Results go to
benchmarks/reports.
"""


class _Benchmark(Protocol):
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> None: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a benchmark.

    Args:
        argv: Its name and options; those of the process if None.

    Returns:
        The exit code, as of ``ldp_runtime.command.run``.
    """
    argv = sys.argv[1:] if argv is None else argv
    return command.run("benchmarks", lambda: _parser(argv[0] if argv else ""), argv)


def _parser(chosen: str) -> argparse.ArgumentParser:
    """The parser of all benchmarks, with the options of one: only that one is imported."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measures LDP.", epilog=EXAMPLES, formatter_class=form
    )
    added = parser.add_subparsers(required=True, metavar="NAME")
    for name, (module, purpose) in BENCHMARKS.items():
        subparser = added.add_parser(name, help=purpose, description=f"It {purpose}.", formatter_class=form)
        if name == chosen:
            with _missing_packages(name):
                benchmark = cast(_Benchmark, importlib.import_module(module))
                subparser.epilog = benchmark.EXAMPLES
                benchmark.add_arguments(subparser)
            subparser.set_defaults(command=_guarded(name, benchmark.run))
    return parser


def _guarded(name: str, run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    def guarded(arguments: argparse.Namespace) -> None:
        with _missing_packages(name):
            run(arguments)

    return guarded


@contextmanager
def _missing_packages(name: str) -> Iterator[None]:
    """Turns the lack of a package of others into an error of one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("ldp_runtime", "ldp_export", "benchmarks", "tests"):
            raise
        raise BenchmarkError(
            f"expected the package {missing} for {name}, got none; in the repository run "
            "pip install -e '.[export,bench]'"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
