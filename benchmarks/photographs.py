"""The gain on real pairs with targets: of the bundle as it is, without its blur map, and as ``ldp deblur`` runs it."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import options
from benchmarks.harness.results import BenchmarkError, Report, publish
from benchmarks.harness.tables import markdown_table, signed

if TYPE_CHECKING:
    from torch import Tensor

    from ldp_export.data.base import PairSample
    from ldp_export.evaluation.photographs import RegisteredTarget
    from ldp_export.evaluation.score import Restorer
    from ldp_runtime.bundle.bundle import Bundle

EXAMPLES = """\
examples:
  python -m benchmarks photographs scenes
  python -m benchmarks photographs scenes --origin "github OWNER/REPOSITORY, half size" --other DPDNet=dpdnet.png

PAIRS is a folder or a CSV as for `ldp-export evaluate --data pairs=`, with a target
for each pair; folders of the first level are summed up apart. It restores each pair
three times: as it is, in FP32; with a blur map of zeros, in torch; and with --check
auto and --scale auto, as `ldp deblur` does. --other scores the pictures of this
name beside the left views too. Writes photographs-NAME.json and photographs-NAME.md
into the output folder; pictures are not kept.
"""

AS_IS, BLANK, CHECKED, PERFECT = "as it is", "blank blur map", "checked and scaled", "perfectly"
PLAIN = "psnr"
KINDS = (PLAIN, "matched_psnr", "aligned_psnr", "registered_psnr")
HEADINGS = ("plain", "matched", "aligned", "registered")


@dataclass(frozen=True)
class Row:
    """A pair and a way to restore it.

    Attributes:
        name: The pair's name.
        group: Its first folder; empty without folders.
        way: ``AS_IS``, ``BLANK``, ``CHECKED``, ``PERFECT`` or the name of other results.
        center: PSNR of the center view in dB by ``KINDS``; the registered one depends on the way.
        gain: What is won over them; a perfect picture has no registered gain.
        scale: That the pair was restored at.
    """

    name: str
    group: str
    way: str
    center: Mapping[str, float]
    gain: Mapping[str, float]
    scale: float = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``benchmarks.__main__``."""
    parser.add_argument("pairs", type=Path, metavar="PAIRS", help="folder or CSV of pairs with targets")
    parser.add_argument("--origin", default="", metavar="TEXT", help="where the pictures come from, for the report")
    parser.add_argument("--other", metavar="NAME=FILE", help="also score the results FILE beside the left views")
    options.add_bundle(parser)
    options.add_checkpoint(parser)
    options.add_threads(parser)
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """See ``benchmarks.__main__``."""
    from benchmarks.harness.bundles import open_bundle

    bundle = open_bundle(arguments.bundle, arguments.config)
    other, _, file = (arguments.other or "").partition("=")
    if bool(other) != bool(file):
        raise BenchmarkError(f"expected --other NAME=FILE, got {arguments.other!r}; for example DPDNet=dpdnet.png")
    rows = measure(arguments.pairs, restorers(bundle, arguments.checkpoint, arguments.threads), other, file)
    data = {"origin": arguments.origin, "rows": [asdict(row) for row in rows]}
    report = Report.new("photographs", data, bundle)
    publish(report, to_markdown(report), arguments.output)


def restorers(bundle: Bundle, checkpoint: Path | None = None, threads: int | None = None) -> dict[str, Restorer]:
    """The ways to restore a pair, by name."""
    from benchmarks.harness.bundles import reference_model
    from ldp_export.evaluation.estimators import BlurEstimator, StageClock
    from ldp_export.evaluation.reference import TorchDeblurrer
    from ldp_runtime.deblurrer import Deblurrer

    class Blank(BlurEstimator):
        """Says nothing of the blur: logits of zero."""

        def __init__(self, patch: int) -> None:
            self.patch = patch

        def estimate(self, pair: Tensor, size: tuple[int, int], clock: StageClock) -> Tensor:
            return pair.new_zeros(pair.shape[1] // self.patch, pair.shape[2] // self.patch)

    blank = TorchDeblurrer(reference_model(bundle, checkpoint))
    blank.estimator = Blank(bundle.manifest.require_clip().patch)
    return {
        AS_IS: Deblurrer(bundle, precision="fp32", threads=threads),
        BLANK: blank,
        CHECKED: Deblurrer(bundle, precision="fp32", threads=threads, check="auto"),
    }


def measure(source: Path, ways: Mapping[str, Restorer], other: str = "", file: str = "") -> list[Row]:
    """Scores each way on each pair.

    Args:
        source: Folder or CSV of the pairs.
        ways: What restores them, by name.
        other: Name of other results; empty is none.
        file: Name of their pictures beside the left views; pairs without one are left out.

    Raises:
        LDPError: A pair cannot be read or restored, or has no target.
    """
    from ldp_export.data import open_dataset
    from ldp_export.data.layout import read_pixels
    from ldp_export.data.pairs import NAME, SPLIT, OwnPairs

    dataset = open_dataset(NAME, source, SPLIT)
    assert isinstance(dataset, OwnPairs)
    groups = {name: group for group, names in dataset.subsets().items() for name in names}
    rows = []
    for index, pair in enumerate(dataset.pairs):
        sample = dataset[index]
        if sample.target is None:
            raise BenchmarkError(f"expected a target for {sample.name}, got none; put target.png beside the views")
        scorer, first = _Scorer(sample, sample.target, groups.get(sample.name, "")), None
        for way, restorer in ways.items():
            result = restorer(sample.left, sample.right)
            registered = scorer.register(result.restored)
            first = registered if first is None else first
            rows.append(scorer.row(way, result.restored, registered, result.scale))
        picture = pair.left.with_name(file) if other else None
        if picture is not None and picture.is_file():
            theirs = read_pixels(picture)
            rows.append(scorer.row(other, theirs, scorer.register(theirs)))
        if first is not None:
            rows.append(scorer.perfect(first))
    return rows


class _Scorer:
    """Makes rows of what was restored of a pair with a target."""

    def __init__(self, sample: PairSample, target: np.ndarray, group: str) -> None:
        from ldp_export.evaluation.photographs import unit_range
        from ldp_export.evaluation.score import grey_where_target_is
        from ldp_runtime.images.quality import center_view

        self._name, self._group, self._target, self._peak = sample.name, group, target, float(sample.peak)
        center = center_view(sample.left, sample.right)
        self._center_scores = self._scores(center)
        self._center = unit_range(grey_where_target_is(center, target)[0], self._peak)

    def register(self, image: np.ndarray) -> RegisteredTarget:
        """The target in the geometry of an image ``(h, w, 3)`` in the range of the views."""
        from ldp_export.evaluation.score import registered_with

        return registered_with(image, self._target, self._peak)

    def row(self, way: str, image: np.ndarray, registered: RegisteredTarget, scale: float = 1.0) -> Row:
        """The row of an image ``(h, w, 3)`` in the range of the views, restored at a scale."""
        before = self._center_scores | {"registered_psnr": registered.psnr(self._center)}
        return self._row(way, before, self._scores(image, registered), scale)

    def perfect(self, registered: RegisteredTarget) -> Row:
        """The row of the target itself in the geometry of a restored image, of which no more can be had."""
        target = registered.target * self._peak  # (h, w, 3), or (h, w, 1) where it is grey
        return self._row(PERFECT, self._center_scores, self._scores(np.broadcast_to(target, self._target.shape)), 1.0)

    def _scores(self, image: np.ndarray, registered: RegisteredTarget | None = None) -> dict[str, float]:
        from ldp_export.evaluation.score import image_scores

        return image_scores(image, self._target, self._peak, photographs=True, registered=registered)

    def _row(self, way: str, before: Mapping[str, float], after: Mapping[str, float], scale: float) -> Row:
        kinds = [kind for kind in KINDS if kind in after]
        center = {kind: round(before[kind], 4) for kind in kinds}
        gain = {kind: round(after[kind] - before[kind], 4) for kind in kinds}
        return Row(self._name, self._group, way, center, gain, scale)


def means_table(report: Report) -> str:
    """The mean gains of each group and way."""
    grouped: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in _rows(report):
        grouped[row.group, row.way].append(row)
    lines: list[Sequence[object]] = []
    for (group, way), rows in grouped.items():
        means = _gains({kind: fmean(row.gain[kind] for row in rows) for kind in rows[0].gain})
        who = f"{report.name}, {way}" if way in (AS_IS, BLANK, CHECKED) else way
        worst = signed(min(row.gain[PLAIN] for row in rows), 2)
        lines.append([f"{group or 'all'}, {len(rows)}", who, *means, worst])
    return markdown_table(["scenes", "restored by", *HEADINGS, "worst, plain"], lines, "llrrrrr")


def to_markdown(report: Report) -> str:
    """The tables of a report."""
    lines = []
    for row in _rows(report):
        gains = _gains(row.gain)
        scale = f"1/{round(1 / row.scale)}" if row.scale < 1 else "1"
        lines.append([row.name, row.way, f"{row.center[PLAIN]:.2f}", *gains, scale])
    header = ["scene", "restored by", "center view", *HEADINGS, "scale"]
    origin = f"Pictures: {report.data['origin']}.\n\n" if report.data["origin"] else ""
    return (
        f"# {report.name} on photographs\n\n{origin}Gain in PSNR over the center view, dB; `ldp-export evaluate "
        f"--help` says what matched, aligned and registered mean. *Perfectly* is the target itself where the photo has "
        f"it: what a restoration can gain at most.\n\n{means_table(report)}\n\n## Each scene\n\n"
        f"{markdown_table(header, lines, 'llrrrrrr')}\n"
    )


def _gains(gain: Mapping[str, float]) -> list[str]:
    return [signed(gain[kind], 2) if kind in gain else "" for kind in KINDS]


def _rows(report: Report) -> list[Row]:
    return [Row(**row) for row in report.data["rows"]]
