"""DDDNet (Pan et al., "Dual Pixel Exploration: Simultaneous Depth Estimation and Image Restoration", CVPR 2021).

One network estimates the blur's disparity from a cost volume of both views, a second restores the image from the views
and that disparity at three levels: quadrants, halves, the whole. The authors' second decoder, of depth, is not needed
for the image and left out. The names of parameters are those of the authors' two files, Estd and Esti.

The result is global: attention sums over the whole image, the levels split at its middle, and pooled features are
stretched over it. A tile differs from the same place of the full frame.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.network.published.base import PublishedConfig, PublishedNetwork
from ldp_export.network.published.stereo import SHIFTS, ConvNorm, Features, conv3d, cost_volume, cut, join

DISPARITIES = 12
"""Disparities that are weighted, 0 to 11 px."""


def linear_matrix(size: int, samples: int) -> Tensor:
    """Linear resizing of one axis as a matrix ``(samples, size)``, with half-pixel centers."""
    place = ((torch.arange(samples) + 0.5) * (size / samples) - 0.5).clamp(0, size - 1)
    return (1 - (place[:, None] - torch.arange(size)).abs()).clamp(min=0)


class Matching(nn.Module):
    """From the cost volume to one value for each slice and position."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Sequential(conv3d(64, 32), conv3d(32, 48, stride=2), conv3d(48, 48))
        self.conv1a = nn.Sequential(conv3d(48, 64, stride=2), conv3d(64, 64))
        self.deconv1a = nn.ModuleDict({"conv1": conv3d(64, 48), "conv2": conv3d(96, 48)})
        up = ConvNorm(nn.ConvTranspose3d(48, 24, 4, stride=2, padding=1, bias=False))
        self.end = nn.Sequential(up, nn.Sequential(OrderedDict(conv=nn.Conv3d(24, 1, 3, padding=1, bias=False))))

    def forward(self, cost: Tensor) -> Tensor:
        """``(B, 64, 4, H, W)``, H and W multiples of 4, to ``(B, 1, 4, H, W)``."""
        half = self.start(cost)  # (B, 48, 2, H / 2, W / 2)
        quarter = self.conv1a(half).squeeze(2)  # (B, 64, H / 4, W / 4): one slice is left
        up = F.interpolate(quarter, scale_factor=2.0, mode="bilinear", align_corners=True)
        x = self.deconv1a["conv1"](torch.stack([up, up], dim=2))  # trilinear from one slice to two repeats it
        x = self.deconv1a["conv2"](torch.cat([x, half], dim=1))
        return self.end(x)


class Disparity(nn.Module):
    """The blur's disparity in px, as the mean of ``DISPARITIES`` candidates (the authors' ``Estd``)."""

    depths: Tensor
    candidates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.feature = Features((64, 16), stride=1)
        self.matching = Matching()
        depths = linear_matrix(SHIFTS, DISPARITIES)[:, :, None, None]
        self.register_buffer("depths", depths, persistent=False)
        candidates = torch.arange(float(DISPARITIES))[:, None, None]
        self.register_buffer("candidates", candidates, persistent=False)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Two views ``(B, 3, H, W)`` to ``(B, 1, H, W)`` in [0, 11]; the softmax is FP32."""
        cost = self.matching(cost_volume(self.feature(left), self.feature(right))).squeeze(1)  # (B, 4, H, W)
        weights = torch.softmax(-F.conv2d(cost, self.depths).float(), dim=1)  # (B, 12, H, W)
        return (weights * self.candidates.float()).sum(1, keepdim=True).to(cost.dtype)


class ResidualPair(nn.Sequential):
    """``x + conv(relu(conv(x)))``."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        return x + super().forward(x)


def encoder() -> nn.Sequential:
    """``(B, 7, H, W)`` to ``(B, 128, H / 4, W / 4)``."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 7
    for level, width in enumerate((32, 64, 128)):
        first = 4 * level + 1
        layers[f"layer{first}"] = nn.Conv2d(inputs, width, 3, stride=2 if level else 1, padding=1)
        layers[f"layer{first + 1}"], layers[f"layer{first + 2}"] = ResidualPair(width), ResidualPair(width)
        inputs = width
    return nn.Sequential(layers)


def decoder(outputs: int) -> nn.Sequential:
    """``(B, 128, H, W)`` to ``(B, outputs, 4H, 4W)``."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for level, width in enumerate((128, 64, 32)):
        first = 4 * level + 13
        layers[f"layer{first}"], layers[f"layer{first + 1}"] = ResidualPair(width), ResidualPair(width)
        layers[f"layer{first + 3}"] = (
            nn.Conv2d(width, outputs, 3, padding=1)
            if width == 32
            else nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1)
        )
    return nn.Sequential(layers)


class GramAttention(nn.Module):
    """Attention between channels: each adds, times ``gamma``, a mean of those that resemble it least.

    The authors' ``softmax(rowmax(G) - G)`` is ``softmax(-G)``. The Gram matrix G is FP32 whatever the type: its sums
    over all positions exceed the range of FP16.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        flat = x.flatten(2)  # (B, C, H * W)
        wide = flat.float()
        attention = torch.softmax(-(wide @ wide.transpose(1, 2)), dim=2).to(x.dtype)
        return x + self.gamma * (attention @ flat).unflatten(2, x.shape[2:])


class Restoration(nn.Module):
    """The restored image from both views and the disparity (the authors' ``Esti``)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder1, self.encoder2, self.encoder3 = (encoder() for _ in range(3))
        self.decoder1, self.decoder2, self.decoder3 = decoder(3), decoder(7), decoder(7)
        self.down = nn.Sequential(OrderedDict(conv=nn.Conv2d(4, 128, 8, stride=4, padding=2), sigmoid=nn.Sigmoid()))
        self.cam_attention = GramAttention()

    def forward(self, pair: Tensor, disparity: Tensor) -> Tensor:
        """``(B, 6, H, W)`` and ``(B, 1, H, W)`` to ``(B, 3, H, W)``."""
        image = torch.cat([pair, disparity], dim=1)
        features = join(self.encoder3(cut(image, 2, 2)), 1, 2)  # (2B, 128, H / 8, W / 4): top and bottom
        residual = self.decoder3(features)  # (2B, 7, H / 2, W)
        halves = self.encoder2(cut(image, 2, 1) + residual)
        features = join(halves, 2, 1) + join(features, 2, 1)  # (B, 128, H / 4, W / 4)
        features = self.encoder1(image + self.decoder2(features)) + features
        difference = self.down(torch.cat([pair[:, :3] - pair[:, 3:], disparity], dim=1))
        return self.decoder1(features + self.cam_attention(difference))


class DDDNet(PublishedNetwork):
    """Both networks.

    The authors' files hold, besides, layers that are never run, a second extractor of features, and the decoder of
    depth.
    """

    config = PublishedConfig("dddnet", multiple=8, memory=7100, least=64)
    linear_end = "esti.decoder1.layer24"
    ignored = (
        "estd.features.",
        "estd.feature.end.1.bn.",
        *(f"estd.matching.{name}." for name in ("conv2a", "conv3a", "deconv2a", "deconv3a", "end.1.bn")),
        "esti.decoderd.",
        "esti.conv.",
    )

    def __init__(self) -> None:
        super().__init__()
        self.estd = Disparity()
        self.esti = Restoration()

    def restore(self, pair: Tensor) -> Tensor:
        """See ``PublishedNetwork.restore``."""
        return self.esti(pair, self.estd(pair[:, :3], pair[:, 3:]))
