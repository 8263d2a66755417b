"""The training loop: stages, losses over steps, logging, validating, saving and stopping.

Everything that a step depends on is in the saved state or is a pure function of seed and step, so that a run killed at
any step and started again ends, on the same machine and CPU, with the very weights of one that was never killed.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor
from tqdm import tqdm

from ldp_export.training.batches import Batch, killed_workers, stream
from ldp_export.training.config import StageConfig, TrainConfig, TrainingError, check_config
from ldp_export.training.inputs import open_inputs
from ldp_export.training.log import RunLog
from ldp_export.training.optimisation import Learner, learning_rate
from ldp_export.training.parallel import all_reduced, open_fabric
from ldp_export.training.saving import BEST_FOLDER, CHECKPOINT_FOLDER, STAGES_FOLDER, RunFolder
from ldp_export.training.validation import validate

_CLOCK_STEPS = 10
"""Several processes agree on the time and on stopping every so many steps."""


def train(config: TrainConfig, output: Path) -> Path:
    """Trains, or resumes the run in ``output``.

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
    return _Run(check_config(config.to_dict()), output).train()


class _Run:
    """A run in this process."""

    def __init__(self, config: TrainConfig, output: Path) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self._config, self._fabric = config, open_fabric(config)
        parts = config.accumulate * self._fabric.world_size
        if config.batch % parts:
            raise TrainingError(
                f"batch: expected a multiple of {parts}, which is `accumulate` times the processes, got {config.batch}"
            )
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{output} cannot be made: {error.strerror or error}; choose another") from error
        inputs = open_inputs(config, self._fabric)
        self._batches, self._crops = inputs.batches, inputs.crops
        self._learner = Learner(config, inputs.network, inputs.blur_aware_map, self._fabric)
        self._folder = RunFolder(output, config, inputs, self._learner)
        self._progress = self._folder.load()
        self._stopping = False
        self._log = RunLog(output, self._progress.step) if self._fabric.global_rank == 0 else None

    def train(self) -> Path:
        config, progress = self._config, self._progress
        # Around the workers too: Ctrl-C reaches them, and must not end them.
        with self._stop_signals(), killed_workers():
            first, pinned = progress.step * config.accumulate, self._fabric.device.type == "cuda"
            batches = stream(self._batches, first, workers=config.workers, pinned=pinned)
            while progress.stage < len(config.stages):
                self._train_stage(config.stages[progress.stage], batches)
                progress.end_stage()
                self._learner.clear_moments()
                self._folder.write_checkpoint(f"{STAGES_FOLDER}/{progress.stage}", progress, self._learner.averaged())
                self._folder.save(progress)
        if self._log is not None:
            self._log.close()
        return self._folder.path / CHECKPOINT_FOLDER

    def _train_stage(self, stage: StageConfig, batches: Iterator[Batch]) -> None:
        config, progress = self._config, self._progress
        every = config.validation.every if config.validation else 0
        start, before = time.monotonic() - progress.stage_seconds, progress.seconds - progress.stage_seconds
        losses: list[dict[str, Tensor]] = []
        lap, lap_step = time.monotonic(), progress.step
        bar = tqdm(
            total=stage.steps,
            initial=progress.stage_step,
            desc=f"stage {progress.stage + 1}/{len(config.stages)}",
            unit="step",
            disable=None if self._log is not None else True,
            file=sys.stderr,
        )
        with bar:
            while True:
                if self._fabric.world_size == 1 or progress.stage_step % _CLOCK_STEPS == 0:
                    progress.stage_seconds, stopping = self._agree(time.monotonic() - start)
                    progress.seconds = before + progress.stage_seconds
                    if stopping:
                        self._save(losses)
                        raise KeyboardInterrupt
                share = self._share_of(stage)
                if share >= 1:
                    break
                rate = learning_rate(stage, progress.stage_step, share)
                losses.append(self._learner.step(stage, batches, rate))
                progress.step += 1
                progress.stage_step += 1
                self._learner.average.update(progress.step)
                bar.update()
                logs, saves = progress.step % config.log_every == 0, progress.step % config.save_every == 0
                validates = bool(every) and progress.step % every == 0
                if logs:
                    values = self._means(losses)
                    speed = (progress.step - lap_step) * config.batch / (time.monotonic() - lap)
                    self._record({**values, "lr": rate, "patches_s": speed, "seconds": progress.seconds}, "training")
                    bar.set_postfix(done=f"{share:.1%}", loss=f"{values['loss']:.4f}", lr=f"{rate:.1e}", refresh=False)
                    losses = []
                if validates:
                    self._validate()
                if saves:
                    self._save(losses)
                if logs or validates or saves:
                    lap, lap_step = time.monotonic(), progress.step
            self._means(losses)
        if every and progress.step % every:
            self._validate()

    def _share_of(self, stage: StageConfig) -> float:
        """How much of a stage is done, from 0 to 1."""
        if stage.steps is not None:
            return self._progress.stage_step / stage.steps
        assert stage.hours is not None  # a stage has one of the two
        return self._progress.stage_seconds / (3600 * stage.hours)

    def _agree(self, seconds: float) -> tuple[float, bool]:
        """The time of rank 0, and whether any process was asked to stop."""
        own = torch.tensor([seconds if self._log is not None else 0.0, float(self._stopping)], dtype=torch.float64)
        seconds, stopping = all_reduced(self._fabric, own, "sum").tolist()
        return seconds, stopping > 0

    def _means(self, losses: list[dict[str, Tensor]]) -> dict[str, float]:
        """The mean of each loss over steps and processes.

        Raises:
            TrainingError: The loss became NaN or Inf.
        """
        means = {name: sum(step[name] for step in losses) / len(losses) for name in (losses[0] if losses else ())}
        values = {name: float(all_reduced(self._fabric, torch.as_tensor(mean), "mean")) for name, mean in means.items()}
        if not math.isfinite(values.get("loss", 0.0)):
            saved = self._folder.state_file.is_file()
            state = f"the state in {self._folder.path} is from before" if saved else "nothing was saved"
            raise TrainingError(
                f"expected a finite loss, got {values['loss']} by step {self._progress.step}; {state}: make "
                f"stages.{self._progress.stage}.lr smaller, set clip_gradient, or use precision fp32"
            )
        return values

    def _save(self, losses: list[dict[str, Tensor]]) -> None:
        self._means(losses)  # nothing is saved where the loss is NaN or Inf
        self._folder.save(self._progress)

    def _validate(self) -> None:
        """Validates, and keeps the weights if they are the best so far."""
        assert self._config.validation is not None
        center, restored, pictures = validate(self._learner, self._crops, self._config.validation.images)
        figures = {"center_db": center, "restored_db": restored, "gain_db": restored - center}
        progress = self._progress
        progress.scores = {name: round(value, 3) for name, value in figures.items()}
        self._record(progress.scores, "validation")
        if restored > progress.best_db:
            progress.best_db = restored
            self._folder.write_checkpoint(BEST_FOLDER, progress, self._learner.averaged())
        if self._log is not None:
            for i, picture in enumerate(pictures):
                self._log.picture(progress.step, i, picture)

    def _record(self, values: dict[str, float], group: str) -> None:
        if self._log is not None:
            self._log.record(self._progress.step, self._progress.stage + 1, values, group)

    @contextmanager
    def _stop_signals(self) -> Iterator[None]:
        """Within the block Ctrl-C and SIGTERM end the run after the step at hand, with its state saved."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._stopping = True

        numbers = (signal.SIGINT, signal.SIGTERM)
        try:
            before = {number: signal.signal(number, stop) for number in numbers}
        except ValueError:  # not in the main thread: the caller handles signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
