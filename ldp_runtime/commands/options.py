"""Options that several commands share, and the values that they take."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ldp_runtime.deblurrer import Deblurrer


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Declares ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")


def add_bundle_argument(parser: argparse.ArgumentParser) -> None:
    """Declares ``--bundle``."""
    parser.add_argument(
        "--bundle",
        default="ldp-nano",
        metavar="NAME|DIR",
        help="model bundle: a name that `ldp info` lists, or a folder (default: %(default)s)",
    )


def add_backend_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares ``--backend``, ``--precision`` and ``--threads``."""
    from ldp_runtime.backends.base import PRECISIONS
    from ldp_runtime.registry import BACKENDS

    for option, names, text, auto in (
        ("--backend", (*BACKENDS,), "what runs the networks", "the fastest that works"),
        ("--precision", PRECISIONS, "arithmetic of the networks", "the backend's own"),
    ):
        text = f"{text}: auto ({auto}), {', '.join(names)} (default: auto)"
        parser.add_argument(option, default="auto", choices=("auto", *names), metavar="NAME", help=text)
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: the backend's choice)")


def add_tile_argument(parser: argparse.ArgumentParser) -> None:
    """Declares ``--tile``."""
    parser.add_argument(
        "--tile",
        type=parse_tile,
        default="auto",
        metavar="auto|N|off",
        help="restore in blended tiles, which bounds memory: where the photo is too large for one piece (auto), always "
        "with sides of at most N px, or never (off) (default: %(default)s)",
    )


def add_check_arguments(parser: argparse.ArgumentParser, *, scale: bool = True, default: str = "auto") -> None:
    """Declares ``--check`` and, for commands that restore, ``--scale``."""
    from ldp_runtime.paircheck.modes import MODES
    from ldp_runtime.stages.scale_choice import SCALES

    parser.add_argument(
        "--check",
        default=default,
        choices=MODES,
        help="measure each pair first: correct exposure, axis, alignment, coding and bit depth, and refuse what would "
        "only do harm (auto), only say what seems wrong (warn), or neither (off) (default: %(default)s)",
    )
    if scale:
        parser.add_argument(
            "--scale",
            default="auto",
            choices=("auto", *SCALES),
            help="restore at a part of the size, for full-size files whose blur is beyond what the model knows; auto "
            "takes the largest scale at which the measured disparity fits (default: %(default)s)",
        )


def add_view_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares how the views of a pair are to be read, and ``--quiet``."""
    parser.add_argument(
        "--axis",
        default="horizontal",
        choices=("horizontal", "vertical"),
        help="how the sensor splits its pixels: vertical for top (LEFT) and bottom (RIGHT); a camera "
        "that was turned is known from EXIF (default: %(default)s)",
    )
    parser.add_argument("--swap", action="store_true", help="exchange the left and the right view")
    parser.add_argument(
        "--side-by-side", action="store_true", help="a picture holds both views, the left one in its left half"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print only warnings and errors")


def parse_tile(text: str) -> int | str:
    """The value of ``--tile``: ``auto``, ``off`` or a number of px; for argparse."""
    if text in ("auto", "off"):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected auto, off or a number of px, got {text!r}")
    return int(text)


def parse_size(text: str) -> tuple[int, int]:
    """A size ``HxW`` in px; for argparse."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"expected a size as HEIGHTxWIDTH in px, such as 1120x1680, got {text!r}")
    return int(sides[0]), int(sides[1])


def positive_int(text: str) -> int:
    """A whole number of at least 1; for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def parse_seed(text: str) -> int:
    """A whole number from 0 that every generator of random numbers takes; for argparse."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^63 - 1, got {text!r}")
    return int(text)


def positive_number(text: str) -> float:
    """A number above 0; for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def load(arguments: argparse.Namespace) -> Deblurrer:
    """Opens the bundle on the backend that the options name."""
    from ldp_runtime.deblurrer import Deblurrer

    return Deblurrer.from_bundle(
        arguments.bundle,
        backend=arguments.backend,
        precision=arguments.precision,
        threads=arguments.threads,
        tile=getattr(arguments, "tile", "auto"),  # commands that restore nothing have neither
        check=arguments.check,
        scale=getattr(arguments, "scale", "auto"),
    )


def start_loading(arguments: argparse.Namespace, *, restores: bool) -> Future[Deblurrer]:
    """Begins ``load`` in a thread of its own, and opens the graphs there too, while the caller reads the pair.

    Args:
        arguments: The options.
        restores: Whether pairs are restored; otherwise the blur map alone is wanted.
    """
    from concurrent.futures import ThreadPoolExecutor

    def work() -> Deblurrer:
        deblurrer = load(arguments)
        deblurrer.open(restores=restores)
        return deblurrer

    thread = ThreadPoolExecutor(1, thread_name_prefix="ldp-load")
    loading = thread.submit(work)
    thread.shutdown(wait=False)  # an unreadable pair is reported at once
    return loading


def require_blur_map(bundle: str) -> None:
    """Refuses, before any work, a bundle whose network reads no blur map.

    Raises:
        BundleError: It does not, or there is no such bundle.
    """
    from ldp_runtime.bundle.bundle import read_manifest
    from ldp_runtime.bundle.find import find_bundle

    read_manifest(find_bundle(bundle)).require_clip()
