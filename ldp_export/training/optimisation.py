"""The network in training: one step, the optimiser and its schedule, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor, nn

from ldp_export.network import LDPNet
from ldp_export.training.batches import Batch
from ldp_export.training.config import StageConfig, TrainConfig
from ldp_export.training.losses import BlurAwareMap, total_loss
from ldp_export.training.parallel import gathered, reshard, shards, spread, whole


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
        decayed: Of each, whether weight decay applies; sharded parameters have lost their shape.
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
            decay: Decay per step, in [0, 1).
        """
        self._model, self._decay = model, decay
        self._parameters = list(model.parameters())
        self._average = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the parameters to the average, after ``step`` steps."""
        keep = min(self._decay, 1 - 1 / (step + 1))
        for average, parameter in zip(self._average, self._parameters, strict=True):
            average.lerp_(parameter, 1 - keep)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within the block the parameters are the average; changes there change the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        reshard(self._model)
        for average, parameter in zip(self._average, self._parameters, strict=True):
            current = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(current)


class Learner:
    """The network in training, in this process: its weights, their optimiser and moving average."""

    def __init__(
        self, config: TrainConfig, network: LDPNet, blur_aware_map: BlurAwareMap | None, fabric: Fabric
    ) -> None:
        """Sets up a network, which may then be sharded; ``blur_aware_map`` is None where no stage minimises it."""
        self.fabric, self._config, self._blur_aware_map = fabric, config, blur_aware_map
        decayed = [decays(parameter) for parameter in network.parameters()]
        if not shards(fabric):  # which must be contiguous
            for parameter, decay in zip(network.parameters(), decayed, strict=True):
                if decay:
                    parameter.data = parameter.data.to(memory_format=torch.channels_last)
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        self.model = fabric.setup_module(network)
        self.model.train()
        optimizer = make_optimizer(config, list(self.model.parameters()), decayed)
        self._optimizer = cast(_FabricOptimizer, fabric.setup_optimizers(optimizer))
        self.average = WeightAverage(self.model, config.ema)

    def step(self, stage: StageConfig, batches: Iterator[Batch], rate: float) -> dict[str, Tensor]:
        """One optimiser step; returns the losses, mean over this process's share of the batch."""
        config, fabric = self._config, self.fabric
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        for part in range(config.accumulate):
            batch = next(batches).to(fabric.device)
            with fabric.no_backward_sync(self.model, enabled=part + 1 < config.accumulate):
                restored = self.model(batch.pair, batch.logits)
                total, parts = total_loss(
                    stage.losses, restored, batch.target, batch.pair, batch.logits, self._blur_aware_map
                )
                fabric.backward(total / config.accumulate)
            for name, value in {"loss": total.detach(), **parts}.items():
                losses[name] = losses.get(name, 0.0) + value / config.accumulate
        if config.clip_gradient is not None:
            norm = fabric.clip_gradients(
                self.model, self._optimizer, max_norm=config.clip_gradient, error_if_nonfinite=False
            )
            losses["gradient_norm"] = whole(torch.as_tensor(norm)).detach()
        self._optimizer.step()
        return losses

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights, whole and on the CPU; every process must call this."""
        with self.average.swapped_in():
            return cast(dict[str, Tensor], gathered(self.model.state_dict()))

    def clear_moments(self) -> None:
        """Clears the optimiser's moments, as at the end of each stage."""
        self._optimizer.optimizer.state.clear()

    def state(self) -> dict[str, Any]:
        """The state for ``load_state``, whole and on the CPU; every process must call this."""
        return {
            "net": gathered(self.model.state_dict()),
            "optimizer": gathered(self._optimizer.optimizer.state_dict()),
            "precision": self.fabric.strategy.precision.state_dict(),
            "ema": self.averaged(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from a state."""
        with self.average.swapped_in():
            self._load_weights(state["ema"])
        self._load_weights(state["net"])
        optimizer = self._optimizer.optimizer
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for i, moments in state["optimizer"]["state"].items():
            for name, value in moments.items():
                if value.ndim:  # not the count of steps
                    moments[name] = spread(value, parameters[i])
        optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])

    def _load_weights(self, state: dict[str, Tensor]) -> None:
        own = self.model.state_dict()
        self.model.load_state_dict({name: spread(value, own[name]) for name, value in state.items()})
