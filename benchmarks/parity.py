"""Parity: does every backend, in every precision, restore what torch restores in FP32?

Pairs go in with 16 bits (8-bit values times 257, which is the same share of full scale), so that rounding of the output
to 16 bits, not to 8, is all that hides a difference. Errors are shares of full scale. The gate is on the score that a
user would see: the change of PSNR to the target, of each set's mean.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.results import REPORTS, BenchmarkError, Report, markdown_table, save, significant
from benchmarks.latency.bench import CONFIG_NAMES, TORCH, Contender, find_contenders
from ldp_runtime.command import CheckFailedError
from ldp_runtime.errors import LDPError
from ldp_runtime.images.quality import SSIM_WINDOW, psnr, ssim

if TYPE_CHECKING:
    from ldp_runtime.bundle.bundle import Bundle

HELP = "Compares every backend and precision with torch in FP32; fails where PSNR changes."
EXAMPLES = """\
examples:
  ldp bench parity
  ldp bench parity --bundle ldp-nano --backend openvino onnxruntime:fp32
  ldp bench parity --data dpd-blur=/data/dpd-blur

Compared are the motorcycle sample, simulated pairs of a fixed seed, and the
test split (else val) of each data set that is given. The exit code is 1 where a
mean PSNR to the target changes by more than the limit of the precision, or a
backend fails.

Writes parity-NAME.json and parity-NAME.md into the output folder.
"""

LIMITS_DB = {"fp32": 0.01, "fp16": 0.01, "bf16": 0.02, "int8": 0.05, "fp8": 0.05}
"""Precision -> largest change of a set's mean PSNR to the target, against torch in FP32."""

REFERENCE = Contender("torch", "fp32")
SIMULATED_PAIRS = 6
SIMULATED_SEED = 7300
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
"""Photographs of scikit-image that the simulated scenes are cut from."""

DATA_PAIRS = 16
_SAMPLE = Path(__file__).resolve().parent.parent / "samples" / "motorcycle"
_PEAK = 65535.0
_EIGHT_TO_SIXTEEN = np.uint16(257)

Image = NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Pair:
    """A pair to compare on.

    Attributes:
        set: The set that it belongs to.
        name: Its name there.
        left: Left view ``(h, w, 3)`` uint16.
        right: Right view, the same shape.
        target: The all-in-focus image, the same shape.
    """

    set: str
    name: str
    left: Image
    right: Image
    target: Image


@dataclass(frozen=True, eq=False)
class Restored:
    """The outcome of a pair: the restored image ``(h, w, 3)`` uint16, and blur logits ``(H / p, W / p)`` float32."""

    image: Image
    blur_logits: NDArray[np.float32]


Restore = Callable[[Image, Image], Restored]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--bundle", metavar="NAME|DIR", help="the bundle to check (default: ldp-nano)")
    what.add_argument("--config", choices=CONFIG_NAMES, help="random weights of this network in place of a bundle")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="the bundle's checkpoint, for torch")
    parser.add_argument(
        "--backend",
        nargs="+",
        default=["all"],
        metavar="NAME[:PRECISION]",
        help="what to compare (default: all that this machine has)",
    )
    parser.add_argument(
        "--data", action="append", default=[], metavar="NAME=DIR", help="a data set too; may be given more than once"
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=DATA_PAIRS,
        metavar="N",
        help="pairs of each data set, spread evenly (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: each backend's own choice)")
    parser.add_argument("-o", "--output", type=Path, default=REPORTS, metavar="DIR", help="where the results go")


def run(arguments: argparse.Namespace) -> None:
    """Compares, prints the tables, writes the results, and fails where a gate did.

    Raises:
        CheckFailedError: A gate failed.
        LDPError: The bundle, its checkpoint or a data set is not usable.
    """
    import torch

    from benchmarks.harness.bundles import open_bundle, reference_model
    from benchmarks.torch_chain import TorchChain, device

    if arguments.pairs < 1:
        raise BenchmarkError(f"expected --pairs of at least 1, got {arguments.pairs}")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    bundle = open_bundle(arguments.bundle, arguments.config)
    contenders, left_out = find_contenders(arguments.backend, bundle, arguments.checkpoint)
    pairs = [*sample_pairs(), *simulated_pairs()]
    for item in arguments.data:
        pairs += data_pairs(item, arguments.pairs)
    model = reference_model(bundle, arguments.checkpoint)

    def restore(contender: Contender) -> Restore:
        if contender.backend not in TORCH:
            return runtime(bundle, contender, arguments.threads)
        chain = TorchChain(bundle, model, contender.backend, contender.precision, device())

        def with_torch(left: Image, right: Image) -> Restored:
            result = chain(left, right)
            return Restored(result.restored, result.blur_logits)

        return with_torch

    data = measure(pairs, restore(REFERENCE), [c for c in contenders if c != REFERENCE], restore)
    data["left_out"] = left_out
    report = Report.new("parity", data, bundle)
    markdown = to_markdown(report)
    print(markdown)
    paths = save(report, arguments.output, f"parity-{bundle.manifest.name}", markdown)
    print(f"wrote {' and '.join(map(str, paths))}")
    if data["failures"]:
        raise CheckFailedError("; ".join(data["failures"]))


def runtime(bundle: Bundle, contender: Contender, threads: int | None = None) -> Restore:
    """The runtime on one backend in one precision, as a ``Restore``."""
    from ldp_runtime.deblurrer import Deblurrer

    deblurrer = Deblurrer(bundle, backend=contender.backend, precision=contender.precision, threads=threads)

    def restore(left: Image, right: Image) -> Restored:
        result = deblurrer(left, right)
        return Restored(result.restored, result.blur_logits)

    return restore


def measure(
    pairs: Sequence[Pair],
    reference: Restore,
    contenders: Iterable[Contender],
    restore: Callable[[Contender], Restore],
) -> dict[str, Any]:
    """Compares contenders with the reference on pairs.

    Args:
        pairs: What to restore.
        reference: Torch in FP32.
        contenders: What to compare.
        restore: Makes a contender ready; an ``LDPError`` of it, or of what it makes, is a failure of that contender.

    Returns:
        The ``data`` of the report, but ``left_out``; ``failures`` has a line a failed gate.
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


def compare(pair: Pair, got: Restored, want: Restored) -> dict[str, Any]:
    """The figures of one pair.

    Args:
        pair: For its target.
        got: What the contender restored.
        want: What the reference restored.

    Returns:
        Errors as shares of full scale, PSNR in dB (None where the images are equal), SSIM (None where they are too
        small), and the changes to the target: the contender's score less the reference's.
    """
    error = np.abs(got.image.astype(np.float64) - want.image) / _PEAK
    scores = [_score(image, pair.target) for image in (got.image, want.image)]
    between = psnr(got.image, want.image, data_range=_PEAK)
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

    views = (read_photo(_SAMPLE / f"{name}.png").pixels for name in ("left", "right", "target"))
    return [Pair("sample", "motorcycle", *map(sixteen_bits, views))]


def simulated_pairs(count: int = SIMULATED_PAIRS, seed: int = SIMULATED_SEED) -> list[Pair]:
    """Random layered scenes of 256 x 256 px from scikit-image's photographs; the same for the same seed."""
    from skimage import data
    from tqdm import tqdm

    from ldp_export.simulation.scenes import render_scene

    photos = [getattr(data, name)() for name in PHOTOS]
    pairs = []
    for index in tqdm(range(count), "simulating", disable=None):
        scene = render_scene(np.random.default_rng((seed, index)), photos)
        views = (sixteen_bits(scene[name]) for name in ("left", "right", "target"))
        pairs.append(Pair("simulated", f"scene-{index:02d}", *views))
    return pairs


def data_pairs(item: str, most: int) -> list[Pair]:
    """Pairs with a target of a data set.

    Args:
        item: "NAME=DIR".
        most: At most so many, spread evenly over the split.

    Raises:
        LDPError: No such data set, no such folder, or the set has no targets.
    """
    from ldp_export.data import find_kind, open_dataset

    name, _, folder = item.partition("=")
    if not folder:
        raise BenchmarkError(f"expected --data NAME=DIR, got {item!r}; name the data set and its folder")
    split = "test" if "test" in find_kind(name).splits else "val"
    dataset = open_dataset(name, Path(folder), split)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().astype(int))
    samples = [dataset[int(index)] for index in chosen]
    pairs = [
        Pair(f"{name} {split}", s.name, sixteen_bits(s.left), sixteen_bits(s.right), sixteen_bits(s.target))
        for s in samples
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
    name = report.bundle.name if report.bundle else ""
    parts = [f"# Parity of {name} with {data['reference']}"]
    if report.bundle is not None and not report.bundle.trained:
        parts.append("The weights are random: scores to the target mean nothing, and changes of them little.")
    for name, scores in data["sets"].items():
        parts.append(f"## {name}, {scores['pairs']} {'pair' if scores['pairs'] == 1 else 'pairs'}")
        ssim_text = "" if scores["ssim"] is None else f", SSIM {scores['ssim']:.4f}"
        parts.append(f"{data['reference']} scores {scores['psnr_db']:.3f} dB{ssim_text} to the target.")
        parts.append(set_table(data, name))
    parts += [f"* {name} was left out: {reason}" for name, reason in data["left_out"].items()]
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


def signed(value: float, decimals: int) -> str:
    """A change with its sign; one that rounds to nothing has none."""
    text = f"{value:+.{decimals}f}"
    return text if float(text) else f"{0:.{decimals}f}"


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
    """PSNR, at most that of an error of one step of 16 bits, so that changes are finite; and SSIM."""
    value = min(psnr(image, target, data_range=_PEAK), 20 * math.log10(_PEAK))
    large = min(image.shape[:2]) >= SSIM_WINDOW
    return value, ssim(image, target, data_range=_PEAK) if large else None


def _scores(restored: Sequence[tuple[Pair, Restored]]) -> dict[str, Any]:
    """Mean scores of the reference over a set."""
    scores = [_score(got.image, pair.target) for pair, got in restored]
    ssims = [value for _, value in scores if value is not None]
    return {
        "pairs": len(scores),
        "psnr_db": float(np.mean([value for value, _ in scores])),
        "ssim": float(np.mean(ssims)) if ssims else None,
    }
