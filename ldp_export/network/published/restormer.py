"""Restormer (Zamir et al., CVPR 2022), the dual-pixel variant.

Blocks of transposed attention (a map over channels, not positions: Eq. 1) and gated depthwise feed-forward layers
(Eq. 2), four levels with 4, 6, 6 and 8 blocks, 1, 2, 4 and 8 heads, 48 channels at the first, and 4 blocks of
refinement. For dual-pixel pairs the first convolution takes both views, and in place of adding the input image the
features of the first convolution pass by the body through a 1x1 convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.network.published.base import PublishedConfig, PublishedNetwork
from ldp_export.network.published.layers import ChannelNorm

CHANNELS = 48
BLOCKS = (4, 6, 6, 8)
HEADS = (1, 2, 4, 8)
REFINEMENT = 4
EXPANSION = 2.66


class TransposedAttention(nn.Module):
    """MDTA: attention between the channels of a head, with L2-normalised queries and keys and a learned temperature.

    Norms and their products are FP32 whatever the type: they sum over all pixels.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.project_in = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.depthwise = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        query, key, value = (
            t.flatten(2).unflatten(1, (self.heads, -1)) for t in self.depthwise(self.project_in(x)).chunk(3, dim=1)
        )  # (B, heads, C / heads, H * W) each
        query, key = (F.normalize(t.float(), dim=3) for t in (query, key))
        logits = query @ key.transpose(2, 3) * self.temperature.float()  # (B, heads, C / heads, C / heads)
        attended = torch.softmax(logits, dim=3).to(value.dtype) @ value
        return self.project_out(attended.flatten(1, 2).unflatten(2, (x.shape[2], x.shape[3])))


class GatedFeedForward(nn.Module):
    """GDFN: depthwise convolutions, one half of the channels gated by the GELU of the other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = int(EXPANSION * channels)
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        gate, value = self.depthwise(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class Block(nn.Module):
    """Attention and feed-forward layer, each residual behind a layer normalisation."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels, 1e-5), ChannelNorm(channels, 1e-5)
        self.attention = TransposedAttention(channels, heads)
        self.feed_forward = GatedFeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


def _blocks(channels: int, heads: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(Block(channels, heads) for _ in range(count)))


def _down(channels: int) -> nn.Sequential:
    """Half the size, twice the channels."""
    return nn.Sequential(nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))


def _up(channels: int) -> nn.Sequential:
    """Twice the size, half the channels."""
    return nn.Sequential(nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False), nn.PixelShuffle(2))


class Restormer(PublishedNetwork):
    """The network."""

    config = PublishedConfig("restormer", multiple=8, memory=9000)
    linear_end = "last"
    names = (
        (r"^first\.", "patch_embed.proj."),
        (r"^encoder\.3\.", "latent."),
        (r"^encoder\.0\.", "encoder_level1."),
        (r"^encoder\.1\.", "encoder_level2."),
        (r"^encoder\.2\.", "encoder_level3."),
        (r"^decoder\.0\.", "decoder_level1."),
        (r"^decoder\.1\.", "decoder_level2."),
        (r"^decoder\.2\.", "decoder_level3."),
        (r"^downs\.0\.", "down1_2.body."),
        (r"^downs\.1\.", "down2_3.body."),
        (r"^downs\.2\.", "down3_4.body."),
        (r"^ups\.0\.", "up2_1.body."),
        (r"^ups\.1\.", "up3_2.body."),
        (r"^ups\.2\.", "up4_3.body."),
        (r"^reduce\.0\.", "reduce_chan_level2."),
        (r"^reduce\.1\.", "reduce_chan_level3."),
        (r"\.attention\.project_in\.", ".attn.qkv."),
        (r"\.attention\.depthwise\.", ".attn.qkv_dwconv."),
        (r"\.attention\.", ".attn."),
        (r"\.feed_forward\.depthwise\.", ".ffn.dwconv."),
        (r"\.feed_forward\.", ".ffn."),
        (r"\.norm([12])\.", r".norm\1.body."),
        (r"^skip\.", "skip_conv."),
        (r"^last\.", "output."),
    )

    def __init__(self) -> None:
        super().__init__()
        c = CHANNELS
        self.first = nn.Conv2d(6, c, 3, padding=1, bias=False)
        self.encoder = nn.ModuleList(_blocks(c * 2**i, HEADS[i], BLOCKS[i]) for i in range(4))
        self.downs = nn.ModuleList(_down(c * 2**i) for i in range(3))
        self.ups = nn.ModuleList(_up(c * 2 ** (i + 1)) for i in range(3))
        # Below the first level the joined features are halved again; at the first they stay 2c wide to the end.
        self.reduce = nn.ModuleList(nn.Conv2d(c * 2 ** (i + 1), c * 2**i, 1, bias=False) for i in (1, 2))
        self.decoder = nn.ModuleList(_blocks(c * 2 ** max(i, 1), HEADS[i], BLOCKS[i]) for i in range(3))
        self.refinement = _blocks(2 * c, HEADS[0], REFINEMENT)
        self.skip = nn.Conv2d(c, 2 * c, 1, bias=False)
        self.last = nn.Conv2d(2 * c, 3, 3, padding=1, bias=False)

    def restore(self, pair: Tensor) -> Tensor:
        """See ``PublishedNetwork.restore``."""
        x = first = self.first(pair)
        skips = []
        for level in range(3):
            x = self.encoder[level](x)
            skips.append(x)
            x = self.downs[level](x)
        x = self.encoder[3](x)
        for level in (2, 1, 0):
            x = torch.cat([self.ups[level](x), skips[level]], dim=1)
            if level:
                x = self.reduce[level - 1](x)
            x = self.decoder[level](x)
        return self.last(self.refinement(x) + self.skip(first))
