"""Options that benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import REPORTS
from benchmarks.harness.results import BenchmarkError
from benchmarks.harness.tables import size_text
from ldp_export.commands.onnx import CONFIG_NAMES
from ldp_runtime.commands.options import parse_size

DEFAULT_SHAPE = (1120, 1680)
"""Height and width in px of the paper's test pairs (Section 4.1)."""


def add_bundle(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Declares ``--bundle`` and ``--config``, for ``bundles.open_bundle``; with ``several`` configs are a list."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--bundle", metavar="NAME|DIR", help="the bundle (default: ldp-nano)")
    text = f"random weights of {'these networks' if several else 'this network'} instead of a bundle"
    what.add_argument("--config", nargs="+" if several else None, choices=CONFIG_NAMES, help=text)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Declares ``--checkpoint``, for ``bundles.reference_model``."""
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="the bundle's checkpoint, for torch")


def add_shape(parser: argparse.ArgumentParser, default: tuple[int, int] = DEFAULT_SHAPE) -> None:
    """Declares ``--shape``, one size."""
    text = f"size of the image in px (default: {size_text(default)})"
    parser.add_argument("--shape", type=parse_size, default=default, metavar="HxW", help=text)


def add_shapes(parser: argparse.ArgumentParser, default: Sequence[tuple[int, int]]) -> None:
    """Declares ``--shape``, several sizes."""
    text = f"sizes of the image in px (default: {' '.join(map(size_text, default))})"
    parser.add_argument("--shape", nargs="+", type=parse_size, default=list(default), metavar="HxW", help=text)


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Declares ``--backend``, for ``split_backend``."""
    parser.add_argument("--backend", default="auto", metavar="NAME[:PRECISION]", help="what runs (default: auto)")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Declares ``--threads``."""
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: each backend's own choice)")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Declares ``--output``."""
    parser.add_argument("-o", "--output", type=Path, default=REPORTS, metavar="DIR", help="where the results go")


def split_backend(text: str) -> tuple[str, str]:
    """Backend and precision of ``NAME[:PRECISION]``; the precision is "auto" by default."""
    name, _, precision = text.partition(":")
    return name, precision or "auto"


def check_positive(arguments: argparse.Namespace, *names: str) -> None:
    """Refuses options that are zero or negative; None is fine.

    Raises:
        BenchmarkError: One is; the message names it.
    """
    for name in names:
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise BenchmarkError(f"expected --{name.replace('_', '-')} above 0, got {value:g}")
