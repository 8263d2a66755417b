"""DPDNet (Abuolaim and Brown, "Defocus Deblurring Using Dual-Pixel Data", ECCV 2020).

A U-Net on both views: two 3x3 convolutions with ReLU per scale (64 to 1024 channels), max pooling down, nearest
upsampling and a 2x2 convolution up, skips by concatenation, and a sigmoid at the end. The dropout of training does
nothing here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.network.published.base import PublishedConfig, PublishedNetwork

WIDTHS = (64, 128, 256, 512, 1024)


def _pair_of_convolutions(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
    )


class UpConvolution(nn.Module):
    """Nearest upsampling, then a 2x2 convolution that keeps the size (padded right and bottom), then ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels // 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C / 2, 2H, 2W)``."""
        return F.relu(self.convolution(F.pad(F.interpolate(x, scale_factor=2.0, mode="nearest"), (0, 1, 0, 1))))


class DPDNet(PublishedNetwork):
    """The network; its authors' file is Keras', and reads and writes BGR."""

    config = PublishedConfig("dpdnet", multiple=16, memory=1600, halo=192)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(_pair_of_convolutions(a, b) for a, b in zip((6, *WIDTHS), WIDTHS, strict=False))
        self.ups = nn.ModuleList(UpConvolution(width) for width in reversed(WIDTHS[1:]))
        self.decoder = nn.ModuleList(_pair_of_convolutions(2 * width, width) for width in reversed(WIDTHS[:-1]))
        self.last = nn.Sequential(nn.Conv2d(WIDTHS[0], 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.Sigmoid())

    def restore(self, pair: Tensor) -> Tensor:
        """See ``PublishedNetwork.restore``."""
        x, skips = pair, []
        for i, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        skips.pop()
        for up, block in zip(self.ups, self.decoder, strict=True):
            x = block(torch.cat([skips.pop(), up(x)], dim=1))
        return self.last(x)
