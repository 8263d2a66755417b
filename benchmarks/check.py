"""The check of a pair beside its restoration: what it costs, and how many px it is measured on.

Both run in this process, in turn, so that they share the state of the machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import cv2

from benchmarks.harness import SAMPLE, options
from benchmarks.harness.machine import watch_load
from benchmarks.harness.results import Report, publish
from benchmarks.harness.tables import load_text, markdown_table, significant, size_text
from ldp_runtime.commands.options import parse_size
from ldp_runtime.images.photo import read_photo
from ldp_runtime.paircheck.check import check_pair

if TYPE_CHECKING:
    from ldp_runtime.deblurrer import Deblurrer

EXAMPLES = """\
examples:
  python -m benchmarks check
  python -m benchmarks check --bundle ldp-nano --shape 500x741 1120x1680 3000x4000 --rounds 5

The sample pair is enlarged to each shape. Writes check-NAME.json and check-NAME.md into the output folder.
"""

SHAPES = ((500, 741), (1120, 1680), (3000, 4000))


@dataclass(frozen=True)
class Row:
    """Times of one shape.

    Attributes:
        shape: Height and width in px.
        check: Seconds of a check, the median.
        restoration: Seconds of a restoration without one, the median.
    """

    shape: tuple[int, int]
    check: float
    restoration: float

    @property
    def share(self) -> float:
        """The check as a share of the restoration."""
        return self.check / self.restoration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``benchmarks.__main__``."""
    options.add_bundle(parser)
    options.add_backend(parser)
    options.add_threads(parser)
    parser.add_argument("--shape", type=parse_size, nargs="+", default=SHAPES, metavar="HxW")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each (default: %(default)s)")
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """See ``benchmarks.__main__``."""
    from benchmarks.harness.bundles import open_bundle
    from ldp_runtime.deblurrer import Deblurrer

    options.check_positive(arguments, "rounds")
    bundle = open_bundle(arguments.bundle, arguments.config)
    name, precision = options.split_backend(arguments.backend)
    deblurrer = Deblurrer(bundle, backend=name, precision=precision, threads=arguments.threads)
    with watch_load() as load:
        rows = measure(deblurrer, arguments.shape, arguments.rounds)
    data = {
        "backend": deblurrer.backend,
        "precision": deblurrer.precision,
        "load_average": load,
        "rows": [asdict(row) for row in rows],
    }
    report = Report.new("check", data, bundle)
    publish(report, to_markdown(report), arguments.output)


def measure(deblurrer: Deblurrer, shapes: Sequence[tuple[int, int]], rounds: int) -> list[Row]:
    """Times both for each shape; the first run of each is not counted."""
    views = [read_photo(SAMPLE / f"{name}.png").pixels for name in ("left", "right")]
    rows = []
    for height, width in shapes:
        left, right = (cv2.resize(view, (width, height), interpolation=cv2.INTER_CUBIC) for view in views)
        checks, restorations = [], []
        for _ in range(rounds + 1):
            checks.append(_seconds(check_pair, left, right))
            restorations.append(_seconds(deblurrer, left, right))
        rows.append(Row((height, width), median(checks[1:]), median(restorations[1:])))
    return rows


def _seconds(work: Callable[..., Any], *pair: Any) -> float:
    begin = time.perf_counter()
    work(*pair)
    return time.perf_counter() - begin


def to_markdown(report: Report) -> str:
    """The table of a report."""
    data = report.data
    rows = [Row(tuple(row["shape"]), row["check"], row["restoration"]) for row in data["rows"]]
    table = markdown_table(
        ("pair", "check, ms", "restoration, ms", "share, %"),
        [
            (
                size_text(row.shape),
                significant(1e3 * row.check),
                significant(1e3 * row.restoration),
                significant(100 * row.share, 2),
            )
            for row in rows
        ],
    )
    ran = f"{data['backend']} {data['precision']}, load {load_text(data['load_average'])}"
    return f"# The check of a pair\n\n{ran}\n\n{table}\n"
