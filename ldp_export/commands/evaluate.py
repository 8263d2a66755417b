"""``ldp-export evaluate``: scores a bundle or a checkpoint on the motorcycle sample or on data sets."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldp_export.commands._parts import ArgumentError, Progress, make_folder, print_gates, say
from ldp_runtime.command import CheckFailedError

if TYPE_CHECKING:
    from ldp_export.data import PairDataset
    from ldp_export.evaluation.reference import TorchDeblurrer
    from ldp_runtime.deblurrer import Deblurrer

HELP = "Scores a bundle or a checkpoint, on the held-out motorcycle sample or on data sets."
EXAMPLES = """\
examples:
  ldp-export evaluate models/ldp-nano
  ldp-export evaluate models/ldp-nano --pictures pictures --json figures.json
  ldp-export evaluate models/ldp-nano --store
  ldp-export evaluate models/ldp-nano --data dpd-blur=dd_dp_dataset_canon -o runs/scores
  ldp-export evaluate runs/nafnet --data simulated=runs/scenes --split val -o runs/scores
  ldp-export evaluate models/ldp-nano --data simulated=runs/scenes -o benchmarks/reports/evaluate-ldp-nano
  ldp-export evaluate models/ldp-nano --data pairs=photos -o runs/scores
  ldp-export evaluate models/ldp-nano --data pairs=pairs.csv -o runs/scores --check auto

Without --data it scores the motorcycle sample. The first run renders two pairs
under the second simulator, half a minute each, and keeps them in the cache
folder. The exit code is 1 if a figure is not as wanted.

With --data it scores every pair of a split and writes a table of the images
(.csv), a summary beside the paper's figures (.md, .json) and contact sheets
(.png) into DIR. Data sets: `ldp-export data check` prints their layouts.

`pairs` are photographs of your own: a folder in which pairs are found by the
names that `ldp batch --help` lists, or a CSV with the columns left, right and,
where wanted, target. A target lies beside its views: as target.png, in target/
or NAME_c/ under the pair's name, or in inputC/ beside inputL/. Besides PSNR, SSIM
and MAE they get a matched PSNR, which forgives other light, an aligned PSNR, which
forgives a few pixels of misalignment, a registered PSNR, which forgives a target
of another size (focus breathing), the gains over the center view, and a
sharpness that needs no target. Folders of the first level are summed up apart.
The model gets the views as they are; --check auto corrects and scales them as
`ldp batch` does.

A checkpoint folder runs in torch, in FP32, without being exported.
"""

_CHECK = "off"  # a model is scored on the views as they are
_OF_BUNDLES = {"backend": "auto", "precision": "auto", "check": _CHECK, "scale": "auto", "store": False}
_OF_DATA = {"split": None, "output": None, "check": _CHECK, "scale": "auto"}
_OF_SAMPLE = {"json": None, "pictures": None, "store": False}
# option -> its default: the options of bundles alone, and those with --data alone and without it alone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    from ldp_runtime.commands.options import add_backend_arguments, add_check_arguments

    parser.add_argument(
        "bundle", metavar="BUNDLE|CHECKPOINT", help="a name that `ldp info` lists, or a folder of either"
    )
    add_backend_arguments(parser)
    add_check_arguments(parser, default=_CHECK)
    sample = parser.add_argument_group("on the motorcycle sample")
    sample.add_argument("--json", metavar="PATH", type=Path, help="also write the figures as JSON")
    sample.add_argument("--pictures", metavar="DIR", type=Path, help="also write the images behind the figures")
    sample.add_argument("--store", action="store_true", help="write the figures into the bundle's manifest")
    data = parser.add_argument_group("on data sets")
    data.add_argument(
        "--data",
        metavar="NAME=DIR",
        action="append",
        default=[],
        help="score a data set, pairs=FOLDER|CSV for pairs of your own; may be given several times",
    )
    data.add_argument("--split", metavar="SPLIT", help="train, val or test (default: test, or val where there is none)")
    data.add_argument("-o", "--output", metavar="DIR", type=Path, help="with --data: folder of the report")


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    _check(arguments)
    if arguments.data:
        _score(arguments)
    else:
        _score_sample(arguments)


def _check(arguments: argparse.Namespace) -> None:
    """Refuses options that do not fit together."""
    if not arguments.data:
        for option in _given(arguments, _OF_DATA):
            raise ArgumentError(f"expected --data NAME=DIR with {option}, got none; say which data set to score")
    else:
        if arguments.output is None:
            raise ArgumentError("expected -o DIR with --data, got none; say where the report goes")
        for option in _given(arguments, _OF_SAMPLE):
            raise ArgumentError(f"expected {option} without --data, got both; the report in -o has all of it")
    if _is_checkpoint(arguments):
        for option in _given(arguments, _OF_BUNDLES):
            raise ArgumentError(f"expected {option} with a bundle, got a checkpoint; export it first, or leave it out")


def _given(arguments: argparse.Namespace, options: Mapping[str, Any]) -> list[str]:
    """Those of the options that have another value than their default."""
    return [f"--{name}" for name, default in options.items() if getattr(arguments, name) != default]


def _is_checkpoint(arguments: argparse.Namespace) -> bool:
    from ldp_export.checkpoint import NETWORK_FILE
    from ldp_runtime.bundle.manifest import MANIFEST_FILE

    folder = Path(arguments.bundle)
    return (folder / NETWORK_FILE).is_file() and not (folder / MANIFEST_FILE).is_file()


def _open(arguments: argparse.Namespace) -> tuple[str, Deblurrer | TorchDeblurrer]:
    """The model's name, and what runs it."""
    if _is_checkpoint(arguments):
        import torch

        from ldp_export.checkpoint import Checkpoint
        from ldp_export.evaluation.reference import TorchDeblurrer
        from ldp_export.model import model_from_checkpoint

        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        checkpoint = Checkpoint.open(arguments.bundle)
        return checkpoint.name, TorchDeblurrer(model_from_checkpoint(checkpoint))
    from ldp_runtime.deblurrer import Deblurrer

    deblurrer = Deblurrer.from_bundle(
        arguments.bundle,
        backend=arguments.backend,
        precision=arguments.precision,
        threads=arguments.threads,
        check=arguments.check,
        scale=arguments.scale,
    )
    return deblurrer.bundle.manifest.name, deblurrer


def _score_sample(arguments: argparse.Namespace) -> None:
    from ldp_export.evaluation.evaluate import evaluate, store
    from ldp_runtime.deblurrer import Deblurrer
    from ldp_runtime.files import check_writable, write_files

    if arguments.json is not None:
        check_writable(arguments.json)
    if arguments.pictures is not None:
        make_folder(arguments.pictures)
    name, deblurrer = _open(arguments)
    evaluation = evaluate(deblurrer, pictures=arguments.pictures, report=say)
    print(f"{name} on {evaluation.backend}, {evaluation.precision}")
    print(evaluation.table())
    if isinstance(deblurrer, Deblurrer):
        print("parity with torch, measured at export:")
        print_gates(deblurrer.bundle.manifest.parity)
        if arguments.store:
            store(deblurrer.bundle.path, evaluation)
    if arguments.json is not None:
        text = json.dumps(evaluation.to_json(), indent=2, allow_nan=False) + "\n"
        write_files({arguments.json: text.encode()})
    if not evaluation.passed:
        raise CheckFailedError(f"not as wanted: {', '.join(evaluation.to_json()['missed'])}")


def _score(arguments: argparse.Namespace) -> None:
    import numpy as np
    from numpy.typing import NDArray

    from ldp_export.data.pairs import NAME as OWN_PAIRS
    from ldp_export.evaluation.score import score_dataset
    from ldp_export.evaluation.sheets import encode_sheet
    from ldp_runtime.files import write_files

    datasets = [_open_data(given, arguments.split) for given in arguments.data]
    make_folder(arguments.output)
    name, deblurrer = _open(arguments)
    for dataset in datasets:
        stem = f"{dataset.name}-{dataset.split}"

        def write_sheet(number: int, pixels: NDArray[np.uint8], stem: str = stem) -> None:
            path = arguments.output / f"{stem}-sheet-{number:02d}.png"
            write_files({path: encode_sheet(path, pixels)})

        report = score_dataset(
            deblurrer,
            dataset,
            name,
            photographs=dataset.name == OWN_PAIRS,
            sheet=write_sheet,
            progress=Progress(f"pairs of {stem}", len(dataset)),
        )
        texts = {
            "csv": report.to_csv(),
            "md": report.to_markdown(),
            "json": json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n",
        }
        write_files({arguments.output / f"{stem}.{suffix}": text.encode() for suffix, text in texts.items()})
        print(texts["md"])


def _open_data(given: str, split: str | None) -> PairDataset:
    from ldp_export.data import find_kind
    from ldp_export.data.layout import check_kind, open_kind

    name, equals, folder = given.partition("=")
    if not equals or not folder:
        raise ArgumentError(f"expected --data NAME=DIR, got {given!r}; for example dpd-blur=dd_dp_dataset_canon")
    kind = find_kind(name)
    split = split or ("test" if "test" in kind.splits else "val")
    dataset = open_kind(kind, Path(folder), split)
    for remark in check_kind(kind, Path(folder), split).remarks:
        say(f"ldp-export: warning: {name}: {remark}")
    return dataset
