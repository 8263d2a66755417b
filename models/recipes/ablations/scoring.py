"""Scores of the ablation's networks: simulated scenes with the true, CLIP's and a blank blur map, and real pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ldp_export.checkpoint import Checkpoint
from ldp_export.data import PairDataset, PairSample, open_dataset
from ldp_export.data.simulated import NAME, SHARP_DISPARITY
from ldp_export.evaluation.estimators import BlurEstimator, pad_pair, upload
from ldp_export.evaluation.metrics import psnr, rank_disagreement, ssim
from ldp_export.evaluation.photographs import matched_psnr, unit_range
from ldp_export.frame_logits import chunk_logits, chunks
from ldp_export.network import LDPNet
from ldp_export.training.true_blur import true_logits
from ldp_runtime.cache import cache_folder
from ldp_runtime.images.quality import center_view
from ldp_runtime.stages.blur_map import upsample_map
from ldp_runtime.stages.geometry import Padding

Logits = Sequence[NDArray[np.float32]]
MAPS = ("true", "clip", "blank")
"""What the network is given as the blur map: that of the true disparity, CLIP's, and one that says nothing."""

CENTER = "center"


def clip_estimator(checkpoint: Checkpoint, multiple: int, ensemble: str | int = "ens2") -> BlurEstimator:
    """CLIP of a checkpoint, for pairs padded to a multiple of so many px."""
    clip = checkpoint.clip()
    windows, prompts = checkpoint.windows(clip.encoder.patch), checkpoint.prompts()
    return BlurEstimator(clip, prompts, windows, multiple, ensemble)


def clip_logits(dataset: PairDataset, estimator: BlurEstimator) -> list[NDArray[np.float32]]:
    """CLIP's blur logits of all pairs, computed once on a machine."""
    cache = cache_folder("blur-logits")
    return [z for chunk in chunks(len(dataset)) for z in chunk_logits(dataset, chunk, estimator, cache)]


def score_scenes(network: LDPNet, scenes: Path, estimator: BlurEstimator) -> dict[str, dict[str, float]]:
    """Means over the held-out scenes of PSNR in dB, SSIM, and PSNR of the scenes that are blurred somewhere.

    Args:
        network: The network.
        scenes: Folder of shards.
        estimator: CLIP.

    Returns:
        ``CENTER`` and each of ``MAPS`` -> "psnr", "ssim", "psnr_blurred". A network that reads no blur map has "blank"
        alone.
    """
    dataset = open_dataset(NAME, scenes, "val")
    maps: dict[str, Logits] = {
        "true": [true_logits(dataset[i], estimator.padding, estimator.patch) for i in range(len(dataset))],
        "clip": clip_logits(dataset, estimator),
    }
    maps["blank"] = [np.zeros_like(z) for z in maps["true"]]
    if not network.config.reads_blur_map:
        maps = {"blank": maps["blank"]}
    blurred = dataset.subsets()["blurred"]
    values: dict[str, list[tuple[float, float]]] = {what: [] for what in (CENTER, *maps)}
    for index, name in enumerate(dataset.names()):
        sample = dataset[index]
        assert sample.name == name
        values[CENTER].append(_scores(center_view(sample.left, sample.right), sample))
        for what, logits in maps.items():
            values[what].append(_scores(restore(network, sample, logits[index], estimator.padding), sample))
    hit = np.array([name in blurred for name in dataset.names()])
    figures = {}
    for what, rows in values.items():
        table = np.array(rows)
        figures[what] = {
            "psnr": float(table[:, 0].mean()),
            "ssim": float(table[:, 1].mean()),
            "psnr_blurred": float(table[hit, 0].mean()),
        }
    return figures


def score_photographs(
    network: LDPNet, dataset: PairDataset, estimator: BlurEstimator
) -> dict[str, dict[str, dict[str, float]]]:
    """Means over real pairs of PSNR and matched PSNR in dB, with CLIP's map and a blank one.

    Args:
        network: The network.
        dataset: Pairs with targets; grey ones count one channel.
        estimator: CLIP.

    Returns:
        Each subset, or "all" -> ``CENTER``, "clip", "blank" -> "psnr", "matched_psnr".
    """
    logits = clip_logits(dataset, estimator)
    values: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for index, name in enumerate(dataset.names()):
        sample = dataset[index]
        assert sample.target is not None  # such pairs are asked for
        images = {CENTER: center_view(sample.left, sample.right)}
        for what in ("clip", "blank") if network.config.reads_blur_map else ("blank",):
            z = logits[index] if what == "clip" else np.zeros_like(logits[index])
            images[what] = restore(network, sample, z, estimator.padding)
        groups = [group for group, members in dataset.subsets().items() if name in members] or ["all"]
        target = unit_range(sample.target, sample.peak)
        for what, image in images.items():
            picture = unit_range(image, sample.peak)
            scores = psnr(picture, target, data_range=1.0), matched_psnr(picture, target)
            for group in groups:
                values.setdefault(group, {}).setdefault(what, []).append(scores)
    return {
        group: {
            what: dict(zip(("psnr", "matched_psnr"), map(float, np.mean(rows, 0)), strict=True))
            for what, rows in maps.items()
        }
        for group, maps in values.items()
    }


def restore(
    network: LDPNet, sample: PairSample, logits: NDArray[np.float32], padding: Padding
) -> NDArray[np.unsignedinteger]:
    """Restores a pair in FP32; the image has the views' dtype.

    Args:
        network: The network.
        sample: The pair.
        logits: Blur logits of the padded pair.
        padding: The size rule of the pair.
    """
    h, w = sample.left.shape[:2]
    with torch.inference_mode():
        pair = pad_pair(upload((sample.left, sample.right), torch.device("cpu")), padding)[None]
        restored = network(pair, torch.from_numpy(logits)[None, None])[0, :, :h, :w]
    image = restored.clamp(0, 1).permute(1, 2, 0).numpy()
    return np.rint(image * sample.peak).astype(sample.left.dtype)


def score_maps(dataset: PairDataset, logits: Logits, patch: int) -> dict[str, float]:
    """Accuracy and balanced accuracy over all pixels of a data set, and the mean of 1 - |rho_s| over its pairs.

    Args:
        dataset: Pairs with disparity.
        logits: Blur logits of each pair, one value per patch.
        patch: Side of a patch in px.
    """
    counts = np.zeros((2, 2), np.int64)  # truth, prediction
    disagreements = []
    for index, z in enumerate(logits):
        disparity = dataset[index].disparity
        assert disparity is not None  # rendered scenes have one
        known = np.isfinite(disparity)
        distance = np.abs(disparity[known])
        blur_map = upsample_map(z, disparity.shape, patch)[known]
        truth, predicted = distance > SHARP_DISPARITY, blur_map > 0.5
        np.add.at(counts, (truth.astype(int), predicted.astype(int)), 1)
        if np.ptp(distance) and np.ptp(blur_map):
            disagreements.append(rank_disagreement(blur_map, distance))
    recalls = np.diag(counts) / counts.sum(1)
    return {
        "accuracy": float(np.trace(counts) / counts.sum()),
        "balanced_accuracy": float(recalls.mean()),
        "rank_disagreement": float(np.mean(disagreements)),
    }


def _scores(image: NDArray[np.unsignedinteger], sample: PairSample) -> tuple[float, float]:
    assert sample.target is not None  # rendered scenes have one
    peak = float(sample.peak)
    return psnr(image, sample.target, data_range=peak), ssim(image, sample.target, data_range=peak)
