"""Random parameters for networks that are checked untrained."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from ldp_export.blur_map import center_view

if TYPE_CHECKING:
    from ldp_export.network import LDPNet


RESIDUAL_STD = 0.1
"""Standard deviation of ``restored - center`` that random weights are scaled to: a strong restoration's."""

RESIDUAL_SCALE = 0.5

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def randomise(module: ModuleT, seed: int = 0) -> ModuleT:
    """Draws all parameters of a module anew, in place, and returns it.

    Weights have variance 1 / fan-in, so that activations keep about their size from layer to layer; biases are small;
    scales of normalisation layers lie around one, and residual scales (``beta``, ``gamma``), which start at zero,
    around ``RESIDUAL_SCALE``, of either sign.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            last = name.split(".")[-1]
            if last in ("beta", "gamma") and parameter.ndim == 4:
                values = RESIDUAL_SCALE * (values.sign() + 0.2 * values)
            elif last.endswith("bias") or parameter.ndim == 0:
                values = 0.1 * values
            elif last == "weight" and parameter.ndim == 1:
                values = 1 + 0.2 * values
            elif parameter.ndim >= 2:
                values = values / math.sqrt(parameter.numel() / parameter.shape[0])
            parameter.copy_(values)
    return module


def randomise_network(network: LDPNet, seed: int) -> LDPNet:
    """``randomise``, then scales the last convolution so that the residual has ``RESIDUAL_STD`` on noise."""
    randomise(network, seed).eval()
    side = 3 * network.config.multiple
    generator = torch.Generator().manual_seed(seed)
    pair = torch.rand(1, 6, side, side, generator=generator)
    logits = 3 * torch.randn(1, 1, 4, 4, generator=generator)
    with torch.no_grad():
        residual = network(pair, logits) - center_view(pair[:, :3], pair[:, 3:])
        for parameter in network.ending.parameters():
            parameter.mul_(RESIDUAL_STD / residual.std())
    return network
