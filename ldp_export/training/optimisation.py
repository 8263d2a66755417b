"""The optimiser, its schedule, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ldp_export.training.config import StageConfig, TrainConfig
from ldp_export.training.parallel import reshard


def learning_rate(stage: StageConfig, step: int, progress: float) -> float:
    """The rate of one step.

    Args:
        stage: The stage.
        step: Steps of the stage so far.
        progress: Share of the stage so far, in [0, 1].
    """
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    rate = stage.final_lr + (stage.lr - stage.final_lr) * cosine
    return rate * min(1.0, (step + 1) / stage.warmup) if stage.warmup else rate


def decays(parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to weights of convolutions, not to biases, norms and residual scales."""
    return parameter.ndim == 4 and parameter.shape[0] > 1


def make_optimizer(
    config: TrainConfig, parameters: Sequence[nn.Parameter], decayed: Sequence[bool]
) -> torch.optim.AdamW:
    """AdamW, which is Adam where the weight decay is zero.

    Args:
        config: The run.
        parameters: All parameters.
        decayed: Of each, whether weight decay applies; parameters that are sharded by now do not tell.
    """
    groups = [
        {
            "params": [p for p, d in zip(parameters, decayed, strict=True) if d == wanted],
            "weight_decay": config.weight_decay if wanted else 0.0,
        }
        for wanted in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=config.stages[0].lr, betas=config.betas, fused=True)


class WeightAverage:
    """An exponential moving average of a model's parameters; a plain mean for the first ``1 / (1 - decay)`` steps."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Starts from the parameters as they are.

        Args:
            model: The model.
            decay: What of the average each step keeps, in [0, 1).
        """
        self._model, self._decay = model, decay
        self._parameters = list(model.parameters())
        self._average = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the parameters in, after ``step`` steps."""
        keep = min(self._decay, 1 - 1 / (step + 1))
        for average, parameter in zip(self._average, self._parameters, strict=True):
            average.lerp_(parameter, 1 - keep)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within the block the parameters are the average; what the block makes of them becomes the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        reshard(self._model)
        for average, parameter in zip(self._average, self._parameters, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)
