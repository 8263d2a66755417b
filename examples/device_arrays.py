"""Restores a pair that lies on an NVIDIA GPU; the result stays there. Needs CuPy or torch, and a bundle with engines.

Usage::

    ldp-export engine my-bundle
    python examples/device_arrays.py --bundle my-bundle
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ldp_runtime import Deblurrer
from ldp_runtime.errors import LDPError
from ldp_runtime.images.photo import read_photo

SAMPLE = Path(__file__).parent.parent / "samples" / "motorcycle"


def find_library() -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """How to copy an array to the GPU, and how to view one that is there."""
    with contextlib.suppress(ImportError):
        import cupy

        if cupy.cuda.is_available():
            return cupy.asarray, cupy.asarray
    with contextlib.suppress(ImportError):
        import torch

        if torch.cuda.is_available():
            return lambda array: torch.from_numpy(array).cuda(), torch.utils.dlpack.from_dlpack
    sys.exit("skipped: expected an NVIDIA GPU with CuPy or torch, got none")


def main(argv: Sequence[str] | None = None) -> None:
    """Restores on the GPU, and computes the mean of the image there."""
    parser = argparse.ArgumentParser(description="Restores a pair that lies on a GPU.")
    parser.add_argument("--folder", type=Path, default=SAMPLE, help="with left.png and right.png")
    parser.add_argument("--bundle", default="ldp-nano", help="a bundle with engines for this GPU")
    parser.add_argument("--backend", default="cuda")
    arguments = parser.parse_args(argv)

    to_device, view = find_library()
    left, right = (to_device(read_photo(arguments.folder / f"{name}.png").pixels) for name in ("left", "right"))
    try:
        result = Deblurrer.from_bundle(arguments.bundle, backend=arguments.backend)(left, right)
    except LDPError as error:
        sys.exit(f"skipped: {error}")
    restored = view(result.restored)  # no copy; keep it until your streams have read it
    print(f"{tuple(restored.shape)} on {restored.device}, mean {float((restored / 1.0).mean()):.2f}")


if __name__ == "__main__":
    main()
