"""``ldp-export train``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

HELP = "Trains the deblurring network; a killed run resumes."

EXAMPLES = """\
examples:
  ldp-export train models/recipes/ldp_nano/deblur.yaml -o runs/deblur
  ldp-export train models/recipes/ldp_nano/deblur.yaml -o runs/deblur --hours 2 --set batch=32
  torchrun --nproc-per-node 2 -m ldp_export train models/recipes/paper/small.yaml -o runs/small

DIR gets checkpoint/, the input of `ldp-export onnx`, the log train.log.jsonl,
TensorBoard's files and the state train.state.pt. Started again with the same
DIR, a run resumes. --set takes a dotted key of the configuration and YAML, such
as stages.0.steps=1000; --hours gives all stages together that much time, in the
ratio of their lengths. Paths in the configuration are relative to the folder
where the command runs.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("config", metavar="CONFIG.yaml", type=Path, help="the run (see models/recipes)")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; may be repeated"
    )
    parser.add_argument("--hours", type=float, metavar="H", help="train for so long in place of the stages' lengths")


def run(arguments: argparse.Namespace) -> None:
    """Trains."""
    from ldp_export.training.config_file import read_config

    config = read_config(arguments.config, arguments.set)
    if arguments.hours is not None:
        config = config.with_hours(arguments.hours)

    from ldp_export.training import train

    checkpoint = train(config, arguments.output)
    if os.environ.get("RANK", "0") == "0":
        print(checkpoint)
