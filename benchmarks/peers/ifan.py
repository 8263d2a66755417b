"""IFAN (Lee et al., "Iterative Filter Adaptive Network for Single Image Defocus Deblurring", CVPR 2021), dual-pixel.

The model for pairs of the paper's supplement: the filter encoder sees both views, the deblurring path the centre view.
A disparity map is estimated on the way, and from it and the encoder's features every position at 1/8 gets, for each
channel, 17 pairs of separable filters of 3 taps and biases; iterative adaptive convolution (Eq. 2) applies them one
after the other to the features of the centre view. The parts for training only (reblurring, warping) are omitted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.layers import center

WIDTHS = (32, 64, 128, 128)
FILTERS = 17
TAPS = 3
SLOPE = 0.1


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.LeakyReLU(SLOPE))


class Residual(nn.Module):
    """Residual units of two convolutions with activations between and after; several units share one more skip."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            nn.Sequential(_convolution(channels, channels), nn.Conv2d(channels, channels, 3, padding=1))
            for _ in range(units)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        y = x
        for unit in self.units:
            y = F.leaky_relu(y + unit(y), SLOPE)
        return x + y if len(self.units) > 1 else y


def _encoder(channels: int) -> nn.ModuleList:
    """Four levels of three convolutions, each level but the first at half the size of the one before."""
    inputs = (channels, *WIDTHS[:-1])
    return nn.ModuleList(
        nn.Sequential(_convolution(a, b, stride=1 if i == 0 else 2), _convolution(b, b), _convolution(b, b))
        for i, (a, b) in enumerate(zip(inputs, WIDTHS, strict=True))
    )


def _body(inputs: int, outputs: Sequence[nn.Module]) -> nn.Sequential:
    width = WIDTHS[-1]
    return nn.Sequential(_convolution(inputs, width), Residual(width, 2), Residual(width, 2), *outputs)


def adaptive_convolution(x: Tensor, filters: Tensor) -> Tensor:
    """Iterative adaptive convolution: for each position and channel a column filter, a row filter, a bias, and LReLU.

    Args:
        x: ``(B, C, H, W)``.
        filters: ``(B, FILTERS * C * (2 * TAPS + 1), H, W)``: for each step the columns' taps, the rows' taps, the
        biases.

    Returns:
        ``(B, C, H, W)``.
    """
    channels, height, width = x.shape[1:]
    reach = TAPS // 2
    for step in filters.chunk(FILTERS, dim=1):
        column, row, bias = step.split([TAPS * channels, TAPS * channels, channels], dim=1)
        padded = F.pad(x, (0, 0, reach, reach), mode="replicate")
        columns = [w * padded[:, :, i : i + height] for i, w in enumerate(column.chunk(TAPS, dim=1))]
        padded = F.pad(columns[0] + columns[1] + columns[2], (reach, reach, 0, 0), mode="replicate")
        rows = [w * padded[..., i : i + width] for i, w in enumerate(row.chunk(TAPS, dim=1))]
        x = F.leaky_relu(rows[0] + rows[1] + rows[2] + bias, SLOPE)
    return x


class IFAN(nn.Module):
    """The network; H and W are multiples of 8."""

    multiple = 8

    def __init__(self) -> None:
        super().__init__()
        w1, w2, w3, w4 = WIDTHS
        self.features = _encoder(3)
        self.filter_encoder = _encoder(6)
        self.disparity = _body(w4, [nn.Conv2d(w4, 1, 3, padding=1)])
        self.disparity_features = _convolution(1, w4)
        self.join = _body(2 * w4, [_convolution(w4, w4)])
        self.filters = _body(w4, [nn.Conv2d(w4, FILTERS * w4 * (2 * TAPS + 1), 1)])
        self.restore = nn.Sequential(_convolution(w4, w4), Residual(w4, 3), _convolution(w4, w4))
        self.ups = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(a, b, 4, 2, 1), nn.LeakyReLU(SLOPE))
            for a, b in ((w4, w3), (w3, w2), (w2, w1))
        )
        self.decoder = nn.ModuleList(nn.Sequential(Residual(w, 1), Residual(w, 1)) for w in (w3, w2, w1))
        self.last = _convolution(w1, 3)

    def forward(self, pair: Tensor) -> Tensor:
        """Pair ``(B, 6, H, W)`` in [0, 1] to the restored image ``(B, 3, H, W)``."""
        image = center(pair)
        skips, x = [], image
        for level in self.features:
            x = level(x)
            skips.append(x)
        skips.pop()
        encoded = pair
        for level in self.filter_encoder:
            encoded = level(encoded)
        disparity = self.disparity_features(self.disparity(encoded))
        x = adaptive_convolution(x, self.filters(self.join(torch.cat([encoded, disparity], dim=1))))
        x = self.restore(x)
        for up, block in zip(self.ups, self.decoder, strict=True):
            x = block(up(x) + skips.pop())
        return self.last(x) + image
