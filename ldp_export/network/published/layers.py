"""Layers that several published networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of ``(B, C, H, W)``, with FP32 statistics.

    ``ldp_export.network.layers.LayerNorm2d`` spells the same out; a change of ours does not change theirs.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape and type."""
        wide = x.float()
        centred = wide - wide.mean(1, keepdim=True)
        scale = torch.rsqrt((centred * centred).mean(1, keepdim=True) + self.eps)
        normalised = centred * scale * self.weight.float()[:, None, None] + self.bias.float()[:, None, None]
        return normalised.to(x.dtype)


def center(pair: Tensor) -> Tensor:
    """``(B, 6, H, W)`` to the mean of both views, ``(B, 3, H, W)``."""
    return (pair[:, :3] + pair[:, 3:]) * 0.5
