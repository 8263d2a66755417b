"""Restores one pair: two files in, one file out.

Usage::

    python examples/one_pair.py
    python examples/one_pair.py left.tif right.tif -o sharp.tif --axis vertical
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ldp_runtime import Deblurrer
from ldp_runtime.images.pair_files import read_views
from ldp_runtime.images.photo import write_photo

SAMPLE = Path(__file__).parent.parent / "samples" / "motorcycle"


def main(argv: Sequence[str] | None = None) -> None:
    """Reads, restores, writes; the output has the depth, ICC profile and metadata of the left view."""
    parser = argparse.ArgumentParser(description="Restores one pair.")
    parser.add_argument("left", nargs="?", type=Path, default=SAMPLE / "left.png")
    parser.add_argument("right", nargs="?", type=Path, default=SAMPLE / "right.png")
    parser.add_argument("-o", "--output", type=Path, default=Path("restored.png"))
    parser.add_argument("--bundle", default="ldp-nano", help="a name or a folder")
    parser.add_argument("--axis", default="horizontal", choices=("horizontal", "vertical"))
    arguments = parser.parse_args(argv)

    views = read_views(arguments.left, arguments.right, axis=arguments.axis)
    deblurrer = Deblurrer.from_bundle(arguments.bundle)
    result = deblurrer(views.left.pixels, views.right.pixels, axis=views.axis)
    write_photo(arguments.output, replace(views.left, pixels=result.restored))

    for line in (*views.warnings, *result.notes):
        print(f"note: {line}")
    print(f"{deblurrer.reason}; {sum(result.timings.values()):.2f} s; wrote {arguments.output}")


if __name__ == "__main__":
    main()
