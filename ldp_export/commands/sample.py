"""``ldp-export sample``: writes the sample."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldp_export.commands._parts import check_folder, write_pair
from ldp_runtime import __version__

FOCUS_NAMES = ("near", "far")

HELP = "Writes the held-out motorcycle sample."
EXAMPLES = """\
examples:
  ldp-export sample -o samples/motorcycle
  ldp-export sample -o motorcycle-far --focus far

Writes left.png, right.png, target.png, coc.npy (signed radius of the circle of
confusion in px) and sample.json into DIR.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="folder to write to")
    parser.add_argument("--focus", default=FOCUS_NAMES[0], choices=FOCUS_NAMES, help="what is in focus (default: near)")


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    from dataclasses import asdict

    from ldp_export.simulation.samples import MOTORCYCLE, focus_setting

    check_folder(arguments.output, "sample.json")
    pair = focus_setting(arguments.focus)
    record = {
        "scene": "Middlebury 2014 motorcycle (scikit-image's stereo_motorcycle, left view)",
        "focus": arguments.focus,
        "parameters": asdict(MOTORCYCLE),
        "ldp": __version__,
    }
    write_pair(arguments.output, pair.left, pair.right, pair.target, pair.coc, "sample.json", record)
    print(f"{arguments.output}: {pair.left.shape[1]} x {pair.left.shape[0]} px, {arguments.focus} focus")
