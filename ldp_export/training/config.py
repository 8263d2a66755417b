"""The configuration of a training run: a YAML file, checked key by key."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from ldp_export.network import CONFIGS, LDPConfig
from ldp_export.training.losses import LossConfig
from ldp_runtime.errors import LDPError
from ldp_runtime.stages.blur_map import ENSEMBLES

PAPER_LR = 2e-4
PAPER_FINAL_LR = 1e-6

ConfigT = TypeVar("ConfigT")


class TrainingError(LDPError):
    """A training run cannot be started or went wrong in a way that the user can fix."""


@dataclass(frozen=True)
class DataConfig:
    """One split of a data set.

    Attributes:
        dataset: Name of the data set, as ``ldp-export data list`` prints it.
        folder: Where it lies; relative to the folder in which the command runs.
        split: "train", "val" or "test".
    """

    dataset: str
    folder: str
    split: str = "train"


@dataclass(frozen=True)
class ValidationConfig:
    """What the restoration is measured on while training goes on.

    Attributes:
        data: Data sets; the crops are spread over all of their pairs.
        every: Steps between validations; the end of each stage is validated too.
        crops: How many crops, the same ones every time.
        images: How many of them TensorBoard shows.
    """

    data: tuple[DataConfig, ...]
    every: int = 1000
    crops: int = 96
    images: int = 4

    def __post_init__(self) -> None:
        _need(bool(self.data), "data", "at least one data set", "none")
        for key in ("every", "crops"):
            _need(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        _need(self.images >= 0, "images", "at least 0", self.images)


@dataclass(frozen=True)
class StageConfig:
    """One stage: its losses and its own schedule, which falls as half a cosine from ``lr`` to ``final_lr``.

    Attributes:
        steps: How long it is, in optimiser steps; or
        hours: in hours of training. A run with hours depends on the machine's speed and cannot be repeated exactly.
        lr: Learning rate at the start.
        final_lr: Learning rate at the end.
        warmup: Steps over which the rate rises linearly to the cosine.
        losses: The losses and their weights.
    """

    steps: int | None = None
    hours: float | None = None
    lr: float = PAPER_LR
    final_lr: float = PAPER_FINAL_LR
    warmup: int = 0
    losses: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        given = [key for key in ("steps", "hours") if getattr(self, key) is not None]
        _need(len(given) == 1, "steps", "either steps or hours", " and ".join(given) or "neither")
        _need((self.steps or self.hours or 0) > 0, given[0], "more than 0", self.steps or self.hours or 0)
        _need(0 < self.final_lr <= self.lr < 1, "lr", "0 < final_lr <= lr < 1", f"{self.final_lr} and {self.lr}")
        _need(self.warmup >= 0, "warmup", "at least 0", self.warmup)
        weights = (self.losses.charbonnier, self.losses.blur_aware, self.losses.blur_weighting)
        fits = all(math.isfinite(weight) and weight >= 0 for weight in weights) and any(weights)
        _need(fits, "losses", "weights of at least 0, one of them more", weights)
        _need(self.losses.floor > 0, "losses.floor", "more than 0", self.losses.floor)
        window = self.losses.deviation_window
        _need(window >= 1 and window % 2 == 1, "losses.deviation_window", "an odd number of px", window)

    @property
    def share(self) -> float:
        """Its length, to be compared with that of the other stages."""
        return float(self.hours if self.steps is None else self.steps)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        name: Name of the model; it goes into the checkpoint and the bundle.
        stages: The stages, first to last.
        data: What is trained on, each pair once an epoch.
        network: "nano", "small", "large", or a mapping of ``LDPConfig``'s keys, in which ``base`` may name one of the
            three to start from; None takes that of ``init``.
        init: Folder of a checkpoint whose weights training starts from.
        clip: Folder of a checkpoint with CLIP and its calibration; None takes those of ``init``.
        validation: See ``ValidationConfig``; None validates nothing.
        ensemble: The prompts of the blur logits: "ens2", another name of Table 5's, or the number of a prompt.
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
        licences: ``weights``, a licence, and ``data``, a list; they go into the checkpoint and the bundle.
    """

    name: str
    stages: tuple[StageConfig, ...]
    data: tuple[DataConfig, ...]
    network: str | dict[str, Any] | None = None
    init: str | None = None
    clip: str | None = None
    validation: ValidationConfig | None = None
    ensemble: str | int = "ens2"
    seed: int = 0
    crop: int = 256
    batch: int = 8
    accumulate: int = 1
    flip: bool = True
    permute_channels: bool = False
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip_gradient: float | None = None
    ema: float = 0.999
    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    workers: int = 0
    threads: int | None = None
    log_every: int = 100
    save_every: int = 1000
    licences: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _need(bool(self.stages), "stages", "at least one", "none")
        _need(bool(self.data), "data", "at least one data set", "none")
        _need(self.network is not None or self.init is not None, "network", "a network, or `init`", "neither")
        _need(self.clip is not None or self.init is not None, "clip", "a folder with CLIP, or `init`", "neither")
        for key in ("crop", "batch", "accumulate", "log_every", "save_every"):
            _need(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        for key in ("seed", "workers", "weight_decay"):
            _need(getattr(self, key) >= 0, key, "at least 0", getattr(self, key))
        _need(self.threads is None or self.threads >= 1, "threads", "at least 1", self.threads)
        _need(0 <= self.ema < 1, "ema", "0 <= ema < 1", self.ema)
        _need(all(0 <= beta < 1 for beta in self.betas), "betas", "0 <= beta < 1", self.betas)
        _need(self.clip_gradient is None or self.clip_gradient > 0, "clip_gradient", "more than 0", self.clip_gradient)
        known = isinstance(self.ensemble, int) or self.ensemble in ENSEMBLES
        _need(known, "ensemble", f"{_listed(ENSEMBLES)} or the number of a prompt", repr(self.ensemble))
        json.dumps(self.licences)

    def network_config(self) -> LDPConfig | None:
        """The network, or None where it is that of ``init``.

        Raises:
            LDPError: The name or the mapping describes none.
        """
        if self.network is None:
            return None
        if isinstance(self.network, str):
            return _base(self.network, "network")
        values = dict(self.network)
        if (base := values.pop("base", None)) is not None:
            values = _base(base, "network.base").to_dict() | values
        return LDPConfig.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def with_hours(self, hours: float) -> TrainConfig:
        """The same run within ``hours`` hours, which its stages share as they share its length now."""
        if not hours > 0 or not math.isfinite(hours):
            raise TrainingError(f"expected more than 0 hours, got {hours}")
        whole = sum(stage.share for stage in self.stages)
        if len({stage.steps is None for stage in self.stages}) > 1:
            raise TrainingError("expected stages that all count steps or all count hours, got both; set each instead")
        stages = [dataclasses.replace(s, steps=None, hours=hours * s.share / whole) for s in self.stages]
        return dataclasses.replace(self, stages=tuple(stages))


def read_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads a configuration.

    Args:
        path: YAML with the keys of ``TrainConfig``. With ``extends: FILE``, relative to it, it holds changes to that
            configuration alone: mappings are merged, a mapping of places such as ``{1: ...}`` changes these entries of
            a list, and all else is replaced.
        overrides: ``KEY=VALUE`` each: a dotted key such as ``stages.0.steps``, and YAML.

    Raises:
        TrainingError: The file cannot be read, or a key is unknown, missing or has a value that does not fit; the
            message names the key.
    """
    import yaml

    values = _read_values(path, ())
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise TrainingError(f"expected --set KEY=VALUE, got {override!r}; for example --set stages.0.steps=1000")
        try:
            _set(values, key, yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise TrainingError(f"--set {key}: expected YAML, got {text!r}") from error
    try:
        config = _build(TrainConfig, values, "")
        config.network_config()
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}") from error
    except LDPError as error:
        raise TrainingError(f"{path}: network: {error}") from error
    return config


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two configurations, as ``TrainConfig.to_dict`` gives them: dotted key to both values."""
    flat = [dict(_flatten(values, "")) for values in (before, after)]
    keys = sorted(flat[0].keys() | flat[1].keys())
    return {k: (flat[0].get(k), flat[1].get(k)) for k in keys if flat[0].get(k) != flat[1].get(k)}


# --- parts ----------------------------------------------------------------------------------------------------


def _read_values(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    """The parsed YAML of a file, over that of the file that it extends; ``before`` are those that extend this one."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"expected a configuration in {path}, which cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise TrainingError(f"{path}: expected YAML, got {' '.join(str(error).split())}; fix it") from error
    if not isinstance(values, dict):
        raise TrainingError(f"{path}: expected keys and values, got {type(values).__name__}; fix it")
    if (extended := values.pop("extends", None)) is None:
        return values
    if not isinstance(extended, str):
        raise TrainingError(f"{path}: extends: expected the name of a file, got {extended!r}")
    chain = (*before, path.resolve())
    base = path.parent / extended
    if base.resolve() in chain:
        raise TrainingError(f"{path}: extends: expected another file, got {extended}, which extends this one")
    return _merged(_read_values(base, chain), values)


def _merged(base: dict[Any, Any], changed: dict[Any, Any]) -> dict[Any, Any]:
    """``base`` with the values of ``changed``, mappings merged in turn; see ``read_config``."""
    merged = dict(base)
    for key, value in changed.items():
        old = merged.get(key)
        if isinstance(old, list) and isinstance(value, dict) and all(place in range(len(old)) for place in value):
            merged[key] = list(_merged(dict(enumerate(old)), value).values())
        else:
            merged[key] = _merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def _flatten(value: Any, key: str) -> list[tuple[str, Any]]:
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [pair for name, item in items for pair in _flatten(item, f"{key}.{name}" if key else str(name))]
    return [(key, value)]


def _base(name: object, key: str) -> LDPConfig:
    if not isinstance(name, str) or name not in CONFIGS:
        raise TrainingError(f"{key}: expected {_listed(CONFIGS)}, got {name!r}")
    return CONFIGS[name]


def _listed(names: Any) -> str:
    *most, last = [str(name) for name in names]
    return f"{', '.join(most)} or {last}" if most else last


def _need(fits: bool, key: str, expected: str, got: object) -> None:
    if not fits:
        raise TrainingError(f"{key}: expected {expected}, got {got}")


def _set(values: Any, key: str, value: Any) -> None:
    """Sets a dotted key in nested mappings and lists; mappings are made where they lack."""
    *parents, last = key.split(".")
    for i, name in enumerate(parents):
        where = ".".join(parents[: i + 1])
        if isinstance(values, list):
            values = values[_place(values, name, where)]
        elif isinstance(values, dict):
            if values.get(name) is None:
                values[name] = {}
            values = values[name]
    if isinstance(values, list):
        values[_place(values, last, key)] = value
    elif isinstance(values, dict):
        values[last] = value
    else:
        raise TrainingError(f"--set {key}: expected keys or a list at {'.'.join(parents)}, got {values!r}")


def _place(values: list[Any], name: str, key: str) -> int:
    if not name.isdigit() or int(name) >= len(values):
        raise TrainingError(f"--set {key}: expected a number from 0 to {len(values) - 1}, got {name!r}")
    return int(name)


def _build(cls: type[ConfigT], values: object, key: str) -> ConfigT:
    """Makes a configuration dataclass of parsed YAML, with errors that name the dotted key."""
    if not isinstance(values, dict):
        raise TrainingError(f"{key}: expected keys and values, got {values!r}")
    prefix = f"{key}." if key else ""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(str(name) for name in values.keys() - fields.keys()):
        raise TrainingError(f"{prefix}{unknown[0]}: unknown key; expected {_listed(fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise TrainingError(f"{prefix}{name}: missing; add it")
    arguments = {name: _convert(hints[name], value, f"{prefix}{name}") for name, value in values.items()}
    try:
        return cls(**arguments)
    except TrainingError as error:
        raise TrainingError(f"{prefix}{error}") from error


def _convert(hint: Any, value: Any, key: str) -> Any:
    """Checks a parsed value against a type hint and returns it as that type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        choices = [choice for choice in arguments if choice is not type(None)]
        for choice in choices:
            try:
                return _convert(choice, value, key)
            except TrainingError:
                if choice is choices[-1]:
                    raise
    if origin is Literal:
        if value not in arguments:
            raise TrainingError(f"{key}: expected {_listed(arguments)}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise TrainingError(f"{key}: expected a list, got {value!r}")
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], item, f"{key}.{i}") for i, item in enumerate(value))
        if len(value) != len(arguments):
            raise TrainingError(f"{key}: expected a list of {len(arguments)}, got {value!r}")
        return tuple(_convert(h, v, f"{key}.{i}") for i, (h, v) in enumerate(zip(arguments, value, strict=True)))
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast("type[Any]", hint), value, key)
    return _scalar(origin or hint, value, key)


def _scalar(hint: Any, value: Any, key: str) -> Any:
    if hint is float:
        try:  # YAML 1.1 reads 2e-4 as text
            number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise TrainingError(f"{key}: expected a number, got {value!r}")
        return number
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    names = {int: "a whole number", str: "text", bool: "true or false", dict: "keys and values"}
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TrainingError(f"{key}: expected {names[hint]}, got {value!r}")
    return value
