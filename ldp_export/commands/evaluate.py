"""`ldp-export evaluate`: scores a bundle."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ldp_export.commands._parts import (
    make_folder,
    print_gates,
    say,
)
from ldp_runtime.command import CheckFailedError

HELP = "Scores a bundle on the held-out motorcycle sample."
EXAMPLES = """\
examples:
  ldp-export evaluate models/ldp-nano
  ldp-export evaluate models/ldp-nano --pictures looks --json figures.json
  ldp-export evaluate models/ldp-nano --store

The first run renders two pairs under the second simulator, half a minute each,
and keeps them in the cache folder. The exit code is 1 if a figure is not as
wanted.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `ldp_runtime.command.Command`."""
    from ldp_runtime.backends import BACKENDS, PRECISIONS

    parser.add_argument("bundle", metavar="BUNDLE", help="a name that `ldp info` lists, or a folder")
    parser.add_argument(
        "--backend", default="auto", choices=("auto", *BACKENDS), help="what runs the networks (default: auto)"
    )
    parser.add_argument(
        "--precision", default="auto", choices=("auto", *PRECISIONS), help="their arithmetic (default: its own)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the backend's choice)")
    parser.add_argument("--json", metavar="PATH", type=Path, help="also write the figures as JSON")
    parser.add_argument("--pictures", metavar="DIR", type=Path, help="also write the images behind the figures")
    parser.add_argument("--store", action="store_true", help="write the figures into the bundle's manifest")


def run(arguments: argparse.Namespace) -> None:
    """See `ldp_runtime.command.Command`."""
    from ldp_export.evaluate import evaluate, store
    from ldp_runtime.image_io import check_writable, write_files
    from ldp_runtime.pipeline import Deblurrer

    if arguments.json is not None:
        check_writable(arguments.json)
    if arguments.pictures is not None:
        make_folder(arguments.pictures)
    deblurrer = Deblurrer.from_bundle(
        arguments.bundle, backend=arguments.backend, precision=arguments.precision, threads=arguments.threads
    )
    evaluation = evaluate(deblurrer, pictures=arguments.pictures, report=say)
    print(f"{deblurrer.bundle.manifest.name} on {evaluation.backend}, {evaluation.precision}")
    print(evaluation.table())
    print("parity with torch, measured at export:")
    print_gates(deblurrer.bundle.manifest.parity)
    if arguments.json is not None:
        text = json.dumps(evaluation.to_json(), indent=2, allow_nan=False) + "\n"
        write_files({arguments.json: text.encode()})
    if arguments.store:
        store(deblurrer.bundle.path, evaluation)
    if not evaluation.passed:
        raise CheckFailedError(f"not as wanted: {', '.join(evaluation.to_json()['missed'])}")
