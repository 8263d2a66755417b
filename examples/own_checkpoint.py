"""Exports a checkpoint of your own as a bundle, checks it against PyTorch, and restores a pair with it.

Usage::

    python examples/own_checkpoint.py
    python examples/own_checkpoint.py runs/small/checkpoint -o bundles/small

``ldp-export onnx CHECKPOINT -o BUNDLE`` does the same from the shell.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ldp_export.bundling.onnx_graphs import ParityError, export_bundle
from ldp_export.checkpoint import Checkpoint
from ldp_export.model import model_from_checkpoint
from ldp_runtime import Deblurrer
from ldp_runtime.images.photo import read_photo
from ldp_runtime.images.quality import center_view, psnr

ROOT = Path(__file__).parent.parent


def main(argv: Sequence[str] | None = None) -> None:
    """Exports, prints the gates that passed, and scores the sample."""
    parser = argparse.ArgumentParser(description="Exports a checkpoint and restores the sample with it.")
    parser.add_argument("checkpoint", nargs="?", type=Path, default=ROOT / "models" / "checkpoints" / "ldp-nano")
    parser.add_argument("-o", "--output", type=Path, default=Path("my-bundle"), help="folder of the bundle")
    parser.add_argument("--pair", type=Path, default=ROOT / "samples" / "motorcycle", help="left, right and target.png")
    arguments = parser.parse_args(argv)

    model = model_from_checkpoint(Checkpoint.open(arguments.checkpoint))
    try:
        manifest = export_bundle(model, arguments.output, arguments.output.name, report=print)
    except ParityError as error:
        sys.exit(f"the graphs do not agree with PyTorch: {error}")
    for gate in manifest.parity["gates"]:
        print(f"{gate['name']}: {gate['value']:.3g}, {gate['is']} {gate['limit']:g}")

    left, right, target = (read_photo(arguments.pair / f"{name}.png").pixels for name in ("left", "right", "target"))
    result = Deblurrer.from_bundle(arguments.output)(left, right)
    peak = np.iinfo(target.dtype).max
    before, after = (psnr(image, target, data_range=peak) for image in (center_view(left, right), result.restored))
    print(f"PSNR {before:.2f} dB before, {after:.2f} dB after")


if __name__ == "__main__":
    main()
