"""What a run starts from: checkpoints, pairs, and the blur logits that CLIP gives for them."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ldp_export.checkpoint import Checkpoint
from ldp_export.clip import LoadedClip
from ldp_export.data import PairDataset, open_dataset
from ldp_export.evaluation.estimators import BlurEstimator
from ldp_export.frame_logits import chunk_logits, chunks
from ldp_export.network import LDPNet
from ldp_export.training.batches import Batches, Crop, CropSource, held_out_crops
from ldp_export.training.config import DataConfig, TrainConfig, TrainingError
from ldp_export.training.losses import BlurAwareMap
from ldp_export.training.parallel import AUTOCAST
from ldp_export.training.true_blur import true_logits, with_errors
from ldp_runtime.bundle.manifest import Prompt
from ldp_runtime.cache import cache_folder
from ldp_runtime.stages.geometry import Padding


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a run starts from; ``start`` has the first weights, ``clip_folder`` CLIP and the calibrated prompts."""

    start: Checkpoint | None
    clip_folder: Checkpoint
    clip: LoadedClip
    prompts: tuple[Prompt, ...]
    network: LDPNet
    blur_aware_map: BlurAwareMap | None
    datasets: list[PairDataset]
    batches: Batches
    held_out: list[PairDataset]
    crops: list[Crop]


def open_inputs(config: TrainConfig, fabric: Fabric) -> Inputs:
    """Opens checkpoints and data; the processes compute blur logits together.

    Raises:
        LDPError: They do not fit each other or the configuration.
    """
    # What may be missing comes before CLIP, whose weights may have to be downloaded.
    datasets = _open_all(config.data, "data")
    held_out = [] if config.validation is None else _open_all(config.validation.data, "validation.data")
    start = None if config.init is None else Checkpoint.open(config.init)
    clip_folder = start if config.clip is None else Checkpoint.open(config.clip)
    assert clip_folder is not None  # a configuration has one of the two
    prompts = clip_folder.prompts()
    clip = clip_folder.clip()
    clip.model.requires_grad_(False)
    patch = clip.encoder.patch
    windows = clip_folder.windows(patch)
    network_config = config.network_config()
    if network_config is None:
        assert start is not None  # likewise
        network_config = start.config()
    if config.ensemble is not None:
        network_config = dataclasses.replace(network_config, ensemble=config.ensemble)
    unit = math.lcm(patch, network_config.multiple)
    if config.crop % unit:
        raise TrainingError(f"crop: expected a multiple of {unit} px for this network and CLIP, got {config.crop}")
    blur_aware_map = None
    if any(stage.losses.blur_aware for stage in config.stages):
        blur_aware_map = BlurAwareMap(clip, prompts, windows, AUTOCAST[config.precision])
        blur_aware_map.check_size(config.crop)
        blur_aware_map.to(fabric.device)
    make_source: Callable[[list[PairDataset]], CropSource]
    if config.blur_logits == "disparity":
        make_source = functools.partial(_true_source, padding=Padding(unit), patch=patch, crop=config.crop)
    else:
        multiple, ensemble = network_config.multiple, network_config.ensemble
        estimator = BlurEstimator(clip, prompts, windows, multiple, ensemble, fabric.device)
        make_source = functools.partial(_crop_source, estimator=estimator, crop=config.crop, fabric=fabric)
    batches = Batches(
        make_source(datasets),
        seed=config.seed,
        batch=config.batch,
        parts=config.accumulate,
        rank=fabric.global_rank,
        world=fabric.world_size,
        flip=config.flip,
        permute_channels=config.permute_channels,
        disturb=with_errors if config.blur_logits == "disparity" else None,
    )
    crops: list[Crop] = []
    if config.validation is not None:
        crops = held_out_crops(make_source(held_out), config.validation.crops)
    torch.manual_seed(config.seed)
    network = LDPNet(network_config)
    if start is not None:
        network.load_state_dict(_starting_weights(start, network))
    return Inputs(start, clip_folder, clip, prompts, network, blur_aware_map, datasets, batches, held_out, crops)


def _starting_weights(start: Checkpoint, network: LDPNet) -> dict[str, Tensor]:
    """The weights of ``init`` for the network, which may have more blocks: these begin as the identity."""
    given, wanted = start.config(), network.config
    depths = [(*config.encoder, config.middle, *config.decoder) for config in (given, wanted)]
    deeper = len(depths[0]) == len(depths[1]) and all(old <= new for old, new in zip(*depths, strict=True))
    same = deeper and wanted == dataclasses.replace(
        given,
        name=wanted.name,
        ensemble=wanted.ensemble,
        encoder=wanted.encoder,
        middle=wanted.middle,
        decoder=wanted.decoder,
    )
    if not same:
        raise TrainingError(
            f"init: expected weights of the network that is trained, got those of another, {given.name}, in "
            f"{start.path}; leave `network` out, add blocks to its levels alone, or give another checkpoint"
        )
    return network.state_dict() | start.network().state_dict()


def _open_all(data: Sequence[DataConfig], key: str) -> list[PairDataset]:
    datasets = []
    for i, one in enumerate(data):
        dataset = open_dataset(one.dataset, Path(one.folder), one.split)
        if len(dataset) == 0:
            raise TrainingError(f"{key}.{i}: expected pairs in {one.folder}, got none of the {one.split} split")
        datasets.append(dataset)
    return datasets


def _true_source(datasets: list[PairDataset], padding: Padding, patch: int, crop: int) -> CropSource:
    """Crops of data sets that know the disparity."""
    logits = [true_logits(dataset[i], padding, patch) for dataset in datasets for i in range(len(dataset))]
    return CropSource(datasets, logits, patch, crop)


def _crop_source(datasets: list[PairDataset], estimator: BlurEstimator, crop: int, fabric: Fabric) -> CropSource:
    """Crops of data sets; each process computes the blur logits of some chunks and reads the others from the cache."""
    cache = cache_folder("blur-logits")
    parts = [(dataset, chunk) for dataset in datasets for chunk in chunks(len(dataset))]
    own = range(fabric.global_rank, len(parts), fabric.world_size)
    disable = None if fabric.global_rank == 0 else True
    logits: dict[int, list[NDArray[np.float32]]] = {}
    for i in tqdm(own, desc="blur logits", disable=disable, file=sys.stderr):
        logits[i] = chunk_logits(parts[i][0], parts[i][1], estimator, cache)
    fabric.barrier()
    for i, (dataset, chunk) in enumerate(parts):
        if i not in logits:  # by now in the cache, if the processes share one
            logits[i] = chunk_logits(dataset, chunk, estimator, cache)
    return CropSource(datasets, [z for i in range(len(parts)) for z in logits[i]], estimator.patch, crop)
