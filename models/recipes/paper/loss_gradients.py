"""Gradients of the losses of the second stage: size and direction beside Charbonnier's.

They are computed on crops of held-out scenes with the weights of a checkpoint, with respect to the restored image and
to the network's parameters. The cosine to the gradient of the squared error shows whether a loss raises or lowers PSNR.
Run from the repository's root:

    python -m models.recipes.paper.loss_gradients --scenes runs/scenes
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import REPORTS
from benchmarks.harness.results import Report, publish
from benchmarks.harness.tables import markdown_table, significant
from ldp_export.blur_map import center_view, upsample_map
from ldp_export.checkpoint import Checkpoint
from ldp_export.data import open_dataset
from ldp_export.data.simulated import NAME
from ldp_export.evaluation.estimators import BlurEstimator
from ldp_export.frame_logits import chunk_logits, chunks
from ldp_export.training.batches import Batch, CropSource, collate, held_out_crops
from ldp_export.training.losses import FLOOR, BlurAwareMap, blur_aware, blur_weighting, charbonnier
from ldp_runtime.cache import cache_folder
from ldp_runtime.errors import LDPError

CROP = 128
FLOORS = (1e-2, 1e-1)
WINDOWS = (9, 17)
SQUARED_ERROR = "squared error"
CHARBONNIER = "Charbonnier"
_DENSEST = 0.01


def held_out_batch(checkpoint: Checkpoint, scenes: Path, count: int) -> Batch:
    """Crops of the held-out scenes with the blur logits of the checkpoint's CLIP.

    Raises:
        LDPError: The scenes or a part of the checkpoint are missing.
    """
    dataset, clip, config = open_dataset(NAME, scenes, "val"), checkpoint.clip(), checkpoint.config()
    patch = clip.encoder.patch
    estimator = BlurEstimator(clip, checkpoint.prompts(), checkpoint.windows(patch), config.multiple, config.ensemble)
    cache = cache_folder("blur-logits")
    logits = [z for chunk in chunks(len(dataset)) for z in chunk_logits(dataset, chunk, estimator, cache)]
    return collate(held_out_crops(CropSource([dataset], logits, patch, CROP), count))


def analyse(checkpoint: Checkpoint, batch: Batch) -> dict[str, Any]:
    """The gradients of every loss and of variants of the blur-weighting loss, as plain JSON values.

    Args:
        checkpoint: Network, CLIP and calibration.
        batch: Crops with their blur logits.

    Returns:
        ``rows``, one per loss; ``psnr_db`` of the center view and the restoration; the ``blur_aware`` loss of the
        center view and of the target, the least that a restoration should reach; and ``small_deviation``, of the
        pixels whose target deviates from the center view by less than the floor: their ``share`` of all pixels, the
        share of those that the blur map calls blurred, their part of the squared error and of the blur-weighting loss.
    """
    clip, network = checkpoint.clip(), checkpoint.network()
    patch = clip.encoder.patch
    blurred = BlurAwareMap(clip, checkpoint.prompts(), checkpoint.windows(patch))
    target, center = batch.target, center_view(batch.pair[:, :3], batch.pair[:, 3:])
    blur_map = upsample_map(batch.logits, patch)
    restored = network(batch.pair, batch.logits)
    logits = blurred(restored)
    losses = {
        CHARBONNIER: charbonnier(restored, target),
        SQUARED_ERROR: (restored - target).square().sum(1).mean(),
        "blur-aware, softplus": blur_aware(logits),
        "blur-aware, raw": blur_aware(logits, "raw"),
        "blur-weighting, Eq. 12 as printed": blur_weighting(restored, target, center, blur_map, "restored"),
        "blur-weighting": blur_weighting(restored, target, center, blur_map),
        **{
            f"blur-weighting, floor {floor:g}": blur_weighting(restored, target, center, blur_map, floor=floor)
            for floor in FLOORS
        },
        **{
            f"blur-weighting, window {side} px": blur_weighting(
                restored, target, center, blur_map, deviation_window=side
            )
            for side in WINDOWS
        },
    }
    parameters = list(network.parameters())
    image_gradients = {name: torch.autograd.grad(loss, restored, retain_graph=True)[0] for name, loss in losses.items()}
    weight_gradients = {name: _flat(loss, parameters) for name, loss in losses.items()}
    rows = []
    for name, loss in losses.items():
        energy = image_gradients[name].square().sum(1).flatten().sort(descending=True).values
        rows.append(
            {
                "loss": name,
                "value": loss.item(),
                "times_charbonnier": (weight_gradients[name].norm() / weight_gradients[CHARBONNIER].norm()).item(),
                "cosine_to_charbonnier": _cosine(weight_gradients[name], weight_gradients[CHARBONNIER]),
                "cosine_to_squared_error": _cosine(weight_gradients[name], weight_gradients[SQUARED_ERROR]),
                "image_cosine_to_squared_error": _cosine(image_gradients[name], image_gradients[SQUARED_ERROR]),
                "densest_percent": (energy[: int(_DENSEST * len(energy))].sum() / energy.sum()).item(),
            }
        )
    error = (restored.detach() - target).square().sum(1)
    deviation = (target - center).square().sum(1)
    weighted = error / deviation.clamp_min(FLOOR) * blur_map[:, 0]
    small = deviation < FLOOR
    with torch.no_grad():
        blur_aware_values = {
            name: blur_aware(blurred(image)).item() for name, image in (("center", center), ("target", target))
        }
    return {
        "crops": len(target),
        "crop": CROP,
        "psnr_db": {"center": _psnr(center, target), "restored": _psnr(restored.detach().clamp(0, 1), target)},
        "rows": rows,
        "blur_aware": blur_aware_values,
        "small_deviation": {
            "share": small.float().mean().item(),
            "blurred_share": (small & (blur_map[:, 0] > 0.5)).float().mean().item(),
            "of_squared_error": (error[small].sum() / error.sum()).item(),
            "of_blur_weighting": (weighted[small].sum() / weighted.sum()).item(),
        },
    }


def markdown(report: Report) -> str:
    """The page."""
    data = report.data
    small = data["small_deviation"]
    header = ["loss", "value", "gradient, times Charbonnier's", "cosine to Charbonnier's", "cosine to squared error's"]
    header += ["the same, of the image", "share of the top 1 % of pixels"]
    rows = [
        [
            row["loss"],
            significant(row["value"]),
            significant(row["times_charbonnier"]),
            *(f"{row[key]:.2f}" for key in ("cosine_to_charbonnier", "cosine_to_squared_error")),
            f"{row['image_cosine_to_squared_error']:.2f}",
            f"{row['densest_percent']:.0%}",
        ]
        for row in data["rows"]
    ]
    return "\n\n".join(
        [
            "# Gradients of the losses",
            f"{data['checkpoint']} on {data['crops']} crops of {data['crop']} px of held-out scenes; the center view "
            f"has {data['psnr_db']['center']:.2f} dB, the restoration {data['psnr_db']['restored']:.2f} dB. Losses "
            "are without their weights; gradients are with respect to the network's parameters unless stated "
            "otherwise. Written by `models/recipes/paper/loss_gradients.py`.",
            markdown_table(header, rows),
            f"Pixels whose target deviates from the center view by less than {FLOOR:g} are {small['share']:.0%} of "
            f"all, and {small['blurred_share']:.0%} of all are such pixels where the blur map says blurred. They have "
            f"{small['of_squared_error']:.0%} of the squared error and {small['of_blur_weighting']:.0%} of the "
            f"blur-weighting loss. The blur-aware loss is {significant(data['blur_aware']['center'])} for the center "
            f"view and {significant(data['blur_aware']['target'])} for the target.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, required=True, help="folder of shards, see ldp-export data render")
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("models/checkpoints/ldp-nano"), help="the network and its CLIP"
    )
    parser.add_argument("--crops", type=int, default=32, help="crops of the batch (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report")
    args = parser.parse_args(argv)
    try:
        checkpoint = Checkpoint.open(args.checkpoint)
        data = analyse(checkpoint, held_out_batch(checkpoint, args.scenes, args.crops))
        report = Report.new("loss_gradients", {"checkpoint": args.checkpoint.name, **data})
        publish(report, markdown(report), args.output)
    except LDPError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _flat(loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The gradient with respect to all parameters, as one vector."""
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one.flatten(), other.flatten(), 0))


def _psnr(image: Tensor, target: Tensor) -> float:
    errors = (image - target).square().mean((1, 2, 3))
    return float((-10 * torch.log10(errors + 1e-8)).mean())  # equal crops count as 80 dB, as in training


if __name__ == "__main__":
    sys.exit(main())
