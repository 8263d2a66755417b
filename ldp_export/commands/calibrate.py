"""``ldp-export calibrate``: calibrates the prompts."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldp_export.commands._parts import WINDOW_HELP, Progress
from ldp_runtime.commands.options import parse_seed, positive_int

HELP = "Fits offset and temperature of each prompt."
EXAMPLES = """\
examples:
  ldp-export calibrate runs/clip --scenes runs/scenes
  ldp-export calibrate my-checkpoint --simulate

CHECKPOINT needs clip.json and clip.safetensors alone; calibration.json is
written there. --scenes reads the first shards scenes-NNNN.npz, which ldp-nano's
training holds out; --simulate renders pairs from scikit-image's photographs.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder with CLIP")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--scenes", type=Path, metavar="DIR", help="scenes of ldp-export data render")
    source.add_argument("--simulate", action="store_true", help="simulate pairs here")
    parser.add_argument("--window", type=positive_int, metavar="PX", help=WINDOW_HELP)
    parser.add_argument("--seed", type=parse_seed, default=0, help="with --simulate: of the pairs (default: 0)")


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    from ldp_export.calibrate import SCENES, calibrate, simulate_scenes, token_similarities
    from ldp_export.checkpoint import Checkpoint, choose_windows
    from ldp_export.data import iterate, open_dataset

    checkpoint = Checkpoint.open(arguments.checkpoint)
    clip = checkpoint.clip()
    patch = clip.encoder.patch
    windows = checkpoint.windows(patch) if arguments.window is None else choose_windows(patch, arguments.window)
    if arguments.simulate:
        scenes, count = simulate_scenes(SCENES, arguments.seed), SCENES
    else:
        held_out = open_dataset("simulated", arguments.scenes, "val")
        scenes, count = iterate(held_out), len(held_out)
    calibration = calibrate(*token_similarities(clip, windows, scenes, Progress("scenes", count)))
    checkpoint.write_prompts(calibration.prompts)
    print(calibration.table())
