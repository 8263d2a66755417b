"""The configuration of a training run, checked key by key."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from ldp_export.network import CONFIGS, LDPConfig
from ldp_export.training.losses import LossConfig
from ldp_runtime.bundle.fields import BlurRange
from ldp_runtime.errors import LDPError
from ldp_runtime.stages.blur_map import ENSEMBLES
from ldp_runtime.structs import UnfitError, convert, one_of, shown

PAPER_LR = 2e-4
PAPER_FINAL_LR = 1e-6

_AtLeast1 = Annotated[int, Meta(ge=1)]
_AtLeast0 = Annotated[int, Meta(ge=0)]
_Positive = Annotated[float, Meta(gt=0)]
_Decay = Annotated[float, Meta(ge=0, lt=1)]


class TrainingError(LDPError):
    """A training run cannot be started or went wrong in a way that the user can fix."""


class DataConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """One split of a data set.

    Attributes:
        dataset: Name of the data set, as ``ldp-export data list`` prints it.
        folder: Its folder, relative to the folder in which the command runs.
        split: "train", "val" or "test".
    """

    dataset: str
    folder: str
    split: str = "train"


class ValidationConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What the restoration is measured on during training.

    Attributes:
        data: Data sets; the crops are spread over all of their pairs.
        every: Steps between validations; the end of each stage is validated too.
        crops: How many crops, the same ones every time.
        images: How many of them TensorBoard shows.
    """

    data: Annotated[tuple[DataConfig, ...], Meta(min_length=1)]
    every: _AtLeast1 = 1000
    crops: _AtLeast1 = 96
    images: _AtLeast0 = 4


class StageConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """One stage: its losses and its schedule, half a cosine from ``lr`` to ``final_lr``.

    Attributes:
        steps: How long it is, in optimiser steps; or
        hours: in hours of training. A run with hours depends on the machine's speed and cannot be repeated exactly.
        lr: Learning rate at the start.
        final_lr: Learning rate at the end.
        warmup: Steps over which the rate rises linearly to the cosine.
        losses: The losses and their weights.
    """

    steps: _AtLeast1 | None = None
    hours: _Positive | None = None
    lr: _Positive = PAPER_LR
    final_lr: _Positive = PAPER_FINAL_LR
    warmup: _AtLeast0 = 0
    losses: LossConfig = LossConfig()

    @property
    def share(self) -> float:
        """Its length, to be compared with that of the other stages."""
        return float(self.hours if self.steps is None else self.steps)  # type: ignore[arg-type]


class TrainConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A training run.

    Attributes:
        name: Name of the model; it goes into the checkpoint and the bundle.
        stages: The stages, first to last.
        data: What is trained on, each pair once an epoch.
        network: A name of ``CONFIGS``, or a mapping of ``LDPConfig``'s keys, in which ``base`` may name one of them to
            start from; None means that of ``init``.
        init: Folder of a checkpoint whose weights training starts from. Where ``network`` has more blocks in a level,
            the added ones come last and begin as the identity.
        clip: Folder of a checkpoint with CLIP and its calibration; None means those of ``init``.
        validation: See ``ValidationConfig``; None validates nothing.
        blur_logits: Where the blur logits come from: "clip", or "disparity", the data set's true disparity with errors
            like CLIP's (see ``true_blur``), where CLIP need not run.
        ensemble: The prompts of the blur logits: a name of Table 5's, or the number of a prompt; None means those that
            the network names.
        seed: Seed of weights and batches.
        crop: Side of the crops in px.
        batch: Crops of one optimiser step, over all processes.
        accumulate: In how many parts a process computes its share of a batch; it saves memory and changes nothing.
        flip: Flip crops at random; a horizontal flip swaps the views.
        permute_channels: Permute R, G and B of half of the crops.
        precision: Arithmetic of the network: "fp32", or mixed "bf16" or "fp16" (with loss scaling).
        betas: Adam's.
        weight_decay: AdamW's, of the convolutions' weights; with 0 it is Adam.
        clip_gradient: Largest norm of the gradient; None leaves it as it is.
        ema: Decay of the moving average of the weights; the checkpoint holds the average.
        device: "auto", "cpu" or "cuda".
        strategy: "ddp", or "fsdp" to shard weights and optimiser over the processes.
        workers: Processes that decode images, for each training process; 0 decodes in the training process.
        threads: Threads of each process on the CPU; None leaves torch's choice.
        log_every: Steps between lines of the log.
        save_every: Steps between saved states, from which a killed run resumes.
        blur_range: Largest radius in px of a circle of confusion in the data; it goes into the checkpoint and the
            bundle, and ``--scale auto`` goes by it. None is that of ``init``.
        licences: ``weights``, a licence, and ``data``, a list; they go into the checkpoint and the bundle.
    """

    name: str
    stages: Annotated[tuple[StageConfig, ...], Meta(min_length=1)]
    data: Annotated[tuple[DataConfig, ...], Meta(min_length=1)]
    network: Annotated[str, one_of(CONFIGS)] | dict[str, Any] | None = None
    init: str | None = None
    clip: str | None = None
    validation: ValidationConfig | None = None
    blur_logits: Annotated[str, one_of(("clip", "disparity"))] = "clip"
    ensemble: Annotated[str, one_of(ENSEMBLES)] | int | None = None
    seed: _AtLeast0 = 0
    crop: _AtLeast1 = 256
    batch: _AtLeast1 = 8
    accumulate: _AtLeast1 = 1
    flip: bool = True
    permute_channels: bool = False
    precision: Annotated[str, one_of(("fp32", "bf16", "fp16"))] = "bf16"
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    clip_gradient: _Positive | None = None
    ema: _Decay = 0.999
    device: Annotated[str, one_of(("auto", "cpu", "cuda"))] = "auto"
    strategy: Annotated[str, one_of(("ddp", "fsdp"))] = "ddp"
    workers: _AtLeast0 = 0
    threads: _AtLeast1 | None = None
    log_every: _AtLeast1 = 100
    save_every: _AtLeast1 = 1000
    blur_range: BlurRange | None = None
    licences: dict[str, Any] = {}

    def network_config(self) -> LDPConfig | None:
        """The network, or None where it is that of ``init``.

        Raises:
            TrainingError: The name or the mapping describes none.
        """
        if self.network is None:
            return None
        values = {"base": self.network} if isinstance(self.network, str) else dict(self.network)
        if (base := values.pop("base", None)) is not None:
            if not isinstance(base, str) or base not in CONFIGS:
                raise TrainingError(f"network.base: expected one of {', '.join(CONFIGS)}, got {shown(base)}")
            values = CONFIGS[base].to_dict() | values
        try:
            return LDPConfig.from_dict(values)
        except LDPError as error:
            raise TrainingError(f"network: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(msgspec.to_builtins(self)))
        return plain

    def with_hours(self, hours: float) -> TrainConfig:
        """The same run within ``hours`` hours, which its stages share as they share its length now."""
        if not hours > 0 or not math.isfinite(hours):
            raise TrainingError(f"expected more than 0 hours, got {hours}")
        whole = sum(stage.share for stage in self.stages)
        if len({stage.steps is None for stage in self.stages}) > 1:
            raise TrainingError("expected stages that all count steps or all count hours, got both; set each instead")
        stages = [msgspec.structs.replace(s, steps=None, hours=hours * s.share / whole) for s in self.stages]
        return msgspec.structs.replace(self, stages=tuple(stages))


def check_config(values: object) -> TrainConfig:
    """The configuration of these plain values, such as ``TrainConfig.to_dict`` gives.

    Raises:
        TrainingError: A key is unknown, missing or has a value that does not fit; the message names the key.
    """
    try:
        config = convert(values, TrainConfig)
        for misfit in _misfits(config):
            raise UnfitError.from_value(*misfit)
    except UnfitError as unfit:
        key = re.sub(r"\[(\d+)\]", r".\1", unfit.field)  # the form of --set
        raise TrainingError(f"{key}{unfit.problem}") from None
    config.network_config()
    return config


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two configurations, as ``TrainConfig.to_dict`` gives them: dotted key to both values."""
    flat = [dict(_flatten(values, "")) for values in (before, after)]
    keys = sorted(flat[0].keys() | flat[1].keys())
    return {k: (flat[0].get(k), flat[1].get(k)) for k in keys if flat[0].get(k) != flat[1].get(k)}


def _misfits(config: TrainConfig) -> Iterator[tuple[str, str, object]]:
    """What a type does not hold: each key that is wrong, what it should be, and what it is."""
    for key, value in _flatten(config.to_dict(), ""):
        if isinstance(value, float) and not math.isfinite(value):
            yield key, "a finite number", value
    for key, what in (("network", "a network"), ("clip", "a folder with CLIP")):
        if getattr(config, key) is None and config.init is None:
            yield key, f"{what}, or `init`", None
    for i, stage in enumerate(config.stages):
        if (stage.steps is None) == (stage.hours is None):
            yield f"stages.{i}.steps", "either steps or hours", "neither" if stage.steps is None else "both"
        if not stage.final_lr <= stage.lr < 1:
            yield f"stages.{i}.lr", "final_lr <= lr < 1", stage.lr
        if not any((stage.losses.charbonnier, stage.losses.psnr, stage.losses.blur_aware, stage.losses.blur_weighting)):
            yield f"stages.{i}.losses", "a weight above 0", msgspec.to_builtins(stage.losses)
        if stage.losses.deviation_window % 2 == 0:
            yield f"stages.{i}.losses.deviation_window", "an odd number of px", stage.losses.deviation_window


def _flatten(value: Any, key: str) -> list[tuple[str, Any]]:
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [pair for name, item in items for pair in _flatten(item, f"{key}.{name}" if key else str(name))]
    return [(key, value)]
