"""``ldp-export import-release``: a bundle of the checkpoint that the paper's authors released."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldp_export.commands._parts import ArgumentError, check_folder, print_gates, say
from ldp_runtime.command import CheckFailedError

HELP = "Makes a bundle of the authors' released checkpoint."
EXAMPLES = """\
examples:
  ldp-export import-release model.pth -o bundles/ldp-released
  ldp-export import-release model.pth -o bundles/ldp-released --clip-weights ViT-B-16.safetensors
  ldp-export import-release model.pth -o bundles/ldp-dense --blur-map dense --clip-from models/checkpoints/ldp-nano

The released network differs from the paper's. Its blur map comes from patches
of 40 px, which CLIP sees one by one (--blur-map patch; ViT-B/16 with OpenAI's
weights, which are downloaded unless --clip-weights names a file). --blur-map
dense uses the paper's dense blur map instead, with the CLIP and the calibration
of a checkpoint folder; the network was not trained with that one.

The network pools over the whole image: run it full frame, not in tiles. Images
whose sides are no multiples of 16 px are padded before the network here and
inside it in the authors' code, so that these differ a little from theirs.

The graphs are compared with torch, and the figures go into the manifest. If a
check fails nothing is written and the exit code is 1.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    parser.add_argument("model", metavar="MODEL.pth", type=Path, help="the released checkpoint")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="BUNDLE", help="folder of the bundle")
    parser.add_argument("--name", help="name of the bundle (default: that of its folder)")
    parser.add_argument(
        "--blur-map", choices=("patch", "dense"), default="patch", help="how it is estimated (default: patch)"
    )
    parser.add_argument(
        "--clip", metavar="ARCHITECTURE", help="with patch: open_clip's name of a ViT, or a .json file (ViT-B/16)"
    )
    parser.add_argument(
        "--clip-weights", metavar="FILE|TAG", help="with patch: its weights, a file or a tag to download (openai)"
    )
    parser.add_argument(
        "--clip-from", metavar="CHECKPOINT", help="with dense: folder with clip.json, its weights and calibration.json"
    )


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    dense = arguments.blur_map == "dense"
    if dense and (arguments.clip or arguments.clip_weights):
        raise ArgumentError("expected --clip-from with --blur-map dense, got --clip or --clip-weights; leave them out")
    if dense and not arguments.clip_from:
        raise ArgumentError(
            "expected --clip-from with --blur-map dense, got none; for example models/checkpoints/ldp-nano"
        )
    if not dense and arguments.clip_from:
        raise ArgumentError("expected --clip-from with --blur-map dense alone, got --blur-map patch; leave it out")
    check_folder(arguments.output, "bundle.json")

    from ldp_export.bundling.onnx_graphs import ParityError, export_bundle
    from ldp_export.checkpoint import Checkpoint
    from ldp_export.clip import load_clip
    from ldp_export.release import ARCHITECTURE, WEIGHTS, dense_release, patch_release, read_release

    network = read_release(arguments.model)
    if dense:
        model = dense_release(network, Checkpoint.open(arguments.clip_from))
    else:
        clip = load_clip(arguments.clip or ARCHITECTURE, arguments.clip_weights or WEIGHTS)
        model = patch_release(network, clip)
    name = arguments.name or arguments.output.absolute().name
    try:
        manifest = export_bundle(model, arguments.output, name, report=say)
    except ParityError as error:
        raise CheckFailedError(f"{error}; nothing was written") from error
    print_gates(manifest.parity)
    print(f"{arguments.output}: bundle {name!r}, {len(manifest.files)} files")
