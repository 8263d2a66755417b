"""Parity: does every backend, in every precision, restore what torch restores in FP32?

Pairs have 16 bits (8-bit values times 257, the same share of full scale), so that only rounding to 16 bits can hide a
difference. Errors are shares of full scale. The gate is on the score that a user sees: the change of each set's mean
PSNR to the target.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import SAMPLE, options
from benchmarks.harness.results import BenchmarkError, Report, publish
from benchmarks.harness.tables import markdown_table, signed, significant
from benchmarks.latency.contenders import REFERENCE, TORCH, Contender, add_contenders, find_contenders
from ldp_runtime.command import CheckFailedError
from ldp_runtime.errors import LDPError
from ldp_runtime.images.quality import SSIM_WINDOW, psnr, ssim
from ldp_runtime.result import Result

EXAMPLES = """\
examples:
  python -m benchmarks parity
  python -m benchmarks parity --bundle ldp-nano --backend openvino onnxruntime:fp32
  python -m benchmarks parity --data dpd-blur=/data/dpd-blur

It compares on the motorcycle sample, simulated pairs of a fixed seed, and the
test split (else val) of each given data set. The exit code is 1 where a mean PSNR
to the target changes by more than the limit of the precision, or a backend fails.

Writes parity-NAME.json and parity-NAME.md into the output folder.
"""

LIMITS_DB = {"fp32": 0.01, "fp16": 0.01, "bf16": 0.02, "int8": 0.05}
"""Precision -> largest change of a set's mean PSNR to the target, against torch in FP32."""

SIMULATED_PAIRS = 6
SIMULATED_SEED = 7300
DATA_PAIRS = 16
_PEAK = 65535.0
_EIGHT_TO_SIXTEEN = np.uint16(257)

Image = NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Pair:
    """A pair and its target.

    Attributes:
        set: Name of its set.
        name: Its name in the set.
        left: Left view ``(h, w, 3)`` uint16.
        right: Right view, the same shape.
        target: The all-in-focus image, the same shape.
    """

    set: str
    name: str
    left: Image
    right: Image
    target: Image


Restore = Callable[[Image, Image], Result]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    add_contenders(parser)
    parser.add_argument(
        "--data", action="append", default=[], metavar="NAME=DIR", help="also a data set; may be given more than once"
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=DATA_PAIRS,
        metavar="N",
        help="pairs of each data set, spread evenly (default: %(default)s)",
    )
    options.add_threads(parser)
    options.add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Compares, prints the tables, writes the results, and fails where a gate fails.

    Raises:
        CheckFailedError: A gate failed.
        LDPError: The bundle, its checkpoint or a data set is not usable.
    """
    import torch

    from benchmarks.harness.bundles import open_bundle, reference_model
    from ldp_export.evaluation.reference import TorchDeblurrer
    from ldp_runtime.deblurrer import Deblurrer

    options.check_positive(arguments, "pairs")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    bundle = open_bundle(arguments.bundle, arguments.config)
    contenders, skipped = find_contenders(arguments.backend, bundle, arguments.checkpoint)
    pairs = [*sample_pairs(), *simulated_pairs()]
    for item in arguments.data:
        pairs += data_pairs(item, arguments.pairs)
    model = reference_model(bundle, arguments.checkpoint)

    def restore(contender: Contender) -> Restore:
        backend, precision = contender.backend, contender.precision
        if backend in TORCH:
            return TorchDeblurrer(model, layout=backend, precision=precision)
        return Deblurrer(bundle, backend=backend, precision=precision, threads=arguments.threads)

    data = measure(pairs, restore(REFERENCE), [c for c in contenders if c != REFERENCE], restore)
    report = Report.new("parity", {**data, "left_out": skipped}, bundle)
    publish(report, to_markdown(report), arguments.output)
    if data["failures"]:
        raise CheckFailedError("; ".join(data["failures"]))


def measure(
    pairs: Sequence[Pair],
    reference: Restore,
    contenders: Iterable[Contender],
    restore: Callable[[Contender], Restore],
) -> dict[str, Any]:
    """Compares contenders with the reference on pairs.

    Args:
        pairs: The pairs.
        reference: ``REFERENCE``, ready to run.
        contenders: The contenders.
        restore: Opens a contender; an ``LDPError`` of it or of its runs is a failure of that contender.

    Returns:
        The ``data`` of the report, except ``left_out``; ``failures`` has a line per failed gate.
    """
    from tqdm import tqdm

    expected = [reference(pair.left, pair.right) for pair in tqdm(pairs, "reference", disable=None)]
    failures: list[str] = []
    entries = []
    for contender in tqdm(list(contenders), "backends", disable=None):
        entry: dict[str, Any] = {
            "name": contender.name,
            "backend": contender.backend,
            "precision": contender.precision,
            "limit_db": LIMITS_DB[contender.precision],
            "error": None,
            "pairs": [],
            "sets": {},
        }
        entries.append(entry)
        try:
            run_pair = restore(contender)
            for pair, want in zip(pairs, expected, strict=True):
                entry["pairs"].append(compare(pair, run_pair(pair.left, pair.right), want))
        except LDPError as error:
            entry["error"] = str(error)
            failures.append(f"{contender.name}: {error}")
            continue
        for name in dict.fromkeys(pair.set for pair in pairs):
            summary = _summarise([figures for figures in entry["pairs"] if figures["set"] == name], entry["limit_db"])
            entry["sets"][name] = summary
            if not summary["passed"]:
                failures.append(
                    f"{contender.name} on {name}: expected a change in PSNR to the target of at most "
                    f"{entry['limit_db']:g} dB, got {summary['delta_psnr_db']:+.4f} dB"
                )
    return {
        "reference": REFERENCE.name,
        "sets": {
            name: _scores([(pair, want) for pair, want in zip(pairs, expected, strict=True) if pair.set == name])
            for name in dict.fromkeys(pair.set for pair in pairs)
        },
        "configurations": entries,
        "failures": failures,
    }


def compare(pair: Pair, got: Result, want: Result) -> dict[str, Any]:
    """The figures of one pair.

    Args:
        pair: The pair.
        got: Result by the contender.
        want: Result by the reference.

    Returns:
        Errors as shares of full scale, PSNR in dB (None where the images are equal), SSIM (None where they are too
        small), and the changes of the scores to the target: the contender's less the reference's.
    """
    error = np.abs(got.restored.astype(np.float64) - want.restored) / _PEAK
    scores = [_score(image, pair.target) for image in (got.restored, want.restored)]
    between = psnr(got.restored, want.restored, data_range=_PEAK)
    return {
        "set": pair.set,
        "pair": pair.name,
        "max_error": float(error.max()),
        "mean_error": float(error.mean()),
        "psnr_db": between if math.isfinite(between) else None,
        "blur_logits_max_error": float(np.abs(got.blur_logits - want.blur_logits).max()),
        "delta_psnr_db": scores[0][0] - scores[1][0],
        "delta_ssim": None if scores[0][1] is None or scores[1][1] is None else scores[0][1] - scores[1][1],
    }


def sample_pairs() -> list[Pair]:
    """The committed sample, in 16 bits."""
    from ldp_runtime.images.photo import read_photo

    views = (read_photo(SAMPLE / f"{name}.png").pixels for name in ("left", "right", "target"))
    return [Pair("sample", "motorcycle", *map(sixteen_bits, views))]


def simulated_pairs(count: int = SIMULATED_PAIRS) -> list[Pair]:
    """Random layered scenes of 256 x 256 px from scikit-image's photographs, always the same."""
    from tqdm import tqdm

    from ldp_export.simulation.scenes import sample_scenes

    pairs = []
    for index, scene in enumerate(tqdm(sample_scenes(count, SIMULATED_SEED), "simulating", count, disable=None)):
        views = (sixteen_bits(scene[name]) for name in ("left", "right", "target"))
        pairs.append(Pair("simulated", f"scene-{index:02d}", *views))
    return pairs


def data_pairs(item: str, most: int) -> list[Pair]:
    """Pairs with a target of a data set.

    Args:
        item: "NAME=DIR".
        most: The most pairs, spread evenly over the split.

    Raises:
        LDPError: The data set or the folder does not exist, or the set has no targets.
    """
    from ldp_export.data import find_kind, open_dataset, spread

    name, _, folder = item.partition("=")
    if not folder:
        raise BenchmarkError(f"expected --data NAME=DIR, got {item!r}; name the data set and its folder")
    split = "test" if "test" in find_kind(name).splits else "val"
    pairs = [
        Pair(f"{name} {split}", s.name, sixteen_bits(s.left), sixteen_bits(s.right), sixteen_bits(s.target))
        for s in spread(open_dataset(name, Path(folder), split), most)
        if s.target is not None
    ]
    if not pairs:
        raise BenchmarkError(f"expected pairs with a target in {name} {split}, got none; give another data set")
    return pairs


def sixteen_bits(image: NDArray[Any]) -> Image:
    """An image of 8 or 16 bits in 16 bits; the same share of full scale."""
    return image.astype(np.uint16) * _EIGHT_TO_SIXTEEN if image.dtype == np.uint8 else image.astype(np.uint16)


def to_markdown(report: Report) -> str:
    """The tables of a report, below a title.

    Args:
        report: Of kind "parity".
    """
    data = report.data
    parts = [f"# Parity of {report.name} with {data['reference']}"]
    if report.bundle is not None and not report.bundle.trained:
        parts.append("The weights are random: scores to the target mean nothing, and their changes little.")
    for name, scores in data["sets"].items():
        parts.append(f"## {name}, {scores['pairs']} {'pair' if scores['pairs'] == 1 else 'pairs'}")
        ssim_text = "" if scores["ssim"] is None else f", SSIM {scores['ssim']:.4f}"
        parts.append(f"{data['reference']} scores {scores['psnr_db']:.3f} dB{ssim_text} to the target.")
        parts.append(set_table(data, name))
    parts += [f"* {name} was skipped: {reason}" for name, reason in data["left_out"].items()]
    verdict = "Every gate passed." if not data["failures"] else "Gates failed: " + "; ".join(data["failures"]) + "."
    parts.append(
        "Errors are shares of full scale, of images of 16 bits. Gate: the change of the set's mean PSNR to the target, "
        f"at most {', '.join(f'{limit:g} dB in {p}' for p, limit in LIMITS_DB.items())}. {verdict}"
    )
    return "\n\n".join(parts)


def set_table(data: Mapping[str, Any], name: str) -> str:
    """The table of one set of pairs."""
    rows: list[list[object]] = []
    for entry in data["configurations"]:
        if entry["error"] is not None:
            rows.append([entry["name"], *[None] * 7, "failed"])
            continue
        s = entry["sets"][name]
        rows.append(
            [
                entry["name"],
                significant(s["max_error"], 2),
                significant(s["mean_error"], 2),
                "equal" if s["psnr_db"] is None else f"{s['psnr_db']:.1f}",
                significant(s["blur_logits_max_error"], 2),
                signed(s["delta_psnr_db"], 4),
                signed(s["worst_delta_psnr_db"], 4),
                None if s["delta_ssim"] is None else signed(s["delta_ssim"], 6),
                "passed" if s["passed"] else "failed",
            ]
        )
    header = ["backend, precision", "max error", "mean error", "PSNR between dB", "max error of blur logits"]
    return markdown_table([*header, "change in PSNR dB", "worst pair dB", "change in SSIM", "gate"], rows)


def _summarise(figures: Sequence[Mapping[str, Any]], limit: float) -> dict[str, Any]:
    """The figures of a set of pairs: the worst errors, the mean changes, and whether the gate passed."""
    deltas = [f["delta_psnr_db"] for f in figures]
    ssims = [f["delta_ssim"] for f in figures if f["delta_ssim"] is not None]
    delta = float(np.mean(deltas))
    return {
        "pairs": len(figures),
        "max_error": max(f["max_error"] for f in figures),
        "mean_error": float(np.mean([f["mean_error"] for f in figures])),
        "psnr_db": min((f["psnr_db"] for f in figures if f["psnr_db"] is not None), default=None),
        "blur_logits_max_error": max(f["blur_logits_max_error"] for f in figures),
        "delta_psnr_db": delta,
        "worst_delta_psnr_db": max(deltas, key=abs),
        "delta_ssim": float(np.mean(ssims)) if ssims else None,
        "passed": abs(delta) <= limit,
    }


def _score(image: Image, target: Image) -> tuple[float, float | None]:
    """PSNR, limited to that of an error of one 16-bit step so that changes are finite, and SSIM."""
    value = min(psnr(image, target, data_range=_PEAK), 20 * math.log10(_PEAK))
    large = min(image.shape[:2]) >= SSIM_WINDOW
    return value, ssim(image, target, data_range=_PEAK) if large else None


def _scores(restored: Sequence[tuple[Pair, Result]]) -> dict[str, Any]:
    """Mean scores of the reference over a set."""
    scores = [_score(got.restored, pair.target) for pair, got in restored]
    ssims = [value for _, value in scores if value is not None]
    return {
        "pairs": len(scores),
        "psnr_db": float(np.mean([value for value, _ in scores])),
        "ssim": float(np.mean(ssims)) if ssims else None,
    }
