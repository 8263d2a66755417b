"""``ldp-export onnx``: exports a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldp_export.commands._parts import WINDOW_HELP, ArgumentError, check_folder, print_gates, step_bar
from ldp_runtime.command import CheckFailedError
from ldp_runtime.commands.options import parse_seed, positive_int

CONFIG_NAMES = ("nano", "small", "large", "fast", "fast-large")

HELP = "Exports a bundle and checks its parity with torch."
EXAMPLES = """\
examples:
  ldp-export onnx models/checkpoints/ldp-nano -o models/ldp-nano
  ldp-export onnx --config small --clip ViT-B-32-quickgelu -o bundles/small-random
  ldp-export onnx --config large --clip ViT-B-32-quickgelu --clip-weights openai -o bundles/large

CHECKPOINT is a folder with network.json, deblur.safetensors, clip.json,
clip.safetensors, calibration.json and training.json. With --config the
network's weights are random: such a bundle checks the chain of export, engines
and runtime, and restores nothing.

The graphs are compared with torch, and the figures go into the manifest. If a
check fails nothing is written and the exit code is 1.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="folder of a trained model")
    source.add_argument("--config", choices=CONFIG_NAMES, help="a network with random weights instead")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument("--name", help="name of the bundle (default: that of its folder)")
    parser.add_argument(
        "--clip", metavar="ARCHITECTURE", help="with --config: open_clip's name of a ViT, or a .json file"
    )
    parser.add_argument(
        "--clip-weights",
        metavar="FILE|TAG",
        help="with --clip: its weights, a file or a tag to download (default: random)",
    )
    parser.add_argument("--window", type=positive_int, metavar="PX", help=WINDOW_HELP)
    parser.add_argument(
        "--overlap", type=int, metavar="PX", help="what windows share (default: the checkpoint's, or nothing)"
    )
    parser.add_argument("--seed", type=parse_seed, default=0, help="with --config: of the random weights (default: 0)")


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    if arguments.config is None and (arguments.clip or arguments.clip_weights):
        raise ArgumentError("expected --clip with --config, got a CHECKPOINT, which has its own CLIP; leave it out")
    if arguments.config is not None and not arguments.clip:
        raise ArgumentError("expected --clip with --config, got none; the paper's is ViT-B-32-quickgelu")
    check_folder(arguments.output, "bundle.json")

    from ldp_export.bundling.onnx_graphs import ParityError, export_bundle, steps
    from ldp_export.checkpoint import Checkpoint
    from ldp_export.model import model_from_checkpoint, random_model

    if arguments.config is None:
        model = model_from_checkpoint(Checkpoint.open(arguments.checkpoint), arguments.window, arguments.overlap)
    else:
        model = random_model(
            arguments.config,
            arguments.clip,
            arguments.clip_weights,
            window=arguments.window,
            overlap=arguments.overlap,
            seed=arguments.seed,
        )
    name = arguments.name or model.training.get("name") or arguments.output.absolute().name
    try:
        with step_bar(steps(model)) as report:
            manifest = export_bundle(model, arguments.output, str(name), report=report)
    except ParityError as error:
        raise CheckFailedError(f"{error}; nothing was written") from error
    print_gates(manifest.parity)
    size = sum(entry.size for entry in manifest.files.values()) / 2**20
    print(f"{arguments.output}: {len(manifest.files)} files, {size:.1f} MiB")
