"""Checkpointing: the state that a run resumes from, and checkpoints with their provenance."""

from __future__ import annotations

import io
import json
import math
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldp_export.checkpoint import CLIP_FILE, CLIP_WEIGHTS_FILE, save_checkpoint
from ldp_export.data import PairDataset
from ldp_export.training.config import StageConfig, TrainConfig, TrainingError, changes
from ldp_export.training.inputs import Inputs
from ldp_export.training.optimisation import Learner
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

_COUNTERS = ("step", "stage", "stage_step", "seconds", "stage_seconds", "best_db")


@dataclass
class Progress:
    """Steps, stages and seconds so far, those of the current stage, finished stages, and changed settings."""

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    seconds: float = 0.0
    stage_seconds: float = 0.0
    best_db: float = -math.inf
    history: list[dict[str, Any]] = field(default_factory=list)
    changed: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)

    def end_stage(self) -> None:
        """Moves on to the next stage."""
        self.history.append({"steps": self.stage_step, "seconds": round(self.stage_seconds, 1)})
        self.stage += 1
        self.stage_step, self.stage_seconds = 0, 0.0


class RunFolder:
    """The folder of a run; every process makes one, and rank 0 writes."""

    def __init__(self, path: Path, config: TrainConfig, inputs: Inputs, learner: Learner) -> None:
        """Keeps what checkpoints record."""
        self.path, self.state_file = path, path / STATE_FILE
        self._config, self._inputs, self._learner = config, inputs, learner
        self._writes = learner.fabric.global_rank == 0

    def save(self, progress: Progress) -> None:
        """Writes checkpoint and state, each in one step.

        The state comes last: a run that is killed between the two repeats the last steps and writes both.

        Raises:
            LDPError: The folder cannot be written.
        """
        state = self._learner.state()
        record = [self._config.to_dict(), progress.history, progress.changed, progress.scores]
        state |= {**{name: getattr(progress, name) for name in _COUNTERS}, "record": json.dumps(record)}
        self.write_checkpoint(CHECKPOINT_FOLDER, progress, state["ema"])
        if self._writes:
            buffer = io.BytesIO()  # torch, when it writes to a file, hides the system's error
            torch.save(state, buffer)
            try:
                write_whole({self.state_file: buffer.getvalue()})
            except OSError as error:
                raise TrainingError(cannot_write(self.state_file, error)) from error
        self._learner.fabric.barrier()

    def load(self) -> Progress:
        """The progress of a saved run, whose weights are loaded; that of a new run where there is no state.

        Raises:
            TrainingError: The state is damaged, or that of another run.
        """
        if not self.state_file.is_file():
            return Progress()
        try:
            state = torch.load(self.state_file, map_location="cpu", weights_only=True)
            before, history, changed, scores = json.loads(state["record"])
            counters = {name: state[name] for name in _COUNTERS}
        except Exception as error:  # torch.load raises errors of many kinds
            raise TrainingError(
                f"{self.state_file}: expected the state of a run, got {type(error).__name__}; delete the file, and "
                f"start from the weights with --set init={self.path / CHECKPOINT_FOLDER}"
            ) from error
        differing = changes(before, self._config.to_dict())
        if fixed := sorted({key.split(".")[0] for key in differing} & _FIXED):
            raise TrainingError(
                f"{self.path} holds a run with another {' and '.join(fixed)}; expected the same, or another folder"
            )
        progress = Progress(**counters, history=history, changed=changed, scores=scores)
        for key, (old, new) in differing.items():
            changed.append({"step": progress.step, "key": key, "from": old, "to": new})
            if self._writes:
                print(f"ldp-export: from step {progress.step} on {key} is {new!r}, it was {old!r}", file=sys.stderr)
        self._learner.load_state(state)
        return progress

    def write_checkpoint(self, folder: str, progress: Progress, weights: dict[str, Tensor]) -> None:
        """Writes a checkpoint of these weights into a folder of the run; every process waits for it.

        Raises:
            LDPError: The folder cannot be written.
        """
        if self._writes:
            inputs = self._inputs
            source = inputs.clip_folder.path
            save_checkpoint(
                self.path / folder,
                config=inputs.network.config,
                network=weights,
                clip_config=json.loads((source / CLIP_FILE).read_text(encoding="utf-8")),
                clip=inputs.clip.model.state_dict() if (source / CLIP_WEIGHTS_FILE).is_file() else None,
                prompts=inputs.prompts,
                training=self._provenance(progress),
            )
        self._learner.fabric.barrier()

    def _provenance(self, progress: Progress) -> dict[str, Any]:
        """The content of ``training.json``."""
        config, inputs, fabric = self._config, self._inputs, self._learner.fabric
        earlier = {} if inputs.start is None else inputs.start.training()
        blur_range = config.blur_range or earlier.get("blur_range")
        clip = inputs.clip_folder.training().get("clip")
        done = [*progress.history, {"steps": progress.stage_step, "seconds": round(progress.stage_seconds, 1)}]
        return {
            "name": config.name,
            "licences": config.licences or earlier.get("licences", {}),
            **({} if blur_range is None else {"blur_range": blur_range}),
            "deblur": {
                "complete": progress.stage == len(config.stages),
                "steps": progress.step,
                "seconds": round(progress.seconds, 1),
                "stages": [
                    {"losses": _losses(stage), **length}
                    for stage, length in zip(config.stages, done, strict=False)
                    if length["steps"]
                ],
                "data": [_described(dataset) for dataset in inputs.datasets],
                "validation": {"data": [_described(dataset) for dataset in inputs.held_out], **progress.scores},
                "parameters": self._learner.parameters,
                "processes": fabric.world_size,
                "config": config.to_dict(),
                "changes": progress.changed,
            },
            **({} if clip is None else {"clip": clip}),
            **({} if inputs.start is None else {"init": earlier}),
            "machine": {
                "device": _device_name(fabric.device),
                "threads": torch.get_num_threads(),
                "python": platform.python_version(),
                "torch": torch.__version__.split("+")[0],
            },
        }


def _described(dataset: PairDataset) -> dict[str, Any]:
    return {"dataset": dataset.name, "split": dataset.split, "pairs": len(dataset)}


def _losses(stage: StageConfig) -> dict[str, float]:
    weights = {name: getattr(stage.losses, name) for name in ("charbonnier", "psnr", "blur_aware", "blur_weighting")}
    return {name: weight for name, weight in weights.items() if weight}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
