"""``ldp-export triton``: writes a model repository of Triton Inference Server."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldp_export.commands._parts import check_folder

VARIANT_NAMES = ("python", "onnxruntime", "tensorrt")

HELP = "Writes a bundle as a model repository of Triton Inference Server."
EXAMPLES = """\
examples:
  ldp-export triton ldp-nano -o repository
  ldp-export triton ldp-nano -o repository --bits 8 16 --instances 2 --threads 4
  ldp-export triton my-bundle -o repository --variant onnxruntime --openvino
  ldp-export triton my-bundle -o repository --variant tensorrt

Clients call the model ldp (8 bits) or ldp_uint16 (16 bits) with LEFT and RIGHT
(n, h, w, 3), and get RESTORED (n, h, w, 3) and BLUR_MAP (n, h, w), if the
network reads one. The README in the repository says how to start the server;
client.py there is an example.

--variant python serves everything in Triton's Python backend, on the CPU or
GPU; --backend and --threads are for it. With onnxruntime and tensorrt the two
graphs are models of those backends, ldp_clip and ldp_deblur, which the model
ldp asks, in fp32 and fp16 by default. tensorrt takes the engines of ldp-export
engine --flavour tensorrt.

An existing repository is replaced once the new one is complete.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See ``ldp_runtime.command.Command``."""
    from ldp_runtime.commands.options import (
        add_backend_arguments,
        add_check_arguments,
        add_tile_argument,
        parse_size,
    )

    parser.add_argument("bundle", metavar="BUNDLE", help="a name that `ldp info` lists, or a folder")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="REPO", help="folder of the repository")
    parser.add_argument(
        "--variant", default="python", choices=VARIANT_NAMES, help="what runs the graphs (default: %(default)s)"
    )
    parser.add_argument(
        "--bits",
        type=int,
        nargs="+",
        default=[8],
        choices=(8, 16),
        help="depths of the images, a model each (default: 8)",
    )
    parser.add_argument(
        "--instances", type=int, default=1, metavar="N", help="processes of each of these models (default: %(default)s)"
    )
    parser.add_argument(
        "--max-batch", type=int, default=8, metavar="N", help="pairs that one takes at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--max-delay",
        type=int,
        default=0,
        metavar="US",
        help="microseconds that a request waits for others to go with (default: %(default)s)",
    )
    parser.add_argument(
        "--max-queue",
        type=int,
        default=64,
        metavar="N",
        help="requests that may wait; further ones are refused (default: %(default)s)",
    )
    add_backend_arguments(parser)
    add_tile_argument(parser)
    add_check_arguments(parser, default="off")
    parser.add_argument(
        "--openvino", action="store_true", help="with the variant onnxruntime: OpenVINO executes the graphs on the CPU"
    )
    parser.add_argument(
        "--warm-up",
        type=parse_size,
        default="256x256",
        metavar="HxW",
        help="size of a pair that is run before the server is ready (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """See ``ldp_runtime.command.Command``."""
    from ldp_export.triton.repository import MARKER, write_repository
    from ldp_export.triton.serving import Serving
    from ldp_runtime.bundle.bundle import Bundle

    serving = Serving(
        variant=arguments.variant,
        bits=tuple(arguments.bits),
        instances=arguments.instances,
        max_batch=arguments.max_batch,
        max_delay=arguments.max_delay,
        max_queue=arguments.max_queue,
        backend=arguments.backend,
        precision=arguments.precision,
        threads=arguments.threads,
        tile=arguments.tile,
        pair_check=arguments.check,
        scale=arguments.scale,
        openvino=arguments.openvino,
        warm_up=arguments.warm_up,
    )
    check_folder(arguments.output, MARKER)
    names = write_repository(Bundle.load(arguments.bundle), arguments.output, serving)
    print(f"{arguments.output}: models {', '.join(names)}; README.md there says how to start the server")
