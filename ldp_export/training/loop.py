"""The training loop: stages, mixed precision, averaged weights, validation, checkpoints and exact resume.

Everything that a step depends on is in the saved state or is a pure function of seed and step, so that a run killed at
any step and started again ends, on the same machine and CPU, with the very weights of one that was never killed.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric.wrappers import _FabricOptimizer
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from ldp_export.blur_map import center_view
from ldp_export.checkpoint import CLIP_FILE, CLIP_WEIGHTS_FILE, Checkpoint, save_checkpoint
from ldp_export.data import PairDataset, open_dataset
from ldp_export.evaluation.reference import BlurEstimator
from ldp_export.frame_logits import chunk_logits, chunks
from ldp_export.network import LDPNet
from ldp_export.training.batches import Batch, Batches, Crop, CropSource, collate, held_out_crops
from ldp_export.training.config import DataConfig, StageConfig, TrainConfig, TrainingError, changes
from ldp_export.training.log import RunLog, side_by_side
from ldp_export.training.losses import BlurAwareMap, total_loss
from ldp_export.training.optimisation import WeightAverage, decays, learning_rate, make_optimizer
from ldp_export.training.parallel import AUTOCAST, gathered, open_fabric, shards, spread, whole
from ldp_runtime.cache import cache_folder
from ldp_runtime.errors import one_line
from ldp_runtime.files import cannot_write, write_whole

STATE_FILE = "train.state.pt"
CHECKPOINT_FOLDER = "checkpoint"
"""Folder of the last checkpoint in that of a run."""

BEST_FOLDER = "best"
"""That of the checkpoint with the highest PSNR in validation."""

STAGES_FOLDER = "stages"
"""That of the checkpoints at the end of each stage, in folders numbered from 1."""

_FIXED = frozenset({"network", "init", "clip"})
"""Keys of the configuration that a run cannot change half-way."""

_VALIDATION_BATCH = 16
_CLOCK_STEPS = 10
"""Several processes agree on the time and on stopping once in so many steps."""


def train(config: TrainConfig, output: Path) -> Path:
    """Trains, or goes on with what ``output`` holds.

    Under torchrun this runs in every process.

    Args:
        config: The run.
        output: Folder of the run: checkpoints, which ``ldp-export onnx`` takes, in ``checkpoint/`` (the last),
            ``best/`` (the highest PSNR in validation) and ``stages/N/`` (the end of stage N, from 1); the log
            ``train.log.jsonl``, TensorBoard's files, and the state ``train.state.pt`` that a killed run resumes from.

    Returns:
        The folder of the last checkpoint.

    Raises:
        LDPError: Data, checkpoints or the configuration do not fit, or training diverged.
        KeyboardInterrupt: The run was interrupted or terminated; its state is saved.
    """
    return _Run(config, output).train()


class _From(Sampler[int]):
    """Counts from a number on, without end."""

    def __init__(self, start: int) -> None:
        self._start = start

    def __iter__(self) -> Iterator[int]:
        number = self._start
        while True:
            yield number
            number += 1


class _Run:
    """A run in this process: what it needs, where it stands, and the loop."""

    def __init__(self, config: TrainConfig, output: Path) -> None:
        self.config, self.output, self.state_file = config, output, output / STATE_FILE
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.fabric = open_fabric(config)
        self.rank, self.world = self.fabric.global_rank, self.fabric.world_size
        parts = config.accumulate * self.world
        if config.batch % parts:
            raise TrainingError(
                f"batch: expected a multiple of {parts}, which is `accumulate` times the processes, got {config.batch}"
            )
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{output} cannot be made: {error.strerror or error}; choose another") from error
        self._open_checkpoints()
        self._open_data()
        self._make_network()
        self.step = self.stage = self.stage_step = 0
        self.seconds = self.stage_seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.changed: list[dict[str, Any]] = []
        self.scores: dict[str, float] = {}
        self.best_db = -math.inf
        self.stopping = False
        if self.state_file.is_file():
            self._load_state()
        self.log = RunLog(output, self.step) if self.rank == 0 else None

    # --- setting up ---------------------------------------------------------------------------------------------

    def _open_checkpoints(self) -> None:
        """The network's configuration, CLIP, and what stage 2 needs of it."""
        config = self.config
        start = None if config.init is None else Checkpoint.open(config.init)
        clip_folder = start if config.clip is None else Checkpoint.open(config.clip)
        assert clip_folder is not None  # TrainConfig wants one of the two
        self.start, self.clip_folder, self.clip = start, clip_folder, clip_folder.clip()
        self.clip.model.requires_grad_(False)
        patch = self.clip.encoder.patch
        self.windows, self.prompts = clip_folder.windows(patch), clip_folder.prompts()
        network_config = config.network_config()
        if network_config is None:
            assert start is not None  # the same
            network_config = start.config()
        network_config = dataclasses.replace(network_config, ensemble=config.ensemble)
        self.network_config = network_config
        unit = math.lcm(patch, network_config.multiple)
        if config.crop % unit:
            raise TrainingError(f"crop: expected a multiple of {unit} px for this network and CLIP, got {config.crop}")
        self.blur_aware_map: nn.Module | None = None
        if any(stage.losses.blur_aware for stage in config.stages):
            blur_aware_map = BlurAwareMap(self.clip, self.prompts, self.windows, AUTOCAST[config.precision])
            blur_aware_map.check_size(config.crop)
            self.blur_aware_map = blur_aware_map.to(self.fabric.device)

    def _open_data(self) -> None:
        """The batches, and the crops of validation."""
        config = self.config
        estimator = BlurEstimator(
            self.clip,
            self.prompts,
            self.windows,
            self.network_config.multiple,
            config.ensemble,
            self.fabric.device,
        )
        self.datasets = [_open(data, f"data.{i}") for i, data in enumerate(config.data)]
        self.batches = Batches(
            self._source(self.datasets, estimator),
            seed=config.seed,
            batch=config.batch,
            parts=config.accumulate,
            rank=self.rank,
            world=self.world,
            flip=config.flip,
            permute_channels=config.permute_channels,
        )
        self.held_out: list[PairDataset] = []
        self.validation_crops: list[Crop] = []
        if config.validation is not None:
            self.held_out = [_open(data, f"validation.data.{i}") for i, data in enumerate(config.validation.data)]
            self.validation_crops = held_out_crops(self._source(self.held_out, estimator), config.validation.crops)

    def _source(self, datasets: list[PairDataset], estimator: BlurEstimator) -> CropSource:
        """Crops of data sets, with the blur logits that the processes compute together."""
        cache = cache_folder("blur-logits")
        parts = [(dataset, chunk) for dataset in datasets for chunk in chunks(len(dataset))]
        mine = tqdm(
            range(self.rank, len(parts), self.world),
            desc="blur logits",
            disable=None if self.rank == 0 else True,
            file=sys.stderr,
        )

        def of(i: int) -> list[NDArray[np.float32]]:
            dataset, chunk = parts[i]
            return chunk_logits(dataset, chunk, estimator, cache)

        logits = {i: of(i) for i in mine}
        self.fabric.barrier()
        for i in set(range(len(parts))) - logits.keys():  # by now in the cache, if there is one for all
            logits[i] = of(i)
        in_order = [z for i in range(len(parts)) for z in logits[i]]
        return CropSource(datasets, in_order, estimator.patch, self.config.crop)

    def _make_network(self) -> None:
        """The network, its optimiser and the average of its weights."""
        config = self.config
        torch.manual_seed(config.seed)
        network = LDPNet(self.network_config)
        if self.start is not None:
            network.load_state_dict(_weights_of(self.start, network))
        decayed = [decays(parameter) for parameter in network.parameters()]
        if not shards(self.fabric):  # which must be contiguous
            for parameter, decay in zip(network.parameters(), decayed, strict=True):
                if decay:
                    parameter.data = parameter.data.to(memory_format=torch.channels_last)
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        self.model = self.fabric.setup_module(network)
        optimizer = make_optimizer(config, list(self.model.parameters()), decayed)
        self.optimizer = cast(_FabricOptimizer, self.fabric.setup_optimizers(optimizer))
        self.average = WeightAverage(self.model, config.ema)

    # --- the loop -----------------------------------------------------------------------------------------------

    def train(self) -> Path:
        config = self.config
        self.model.train()
        with self._stop_signals():  # around the workers too: Ctrl-C reaches them as well, and shall not end them
            loader = iter(
                DataLoader(
                    self.batches,
                    batch_size=None,
                    sampler=_From(self.step * config.accumulate),
                    num_workers=config.workers,
                    pin_memory=self.fabric.device.type == "cuda",
                )
            )
            while self.stage < len(config.stages):
                self._train_stage(config.stages[self.stage], loader)
                self.history.append({"steps": self.stage_step, "seconds": round(self.stage_seconds, 1)})
                self.stage += 1
                self.stage_step, self.stage_seconds = 0, 0.0
                self.optimizer.optimizer.state.clear()
                self._write_checkpoint(self._averaged(), f"{STAGES_FOLDER}/{self.stage}")
                self._save(_Sums())
        if self.log is not None:
            self.log.close()
        return self.output / CHECKPOINT_FOLDER

    def _train_stage(self, stage: StageConfig, loader: Iterator[Batch]) -> None:
        config, every = self.config, self.config.validation.every if self.config.validation else 0
        start, before = time.monotonic() - self.stage_seconds, self.seconds - self.stage_seconds
        sums = _Sums()
        lap, lap_step = time.monotonic(), self.step
        bar = tqdm(
            total=stage.steps,
            initial=self.stage_step,
            desc=f"stage {self.stage + 1}/{len(config.stages)}",
            unit="step",
            disable=None if self.rank == 0 else True,
            file=sys.stderr,
        )
        with bar:
            while True:
                if self.world == 1 or self.stage_step % _CLOCK_STEPS == 0:
                    self.stage_seconds, stopping = self._agree(time.monotonic() - start)
                    self.seconds = before + self.stage_seconds
                    if stopping:
                        self._save(sums)
                        raise KeyboardInterrupt
                progress = self._progress(stage)
                if progress >= 1:
                    break
                rate = learning_rate(stage, self.stage_step, progress)
                sums.add(self._train_step(stage, loader, rate))
                self.step += 1
                self.stage_step += 1
                self.average.update(self.step)
                bar.update()
                logs, saves = self.step % config.log_every == 0, self.step % config.save_every == 0
                validates = bool(every) and self.step % every == 0
                if logs:
                    values = self._means(sums)
                    speed = (self.step - lap_step) * config.batch / (time.monotonic() - lap)
                    self._record({**values, "lr": rate, "patches_s": speed, "seconds": self.seconds}, "training")
                    bar.set_postfix(
                        done=f"{progress:.1%}", loss=f"{values['loss']:.4f}", lr=f"{rate:.1e}", refresh=False
                    )
                    sums = _Sums()
                if validates:
                    self._validate()
                if saves:
                    self._save(sums)
                if logs or validates or saves:
                    lap, lap_step = time.monotonic(), self.step
            self._means(sums)
        if every and self.step % every:
            self._validate()

    def _progress(self, stage: StageConfig) -> float:
        if stage.steps is not None:
            return self.stage_step / stage.steps
        assert stage.hours is not None  # StageConfig wants one of the two
        return self.stage_seconds / (3600 * stage.hours)

    def _train_step(self, stage: StageConfig, loader: Iterator[Batch], rate: float) -> dict[str, Tensor]:
        """One optimiser step; returns the losses, mean over this process's share of the batch."""
        config, fabric = self.config, self.fabric
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        for part in range(config.accumulate):
            batch = self._next(loader).to(fabric.device)
            with fabric.no_backward_sync(self.model, enabled=part + 1 < config.accumulate):
                restored = self.model(batch.pair, batch.logits)
                total, parts = total_loss(
                    stage.losses, restored, batch.target, batch.pair, batch.logits, self.blur_aware_map
                )
                fabric.backward(total / config.accumulate)
            for name, value in {"loss": total.detach(), **parts}.items():
                losses[name] = losses.get(name, 0.0) + value / config.accumulate
        if config.clip_gradient is not None:
            norm = fabric.clip_gradients(
                self.model, self.optimizer, max_norm=config.clip_gradient, error_if_nonfinite=False
            )
            losses["gradient_norm"] = whole(torch.as_tensor(norm)).detach()
        self.optimizer.step()
        return losses

    def _next(self, loader: Iterator[Batch]) -> Batch:
        """The next batch.

        Raises:
            TrainingError: A process that prepares batches was killed.
        """
        try:
            return next(loader)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                f"a process that prepares batches was killed, perhaps for want of memory ({one_line(error)}); run the "
                "same command again, which goes on from the saved state, or set workers lower"
            ) from error

    def _agree(self, seconds: float) -> tuple[float, bool]:
        """The time of rank 0, and whether any process was asked to stop."""
        told = torch.tensor([seconds if self.rank == 0 else 0.0, float(self.stopping)], dtype=torch.float64)
        seconds, stopping = self._all_reduce(told, "sum").tolist()
        return seconds, stopping > 0

    def _all_reduce(self, tensor: Tensor, operation: str) -> Tensor:
        """The "sum" or "mean" of a tensor over the processes, on the CPU."""
        reduced = self.fabric.all_reduce(tensor.to(self.fabric.device), reduce_op=operation)
        return cast(Tensor, reduced).cpu()

    def _means(self, sums: _Sums) -> dict[str, float]:
        """The mean of each loss over steps and processes.

        Raises:
            TrainingError: The loss became NaN or Inf.
        """
        values = {name: float(self._all_reduce(value, "mean")) for name, value in sums.means().items()}
        if not math.isfinite(values.get("loss", 0.0)):
            saved = f"the state in {self.output} is from before" if self.state_file.is_file() else "nothing was saved"
            raise TrainingError(
                f"expected a finite loss, got {values['loss']} by step {self.step}; {saved}: make "
                f"stages.{self.stage}.lr smaller, set clip_gradient, or use precision fp32"
            )
        return values

    @contextmanager
    def _stop_signals(self) -> Iterator[None]:
        """Within the block Ctrl-C and SIGTERM end the run after the step at hand, with its state saved."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.stopping = True

        numbers = (signal.SIGINT, signal.SIGTERM)
        try:
            before = {number: signal.signal(number, stop) for number in numbers}
        except ValueError:  # not in the main thread: whoever runs us handles signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # --- validation and logs --------------------------------------------------------------------------------------

    @torch.no_grad()
    def _validate(self) -> None:
        """Mean PSNR of the center view and of the restoration by the averaged weights, over the held-out crops."""
        assert self.config.validation is not None
        crops = self.validation_crops
        batches = [crops[i : i + _VALIDATION_BATCH] for i in range(0, len(crops), _VALIDATION_BATCH)]
        rounds = -(-len(batches) // self.world)  # every process runs as often: sharded weights need all of them
        sums = torch.zeros(3)
        pictures: list[NDArray[np.float32]] = []
        self.model.eval()
        with self.average.swapped_in():
            for place in range(self.rank, rounds * self.world, self.world):
                batch = collate(batches[min(place, len(batches) - 1)])
                restored = self.model(*(t.to(self.fabric.device) for t in (batch.pair, batch.logits)))
                if place >= len(batches):
                    continue
                restored = restored.clamp(0, 1).cpu()
                center = center_view(batch.pair[:, :3], batch.pair[:, 3:])
                sums += torch.tensor([_psnr(center, batch.target), _psnr(restored, batch.target), len(restored)])
                if len(pictures) < self.config.validation.images:
                    pictures += list(side_by_side(center, restored, batch.target, batch.logits))
        self.model.train()
        before, after, count = self._all_reduce(sums, "sum").tolist()
        self.scores = {
            "center_db": round(before / count, 3),
            "restored_db": round(after / count, 3),
            "gain_db": round((after - before) / count, 3),
        }
        self._record(self.scores, "validation")
        if after / count > self.best_db:
            self.best_db = after / count
            self._write_checkpoint(self._averaged(), BEST_FOLDER)
        if self.log is not None:
            for i, picture in enumerate(pictures[: self.config.validation.images]):
                self.log.picture(self.step, i, picture)

    def _record(self, values: dict[str, float], group: str) -> None:
        if self.log is not None:
            self.log.record(self.step, self.stage + 1, values, group)

    # --- saving and resuming --------------------------------------------------------------------------------------

    def _save(self, sums: _Sums) -> None:
        """Writes checkpoint and state, each in one step; not where the loss is NaN or Inf (see ``_means``).

        The state comes last: a run that is killed between the two does the last steps again, and writes both.
        """
        self._means(sums)
        state = {
            "net": gathered(self.model.state_dict()),
            "optimizer": gathered(self.optimizer.optimizer.state_dict()),
            "precision": self.fabric.strategy.precision.state_dict(),
            "step": self.step,
            "stage": self.stage,
            "stage_step": self.stage_step,
            "seconds": self.seconds,
            "stage_seconds": self.stage_seconds,
            "best_db": self.best_db,
            "ema": self._averaged(),
            "record": json.dumps([self.config.to_dict(), self.history, self.changed, self.scores]),
        }
        self._write_checkpoint(state["ema"], CHECKPOINT_FOLDER)
        if self.rank == 0:
            buffer = io.BytesIO()  # torch, when it writes to a file, does not hand on the system's error
            torch.save(state, buffer)
            try:
                write_whole({self.state_file: buffer.getvalue()})
            except OSError as error:
                raise TrainingError(cannot_write(self.state_file, error)) from error
        self.fabric.barrier()

    def _averaged(self) -> dict[str, Tensor]:
        """The averaged weights, whole and on the CPU; every process must ask."""
        with self.average.swapped_in():
            return cast(dict[str, Tensor], gathered(self.model.state_dict()))

    def _write_checkpoint(self, network: dict[str, Tensor], folder: str) -> None:
        """Writes a checkpoint of these weights into a folder of the run; every process waits for it."""
        if self.rank == 0:
            source = self.clip_folder.path
            save_checkpoint(
                self.output / folder,
                config=self.network_config,
                network=network,
                clip_config=json.loads((source / CLIP_FILE).read_text()),
                clip=self.clip.model.state_dict() if (source / CLIP_WEIGHTS_FILE).is_file() else None,
                prompts=self.prompts,
                training=self._provenance(),
            )
        self.fabric.barrier()

    def _load_state(self) -> None:
        """Goes on where the run stood."""
        try:
            state = torch.load(self.state_file, map_location="cpu", weights_only=True)
            before, self.history, self.changed, self.scores = json.loads(state["record"])
        except Exception as error:  # torch.load raises errors of many kinds
            raise TrainingError(
                f"{self.state_file}: expected the state of a run, got {type(error).__name__}; delete the file, and "
                f"start from the weights with --set init={self.output / CHECKPOINT_FOLDER}"
            ) from error
        differing = changes(before, self.config.to_dict())
        if fixed := sorted({key.split(".")[0] for key in differing} & _FIXED):
            raise TrainingError(
                f"{self.output} holds a run with another {' and '.join(fixed)}; expected the same, or another folder"
            )
        self.step, self.stage, self.stage_step = state["step"], state["stage"], state["stage_step"]
        self.seconds, self.stage_seconds = state["seconds"], state["stage_seconds"]
        self.best_db = state.get("best_db", -math.inf)  # states of earlier versions have none
        for key, (old, new) in differing.items():
            self.changed.append({"step": self.step, "key": key, "from": old, "to": new})
            if self.rank == 0:
                print(f"ldp-export: from step {self.step} on {key} is {new!r}, it was {old!r}", file=sys.stderr)
        with self.average.swapped_in():
            self._load_weights(state["ema"])
        self._load_weights(state["net"])
        optimizer = self.optimizer.optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for i, moments in state["optimizer"]["state"].items():
            for name, value in moments.items():
                if value.ndim:  # not the count of steps
                    moments[name] = spread(value, parameters[i])
        optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])

    def _load_weights(self, state: dict[str, Tensor]) -> None:
        mine = self.model.state_dict()
        self.model.load_state_dict({name: spread(value, mine[name]) for name, value in state.items()})

    def _provenance(self) -> dict[str, Any]:
        """What ``training.json`` says."""
        config = self.config
        earlier = {} if self.start is None else self.start.training()
        clip = self.clip_folder.training().get("clip")
        done = [*self.history, {"steps": self.stage_step, "seconds": round(self.stage_seconds, 1)}]
        return {
            "name": config.name,
            "licences": config.licences or earlier.get("licences", {}),
            "deblur": {
                "complete": self.stage == len(config.stages),
                "steps": self.step,
                "seconds": round(self.seconds, 1),
                "stages": [
                    {"losses": _losses(stage), **length}
                    for stage, length in zip(config.stages, done, strict=False)
                    if length["steps"]
                ],
                "data": [_described(dataset) for dataset in self.datasets],
                "validation": {"data": [_described(dataset) for dataset in self.held_out], **self.scores},
                "parameters": self.parameters,
                "processes": self.world,
                "config": config.to_dict(),
                "changes": self.changed,
            },
            **({} if clip is None else {"clip": clip}),
            **({} if self.start is None else {"init": earlier}),
            "machine": {
                "device": _device_name(self.fabric.device),
                "threads": torch.get_num_threads(),
                "python": platform.python_version(),
                "torch": torch.__version__.split("+")[0],
            },
        }


class _Sums:
    """Sums of the losses of some steps, on the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in losses.items()}
        self._count += 1

    def means(self) -> dict[str, Tensor]:
        return {name: value / self._count for name, value in self._sums.items()}


# --- parts ----------------------------------------------------------------------------------------------------


def _open(data: DataConfig, key: str) -> PairDataset:
    dataset = open_dataset(data.dataset, Path(data.folder), data.split)
    if len(dataset) == 0:
        raise TrainingError(f"{key}: expected pairs in {data.folder}, got none of the {data.split} split")
    return dataset


def _weights_of(start: Checkpoint, network: nn.Module) -> dict[str, Tensor]:
    state, expected = start.network().state_dict(), network.state_dict()
    if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in expected.items()}:
        raise TrainingError(
            f"init: expected weights of the network that is trained, got those of another, {start.config().name}, in "
            f"{start.path}; leave `network` out, or give another checkpoint"
        )
    return state


def _described(dataset: PairDataset) -> dict[str, Any]:
    return {"dataset": dataset.name, "split": dataset.split, "pairs": len(dataset)}


def _losses(stage: StageConfig) -> dict[str, float]:
    weights = {name: getattr(stage.losses, name) for name in ("charbonnier", "blur_aware", "blur_weighting")}
    return {name: weight for name, weight in weights.items() if weight}


def _psnr(images: Tensor, targets: Tensor) -> float:
    """The sum of the PSNR in dB of each image ``(B, 3, H, W)`` in [0, 1]."""
    return float((-10 * torch.log10((images - targets).square().mean((1, 2, 3)) + 1e-8)).sum())


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
