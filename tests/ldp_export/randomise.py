"""Random values for every parameter of a module.

NAFNet and BPA blocks start with residual scales of zero, so that a freshly built network does not depend on
its blocks: a test of parity, of precision or of gradients on it would pass whatever the blocks compute.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)

RESIDUAL_SCALES = ("beta", "gamma")


def randomise(module: ModuleT, seed: int = 0, residual: float = 0.5) -> ModuleT:
    """Draws all parameters of a module anew and returns it; the same seed gives the same values.

    Weights have variance 1 / fan-in, so that activations keep about their size through the layers; biases are
    small; weights of normalisation layers lie around one, residual scales around `residual` of either sign.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            last = name.split(".")[-1]
            if last in RESIDUAL_SCALES and parameter.ndim == 4:
                values = residual * (values.sign() + 0.2 * values)
            elif last.endswith("bias") or parameter.ndim == 0:
                values = 0.1 * values
            elif last == "weight" and parameter.ndim == 1:
                values = 1 + 0.2 * values
            elif parameter.ndim >= 2:
                values = values / (parameter.numel() / parameter.shape[0]) ** 0.5
            parameter.copy_(values)
    return module
