"""Restores all pairs of a folder while others are read: ``Deblurrer.map`` reads ahead in a thread of its own.

Usage::

    python examples/stream_of_pairs.py
    python examples/stream_of_pairs.py photos restored --backend cuda

Resuming, failures of single pairs and many machines are the work of ``ldp batch``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ldp_runtime import Deblurrer
from ldp_runtime.batch.pairs import Pair, find_pairs
from ldp_runtime.images.pair_files import read_views
from ldp_runtime.images.photo import write_pixels

SAMPLES = Path(__file__).parent.parent / "samples"


def read(pairs: Sequence[Pair]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the views ``(h, w, 3)`` of each pair; sizes may differ."""
    for pair in pairs:
        views = read_views(pair.left, pair.right)
        yield views.left.pixels, views.right.pixels


def main(argv: Sequence[str] | None = None) -> None:
    """Finds pairs by their names and restores them in order."""
    parser = argparse.ArgumentParser(description="Restores all pairs of a folder.")
    parser.add_argument("folder", nargs="?", type=Path, default=SAMPLES)
    parser.add_argument("output", nargs="?", type=Path, default=Path("restored"))
    parser.add_argument("--bundle", default="ldp-nano", help="a name or a folder")
    parser.add_argument("--backend", default="auto")
    arguments = parser.parse_args(argv)

    pairs = find_pairs(arguments.folder, arguments.output).pairs
    deblurrer = Deblurrer.from_bundle(arguments.bundle, backend=arguments.backend)
    start = time.perf_counter()
    for pair, result in zip(pairs, deblurrer.map(read(pairs)), strict=True):
        target = arguments.output / pair.name.with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_pixels(target, result.restored)
        print(f"{target}: {result.timings['deblur']:.2f} s in the network")
    print(f"{len(pairs)} pairs in {time.perf_counter() - start:.2f} s on {deblurrer.backend}")


if __name__ == "__main__":
    main()
