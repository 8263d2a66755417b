"""The log of a run: one line of JSON per record, TensorBoard's curves and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ldp_export.blur_map import upsample_map
from ldp_export.training.config import TrainingError
from ldp_runtime.files import cannot_write, write_files
from ldp_runtime.images.visualize import colour_blur_map

LOG_FILE = "train.log.jsonl"


class RunLog:
    """The log of a run, written by one process."""

    def __init__(self, folder: Path, step: int) -> None:
        """Opens the log and drops records of steps that will be repeated.

        Args:
            folder: Of the run.
            step: Steps that are done.
        """
        self._file = folder / LOG_FILE
        lines = self._file.read_text(encoding="utf-8").splitlines() if step and self._file.is_file() else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_files({self._file: "".join(f"{line}\n" for line in kept).encode()})
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def record(self, step: int, stage: int, values: Mapping[str, float], group: str) -> None:
        """A line of the log and points of TensorBoard's curves ``group/name``.

        Raises:
            TrainingError: They cannot be written.
        """
        line = {"step": step, "stage": stage, **{name: float(f"{value:.6g}") for name, value in values.items()}}
        try:
            with self._file.open("a") as file:
                file.write(json.dumps(line) + "\n")
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)
            self._writer.flush()
        except OSError as error:
            raise TrainingError(
                f"{cannot_write(self._file, error)}, and run the same command again, which goes on from the saved state"
            ) from error

    def picture(self, step: int, number: int, panels: NDArray[np.float32]) -> None:
        """A validation crop in TensorBoard, as ``side_by_side`` gives it."""
        self._writer.add_image(f"crop {number}: center, restored, target, blur map", panels, step)

    def close(self) -> None:
        """Writes the rest."""
        self._writer.close()


def _step_of(line: str) -> float:
    """The step of a line of the log; infinite where a full disk cut the line short."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def side_by_side(center: Tensor, restored: Tensor, target: Tensor, logits: Tensor) -> NDArray[np.float32]:
    """Pictures of crops: center view, restored, target and blur map.

    Args:
        center: ``(B, 3, s, s)`` in [0, 1].
        restored: The same.
        target: The same.
        logits: Blur logits ``(B, 1, s / p, s / p)``.

    Returns:
        ``(B, 3, s, 4 s)`` in [0, 1].
    """
    maps = upsample_map(logits, center.shape[2] // logits.shape[2])[:, 0].numpy()
    coloured = np.stack([colour_blur_map(m) for m in maps]).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return np.concatenate([*(t.numpy() for t in (center, restored, target)), coloured], axis=3)
