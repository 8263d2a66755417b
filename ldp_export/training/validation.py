"""Validation: how much sharper the averaged weights make the held-out crops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldp_export.blur_map import center_view
from ldp_export.training.batches import Crop, collate
from ldp_export.training.log import side_by_side
from ldp_export.training.optimisation import Learner
from ldp_export.training.parallel import all_reduced

_BATCH = 16


@torch.no_grad()
def validate(learner: Learner, crops: Sequence[Crop], pictures: int) -> tuple[float, float, list[NDArray[np.float32]]]:
    """Restores crops with the averaged weights.

    Args:
        learner: The network.
        crops: The held-out crops.
        pictures: How many to draw, at most.

    Returns:
        The mean PSNR in dB of the center view and of the restoration, over the crops of all processes; and some of
        this process's crops, as ``side_by_side`` draws them.
    """
    fabric = learner.fabric
    rank, world = fabric.global_rank, fabric.world_size
    batches = [crops[i : i + _BATCH] for i in range(0, len(crops), _BATCH)]
    rounds = -(-len(batches) // world)  # every process runs as often: sharded weights need all of them
    sums = torch.zeros(3)
    drawn: list[NDArray[np.float32]] = []
    learner.model.eval()
    with learner.average.swapped_in():
        for place in range(rank, rounds * world, world):
            batch = collate(batches[min(place, len(batches) - 1)])
            restored = learner.model(*(t.to(fabric.device) for t in (batch.pair, batch.logits)))
            if place >= len(batches):
                continue
            restored = restored.clamp(0, 1).cpu()
            center = center_view(batch.pair[:, :3], batch.pair[:, 3:])
            sums += torch.tensor([_psnr(center, batch.target), _psnr(restored, batch.target), len(restored)])
            if len(drawn) < pictures:
                drawn += list(side_by_side(center, restored, batch.target, batch.logits))
    learner.model.train()
    before, after, count = all_reduced(fabric, sums, "sum").tolist()
    return before / count, after / count, drawn[:pictures]


def _psnr(images: Tensor, targets: Tensor) -> float:
    """The sum of the PSNR in dB of each image ``(B, 3, H, W)`` in [0, 1]."""
    return float((-10 * torch.log10((images - targets).square().mean((1, 2, 3)) + 1e-8)).sum())
