"""One process or many: Lightning Fabric over the processes that torchrun started, and state that may be sharded."""

from __future__ import annotations

import os
import sys
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ldp_export.training.config import TrainConfig, TrainingError

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision of a configuration -> the type of autocast."""


class KeepInputs(MixedPrecision):
    """Autocast that does not round the inputs: a pair with 8 bits of mantissa gives a restored image with banding."""

    def convert_input(self, data: Any) -> Any:
        """The inputs as they are."""
        return data


def open_fabric(config: TrainConfig) -> Fabric:
    """Starts Fabric in this process.

    Raises:
        TrainingError: The device is not there.
    """
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device: expected a CUDA GPU, got none that torch can use; set it to cpu or auto")
    strategy: Strategy | str = "auto"
    if config.strategy == "fsdp" and world > 1:
        strategy = ModelParallelStrategy(_shard, data_parallel_size=world, tensor_parallel_size=1)
    elif world > 1:
        strategy = DDPStrategy(gradient_as_bucket_view=True)
    precision: Precision = Precision()
    if device == "cpu" and config.precision == "bf16" and not cpu_has_bf16():
        print(
            "ldp-export: warning: this CPU has no bf16 arithmetic, and emulating it is many times slower; set "
            "precision to fp32",
            file=sys.stderr,
        )
    if config.precision != "fp32":
        precision = KeepInputs("bf16-mixed" if config.precision == "bf16" else "16-mixed", device)
    fabric = Fabric(accelerator=device, devices=local, num_nodes=world // local, strategy=strategy, plugins=[precision])
    fabric.launch()
    return fabric


def cpu_has_bf16() -> bool:
    """Whether the CPU computes in bf16 itself; where torch emulates it, training is 14 times slower than in FP32."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def shards(fabric: Fabric) -> bool:
    """Whether the weights are sharded over the processes."""
    return isinstance(fabric.strategy, ModelParallelStrategy)


def reshard(model: nn.Module) -> None:
    """Drops the gathered weights of a forward pass, which would hide a change of the shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, made whole; every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def all_reduced(fabric: Fabric, tensor: Tensor, operation: str) -> Tensor:
    """The "sum" or "mean" of a tensor over the processes, on the CPU."""
    return cast(Tensor, fabric.all_reduce(tensor.to(fabric.device), reduce_op=operation)).cpu()


def gathered(values: Any) -> Any:
    """Nested dictionaries and lists with whole copies of their tensors on the CPU; every process must call this."""
    if isinstance(values, dict):
        return {key: gathered(value) for key, value in values.items()}
    if isinstance(values, list):
        return [gathered(value) for value in values]
    return whole(values).detach().cpu().clone() if isinstance(values, Tensor) else values


def spread(value: Tensor, like: Tensor) -> Tensor:
    """The inverse of ``gathered`` for one tensor: sharded as ``like`` is, or unchanged if ``like`` is whole."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _shard(network: nn.Module, mesh: Any) -> nn.Module:
    """Shards weights, gradients and optimiser over the processes (FSDP2), each group of blocks by itself."""
    over = mesh["data_parallel"]
    for child in network.children():
        for module in child if isinstance(child, nn.ModuleList) else [child]:
            if not isinstance(module, nn.ModuleDict) and next(module.parameters(), None) is not None:
                fully_shard(module, mesh=over)
    fully_shard(network, mesh=over)
    return network
