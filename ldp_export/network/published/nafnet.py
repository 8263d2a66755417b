"""NAFNet (Chen et al., "Simple Baselines for Image Restoration", ECCV 2022), width 32, on dual-pixel pairs.

Blocks without activations: layer normalisation, 1x1 and depthwise 3x3 convolutions, a product of the two halves of the
channels as the gate, and one channel attention over the whole map. Encoder and decoder join by addition. The paper's
network takes and returns an image; here the first convolution takes both views and the center view is added, which is
what the LDP paper's baseline (Table 6, i) needs of it and adds 864 weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldp_export.network.published.base import PublishedConfig, PublishedNetwork
from ldp_export.network.published.layers import ChannelNorm, center

WIDTH = 32
ENCODER = (1, 1, 1, 28)
MIDDLE = 1
DECODER = (1, 1, 1, 1)
"""36 blocks (Section 4), placed as in the authors' configuration for deblurring at width 32."""


def _gate(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=1)
    return first * second


class Block(nn.Module):
    """A block of Fig. 3c: ``(B, C, H, W)`` to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial_norm, self.channel_norm = ChannelNorm(channels, 1e-6), ChannelNorm(channels, 1e-6)
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.attention = nn.Conv2d(channels, channels, 1)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.contract = nn.Conv2d(channels, channels, 1)
        self.spatial_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.channel_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        y = _gate(self.depthwise(self.widen(self.spatial_norm(x))))
        y = y * self.attention(y.float().mean((2, 3), keepdim=True).to(y.dtype))
        x = x + self.mix(y) * self.spatial_scale
        return x + self.contract(_gate(self.expand(self.channel_norm(x)))) * self.channel_scale


class NAFNet(PublishedNetwork):
    """The network.

    Args:
        channels: Channels of the input: 6 for a pair; 3, as in the paper, for the center view alone.
    """

    config = PublishedConfig("nafnet", multiple=16, memory=2000)
    adds_center = True
    linear_end = "last"
    names = (
        (r"^first\.", "intro."),
        (r"^last\.", "ending."),
        (r"^(en|de)coder\.", r"\1coders."),
        (r"^middle\.", "middle_blks."),
        (r"\.widen\.", ".conv1."),
        (r"\.depthwise\.", ".conv2."),
        (r"\.attention\.", ".sca.1."),
        (r"\.mix\.", ".conv3."),
        (r"\.expand\.", ".conv4."),
        (r"\.contract\.", ".conv5."),
        (r"\.spatial_norm\.", ".norm1."),
        (r"\.channel_norm\.", ".norm2."),
        (r"\.spatial_scale$", ".beta"),
        (r"\.channel_scale$", ".gamma"),
    )

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        width = WIDTH
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.encoder, self.downs, self.ups, self.decoder = (nn.ModuleList() for _ in range(4))
        for count in ENCODER:
            self.encoder.append(nn.Sequential(*(Block(width) for _ in range(count))))
            self.downs.append(nn.Conv2d(width, 2 * width, 2, stride=2))
            width *= 2
        self.middle = nn.Sequential(*(Block(width) for _ in range(MIDDLE)))
        for count in DECODER:
            self.ups.append(nn.Sequential(nn.Conv2d(width, 2 * width, 1, bias=False), nn.PixelShuffle(2)))
            width //= 2
            self.decoder.append(nn.Sequential(*(Block(width) for _ in range(count))))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def restore(self, pair: Tensor) -> Tensor:
        """See ``PublishedNetwork.restore``; the residual alone."""
        x = self.first(pair if self.first.in_channels == 6 else center(pair))
        skips = []
        for blocks, down in zip(self.encoder, self.downs, strict=True):
            x = blocks(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        for up, blocks in zip(self.ups, self.decoder, strict=True):
            x = blocks(up(x) + skips.pop())
        return self.last(x)
