"""``ldp-export measure-psf``: measures the point spread functions of a camera's views."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ldp_export.commands._parts import ArgumentError, Progress, check_folder, say
from ldp_runtime.command import CheckFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ldp_export.evaluation.measure_psf import BlockPSF

HELP = "Measures the point spread functions of a camera, to simulate pairs like its own."
EXAMPLES = """\
examples:
  ldp-export measure-psf photos
  ldp-export measure-psf pairs.csv --max-radius 14 -o psf

PAIRS is a folder or a CSV as for `ldp-export evaluate --data pairs=`; each pair
needs a sharp target of the same view, such as a photo at a small aperture from a
tripod. In blocks of 120 px with texture it solves for the kernels that turn the
target into each view, and prints how far their centroids lie apart in units of
the radius r of the circle of confusion: 0.85 for half disks, 0.40 to 0.50 for the
Canon 5D Mark IV and the Pixel 4. `simulate` and `data render` take the median
as --separation. Flat scenes with fine texture serve best, such as a poster or a
brick wall out of focus: blocks across the edge of an object scatter low.

With -o it writes psf.png, the kernels side by side, psf.npz, the same as numbers,
and measure-psf.json. The exit code is 1 if no block could be solved.
"""
MARKER = "measure-psf.json"
_WIDE = 0.15  # r


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    from ldp_runtime.commands.options import positive_number

    parser.add_argument("pairs", metavar="PAIRS", type=Path, help="folder of pairs with targets, or a CSV")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder to write kernels and figures to")
    parser.add_argument(
        "--max-radius",
        type=positive_number,
        default=9.0,
        metavar="PX",
        help="largest radius to look for; time grows with its fourth power (default: %(default)g)",
    )


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    from ldp_export.data import open_dataset
    from ldp_export.data.pairs import NAME, SPLIT
    from ldp_export.evaluation.measure_psf import LEAST_RADIUS, MOST_RADIUS, measure_pair, summarise

    if not LEAST_RADIUS < arguments.max_radius <= MOST_RADIUS:
        raise ArgumentError(
            f"expected --max-radius above {LEAST_RADIUS:g} and at most {MOST_RADIUS:g} px, got "
            f"{arguments.max_radius:g}; scale the photos down"
        )
    if arguments.output is not None:
        check_folder(arguments.output, MARKER)
    dataset = open_dataset(NAME, arguments.pairs, SPLIT)
    blocks: list[BlockPSF] = []
    targets = 0
    for index in Progress("pairs", len(dataset))(range(len(dataset))):
        sample = dataset[index]
        if sample.target is None:
            say(f"ldp-export: warning: {sample.name} has no target and is left out")
            continue
        targets += 1
        blocks += measure_pair(sample, arguments.max_radius)
    if not targets:
        raise ArgumentError(
            f"expected pairs with targets in {arguments.pairs}, got none; put target.png beside the views"
        )
    if not blocks:
        raise CheckFailedError(
            f"no block of {arguments.pairs} could be solved; take scenes with fine texture at one depth, out of "
            "focus, and a target from the same place"
        )
    print(_text(blocks))
    found = summarise(blocks)
    if found.upper - found.lower > _WIDE:
        say("ldp-export: warning: the quartiles lie far apart; take flat scenes with fine texture, out of focus")
    if arguments.output is not None:
        _write(arguments.output, blocks)


def _text(blocks: Sequence[BlockPSF]) -> str:
    from ldp_export.evaluation.measure_psf import summarise

    radii = [block.radius for block in blocks]
    found = summarise(blocks)
    behind = sum(block.shift > 0 for block in blocks)
    return "\n".join(
        [
            f"blocks       {len(blocks)} of {len({block.pair for block in blocks})} pairs, {behind} of them behind the "
            "focal plane",
            f"radius       {min(radii):.1f} to {max(radii):.1f} px",
            f"separation   {found.median:.2f} r, quartiles {found.lower:.2f} and {found.upper:.2f} r",
            f"to simulate  ldp-export simulate, ldp-export data render: --separation {found.median:.2f}",
        ]
    )


def _write(folder: Path, blocks: Sequence[BlockPSF]) -> None:
    import json
    from dataclasses import asdict

    import numpy as np

    from ldp_export.evaluation.measure_psf import kernel_sheet, summarise
    from ldp_runtime.files import staged_folder
    from ldp_runtime.images.photo import write_pixels

    record = {
        "separation": asdict(summarise(blocks)),
        "blocks": [
            {
                "pair": block.pair,
                "row": block.row,
                "column": block.column,
                "radius": round(block.radius, 3),
                "shift": round(block.shift, 3),
                "separation": round(block.separation, 4),
            }
            for block in blocks
        ],
    }
    with staged_folder(folder, last=MARKER) as staged:
        write_pixels(staged / "psf.png", kernel_sheet(blocks))
        np.savez(staged / "psf.npz", left=[block.left for block in blocks], right=[block.right for block in blocks])
        (staged / MARKER).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {folder}")
