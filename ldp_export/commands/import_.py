"""``ldp-export import``: bundles of checkpoints that other authors published."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldp_export.commands._parts import ArgumentError, check_folder, print_gates, step_bar
from ldp_export.network.published import PUBLISHED, Published
from ldp_runtime.command import CheckFailedError

if TYPE_CHECKING:
    from ldp_export.model import ExportModel

HELP = "Makes a bundle of a checkpoint that its authors published."
EXAMPLES = """\
examples:
  ldp-export import restormer dual_pixel_defocus_deblurring.pth -o bundles/restormer
  ldp-export import restormer --help
  ldp deblur left.png right.png -o sharp.png --bundle bundles/restormer

You download the file yourself; `ldp-export import NETWORK --help` says where
it lies and under which licence. Files are read without running code of theirs.
The bundle keeps the licence, the file's hash and what to cite; `ldp info` shows
them.

The graphs are compared with torch, and the figures go into the manifest. If the
FP32 graph fails nothing is written and the exit code is 1. If FP16 alone fails
the bundle has no FP16 graph, and if bf16 fails CPUs take FP32 by themselves.
"""

RELEASED_FILE = "model.pth"

_RELEASED = """\
examples:
  ldp-export import released model.pth -o bundles/ldp-released
  ldp-export import released model.pth -o bundles/ldp-released --clip-weights ViT-B-16.safetensors
  ldp-export import released model.pth -o bundles/ldp-dense --blur-map dense --clip-from models/checkpoints/ldp-nano

The released network differs from the paper's. Its blur map comes from patches
of 40 px, which CLIP sees one by one (--blur-map patch; ViT-B/16 with OpenAI's
weights, which are downloaded unless --clip-weights names a file). --blur-map
dense uses the paper's dense blur map instead, with the CLIP and the calibration
of a checkpoint folder; the network was not trained with that one.

The network pools over the whole image: run it full frame, not in tiles. Images
whose sides are no multiples of 16 px are padded before the network here and
inside it in the authors' code, so that these differ a little from theirs.

The repository of LDP's authors states no licence: a bundle must not be passed on.
"""

_PUBLISHED = """\
The authors publish {files}: {where}.
Licence: {licence}. A bundle {sharing}.
Cite: {cite}.
{millions:.2f} M parameters, checked against {source}.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    networks = parser.add_subparsers(required=True, metavar="NETWORK", title="networks")

    def add(name: str, title: str, files: tuple[str, ...], notes: str) -> argparse.ArgumentParser:
        added = networks.add_parser(
            name,
            help=title,
            description=f"Makes a bundle of {title}.",
            epilog=notes,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for file in files:
            added.add_argument(file, type=Path, help="the authors' file of this name, or of another")
        added.add_argument("-o", "--output", required=True, type=Path, metavar="BUNDLE", help="folder of the bundle")
        added.add_argument("--name", help="name of the bundle (default: that of its folder)")
        return added

    for network in PUBLISHED.values():
        if (weights := network.weights) is not None:
            notes = _PUBLISHED.format(
                files=" and ".join(weights.files),
                where=weights.where,
                licence=weights.licence,
                sharing=weights.sharing,
                cite=weights.cite,
                millions=network.parameters / 1e6,
                source=network.source,
            )
            wrapped = (
                textwrap.fill(line, 80, break_long_words=False, break_on_hyphens=False) for line in notes.splitlines()
            )
            notes = "\n".join(wrapped)
            published = add(network.name, network.title, weights.files, notes)
            published.set_defaults(load=partial(_load_published, network))
    released = add("released", "the network that LDP's authors released", (RELEASED_FILE,), _RELEASED)
    released.set_defaults(load=_load_released)
    released.add_argument(
        "--blur-map", choices=("patch", "dense"), default="patch", help="how it is estimated (default: patch)"
    )
    released.add_argument(
        "--clip", metavar="ARCHITECTURE", help="with patch: open_clip's name of a ViT, or a .json file (ViT-B/16)"
    )
    released.add_argument(
        "--clip-weights", metavar="FILE|TAG", help="with patch: its weights, a file or a tag to download (openai)"
    )
    released.add_argument(
        "--clip-from", metavar="CHECKPOINT", help="with dense: folder with clip.json, its weights and calibration.json"
    )


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    load: Callable[[Any], ExportModel] = arguments.load
    if load is _load_released:
        _check_released(arguments)
    check_folder(arguments.output, "bundle.json")

    from ldp_export.bundling.onnx_graphs import ParityError, export_bundle, steps
    from ldp_export.bundling.selftest import BF16_GATE

    model = load(arguments)
    name = arguments.name or arguments.output.absolute().name
    try:
        with step_bar(steps(model)) as report:
            manifest = export_bundle(model, arguments.output, name, report=report)
    except ParityError as error:
        raise CheckFailedError(f"{error}; nothing was written") from error
    print_gates(manifest.parity)
    print(f"{arguments.output}: bundle {name!r}, {len(manifest.files)} files")
    if "fp16" not in manifest.graphs["deblur"]:
        print("no FP16 graph, since it failed: run this bundle in FP32; there can be no engines of it")
    if not manifest.bf16:
        tried = any(gate["name"] == BF16_GATE for gate in manifest.parity["gates"])
        print(f"bf16 {'failed' if tried else 'cannot be tried on this CPU'}: on CPUs auto takes FP32")
    if origin := manifest.origin:
        print(f"licence: {origin.licence}; the bundle {origin.sharing}\ncite: {origin.cite}")


def _load_published(network: Published, arguments: argparse.Namespace) -> ExportModel:
    from ldp_export.importing.published import import_published

    names = network.weights.files if network.weights else ()
    return import_published(network, [getattr(arguments, name) for name in names])


def _load_released(arguments: argparse.Namespace) -> ExportModel:
    from ldp_export.checkpoint import Checkpoint
    from ldp_export.clip import load_clip
    from ldp_export.importing.released import ARCHITECTURE, WEIGHTS, dense_release, patch_release, read_release

    network, origin = read_release(getattr(arguments, RELEASED_FILE))
    if arguments.blur_map == "dense":
        return dense_release(network, Checkpoint.open(arguments.clip_from), origin)
    clip = load_clip(arguments.clip or ARCHITECTURE, arguments.clip_weights or WEIGHTS)
    return patch_release(network, clip, origin=origin)


def _check_released(arguments: argparse.Namespace) -> None:
    """Raises ArgumentError for options of the blur map that do not fit together."""
    dense = arguments.blur_map == "dense"
    if dense and (arguments.clip or arguments.clip_weights):
        raise ArgumentError("expected --clip-from with --blur-map dense, got --clip or --clip-weights; leave them out")
    if dense and not arguments.clip_from:
        raise ArgumentError(
            "expected --clip-from with --blur-map dense, got none; for example models/checkpoints/ldp-nano"
        )
    if not dense and arguments.clip_from:
        raise ArgumentError("expected --clip-from with --blur-map dense alone, got --blur-map patch; leave it out")
