"""``ldp-export engine``: builds TensorRT engines into a bundle."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ldp_export.commands._parts import ArgumentError, say
from ldp_runtime.bundle.engines import ENGINE_PRECISION, FLAVOURS
from ldp_runtime.commands.options import parse_size
from ldp_runtime.errors import counted

if TYPE_CHECKING:
    from ldp_export.bundling.tensorrt_builder import Progress

HELP = "Builds TensorRT engines into a bundle; for RTX GPUs none need be there."
EXAMPLES = """\
examples:
  ldp-export engine my-bundle
  ldp-export engine my-bundle --shape 1120x1680 --arch sm_89
  ldp-export engine my-bundle --min 512x512 --opt 1024x1536 --max 2048x3072
  ldp-export engine my-bundle --flavour tensorrt

By default the engines take pairs from the smallest up to 2240x3360 px and are
tuned for 1120x1680; larger pairs are run in tiles. --shape makes engines for
one size alone, which are the fastest for it and need the least memory. Sizes
are padded as the bundle pads.

--flavour rtx (TensorRT-RTX) builds with no GPU, by default for sm_75, sm_86,
sm_89 and sm_120: an engine for Turing and one for all later ones.
--flavour tensorrt builds on and for the GPU that is there.

Engines are built from the bundle's FP16 graphs.

For TensorRT-RTX the deblur graph is cut in front of the first block that reads
the blur map, so that the part before runs beside CLIP, on a second stream. By
TensorRT-RTX's plans the two parts move as many bytes as the whole. --whole
leaves it whole, to compare; build it into a copy of the bundle, since where
both are there the two parts run.

The engines go into the bundle's folder engines/ and its manifest. What is there
already is not built again. A machine trusts the engines that it built; others
are asked with ldp trust.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a name that `ldp info` lists, or a folder")
    parser.add_argument(
        "--flavour",
        default="rtx",
        choices=tuple(FLAVOURS),
        help="TensorRT-RTX or the enterprise TensorRT (default: rtx)",
    )
    parser.add_argument(
        "--precision", default=ENGINE_PRECISION, type=_precision, help="of the engines, %(default)s alone"
    )
    parser.add_argument(
        "--whole", action="store_true", help="one deblur engine for TensorRT-RTX too, in place of two (see below)"
    )
    parser.add_argument("--arch", metavar="SM,...", help="GPUs to build for, such as sm_89,sm_120 (default: see below)")
    parser.add_argument("--shape", type=parse_size, metavar="HxW", help="one size in px, for the fastest engines")
    parser.add_argument("--min", type=parse_size, metavar="HxW", help="smallest size (default: the smallest there is)")
    parser.add_argument("--opt", type=parse_size, metavar="HxW", help="size to tune for (default: 1120x1680)")
    parser.add_argument("--max", type=parse_size, metavar="HxW", help="largest size (default: 2240x3360)")


def _precision(text: str) -> str:
    if text != ENGINE_PRECISION:
        raise argparse.ArgumentTypeError(
            f"expected {ENGINE_PRECISION}, got {text}; engines in 8 bits are withdrawn, since INT8 and ViT-B/32 in FP8 "
            "moved more bytes than FP16: leave it out, or on a CPU use --backend openvino --precision int8"
        )
    return text


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    from ldp_export.bundling.engine import SizeRange, build_engines
    from ldp_runtime.bundle.bundle import Bundle

    shape, asked = arguments.shape, [arguments.min, arguments.opt, arguments.max]
    if shape is not None and any(asked):
        raise ArgumentError("expected --shape alone or --min, --opt and --max, got both; leave one out")
    architectures = None if arguments.arch is None else [name.strip() for name in arguments.arch.split(",")]
    bundle = Bundle.load(arguments.bundle)
    padding = bundle.manifest.padding
    sizes = SizeRange.covering(padding, *asked) if shape is None else SizeRange.fixed(padding, shape)
    say(f"sizes, padded: {sizes}")
    flavour = arguments.flavour
    entries = build_engines(bundle, sizes, flavour, architectures, whole=arguments.whole, progress=_bar, report=say)
    size = sum(entry.total_size for entry in entries) / 2**20
    print(f"{bundle.path}: {counted(len(entries), 'engine')}, {size:.1f} MiB")


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Progress]:
    """A bar of the innermost phase's steps."""
    from tqdm import tqdm

    from ldp_export.bundling.tensorrt_builder import Progress

    with tqdm(desc=title, unit=" steps", disable=None, leave=False) as bar:

        class Bar(Progress):
            def start(self, phase: str, steps: int) -> None:
                bar.set_description(f"{title}: {phase}", refresh=False)
                bar.reset(total=steps)

            def step(self) -> None:
                bar.update()

        yield Bar()
