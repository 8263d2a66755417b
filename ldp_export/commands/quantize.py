"""``ldp-export quantize``: writes INT8 graphs into a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldp_export.commands._parts import ArgumentError, Progress, check_folder, say
from ldp_runtime.command import CheckFailedError
from ldp_runtime.commands.options import parse_seed, positive_int, positive_number
from ldp_runtime.errors import counted

if TYPE_CHECKING:
    from ldp_export.bundling.quantize_pairs import PairSets

HELP = "Writes INT8 graphs into a bundle; measures which layers must stay in float."
EXAMPLES = """\
examples:
  ldp-export quantize my-bundle
  ldp-export quantize my-bundle -o my-bundle-int8
  ldp-export quantize my-bundle --max-loss 0.02
  ldp-export quantize my-bundle --data dpd-blur=dd_dp_dataset_canon

The graphs have explicit Q/DQ nodes and are for CPUs, --precision int8 on
openvino and onnxruntime: 8 bits for convolutions and matrix products with
weights, float for all else.

Each group of layers is quantised alone and compared with the float graphs.
Those that cost most quality for the work that they would save stay in float,
until the mean PSNR to the target changes by less than --max-loss. The result is
then checked on other pairs. If that fails nothing is written and the exit code
is 1.

Pairs are simulated unless a data set is given; then those of its training split
calibrate and choose, and those of its test split check. The same command gives
the same graphs on the same machine.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a name that `ldp info` lists, or a folder")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="BUNDLE", help="folder of a copy to write to (default: the bundle itself)"
    )
    parser.add_argument("--precision", default="int8", type=_precision, help="what to write, %(default)s alone")
    parser.add_argument(
        "--max-loss",
        type=positive_number,
        default=0.05,
        metavar="DB",
        help="largest change of the mean PSNR to the target in dB (default: %(default)s)",
    )
    parser.add_argument("--data", metavar="NAME=DIR", help="pairs of a data set (default: simulated pairs)")
    parser.add_argument(
        "--pairs",
        type=int,
        default=32,
        metavar="N",
        help="pairs to calibrate, choose and check with each (default: 32)",
    )
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="CPU threads (default: ONNX Runtime's choice)"
    )
    parser.add_argument("--seed", type=parse_seed, default=0, help="of the simulated pairs (default: 0)")


def _precision(text: str) -> str:
    if text != "int8":
        raise argparse.ArgumentTypeError(
            f"expected int8, got {text}; FP8, which was for engines, is withdrawn, since ViT-B/32 moved more bytes in "
            "it than in FP16: build engines with ldp-export engine, in FP16"
        )
    return text


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    if arguments.pairs < 1:
        raise ArgumentError(f"expected at least 1 pair, got {arguments.pairs}")
    if arguments.output is not None:
        check_folder(arguments.output, "bundle.json")

    from ldp_export.bundling.quantize import QualityError, quantize_bundle
    from ldp_runtime.bundle.bundle import Bundle

    bundle = Bundle.load(arguments.bundle)
    sets = _sets(arguments)

    def progress(names: Iterable[str], count: int) -> Iterable[str]:
        return Progress("groups", count)(names)

    try:
        manifest = quantize_bundle(
            bundle,
            sets,
            arguments.output,
            max_loss=arguments.max_loss,
            threads=arguments.threads,
            progress=progress,
            report=say,
        )
    except QualityError as error:
        print(table(error.record))
        raise CheckFailedError(f"{error}; nothing was written; give more --pairs or a larger --max-loss") from error
    print(table(manifest.quantization["int8"]))
    size = sum(e.size for name, e in manifest.files.items() if ".int8." in name) / 2**20
    print(f"{arguments.output or bundle.path}: INT8 graphs, {size:.1f} MiB")


def _sets(arguments: argparse.Namespace) -> PairSets:
    from ldp_export.bundling.quantize_pairs import data_sets, simulated_sets

    if arguments.data is None:
        say("simulating pairs")
        return simulated_sets(arguments.pairs, arguments.seed)
    name, _, folder = arguments.data.partition("=")
    if not folder:
        raise ArgumentError(f"expected --data NAME=DIR, got {arguments.data!r}; name the data set and its folder")
    return data_sets(name, Path(folder), arguments.pairs)


def table(record: Mapping[str, Any]) -> str:
    """A record of a manifest's ``quantization`` for people: a line per group, the costliest for its work first."""
    lines = [f"{'layers':40}{'nodes':>6}{'work':>9}{'noise':>10}{'change, dB':>12}  precision"]
    for row in record["groups"]:
        lines.append(
            f"{row['group']:40}{row['layers']:6}{row['macs_share']:9.2%}{row['noise']:10.5f}{row['loss_db']:+12.4f}"
            f"  {row['precision']}"
        )
    shares = ", ".join(f"{share:.1%} of {kind}" for kind, share in record["macs_share"].items())
    lines += ["", f"multiply-accumulates in 8 bits: {shares}"]
    if record["weights"] == "random":
        lines.append("the weights are random: changes of PSNR mean nothing")
    for name, figures in record["check"].items():
        lines.append(
            f"{name}, {counted(figures['pairs'], 'pair')}: {figures['fp32_psnr_db']:.3f} dB to the target in FP32, "
            f"change in 8 bits {figures['delta_db']:+.4f} dB (at most {figures['limit_db']:g})"
        )
    return "\n".join(lines)
