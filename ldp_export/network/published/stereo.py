"""Layers that DDDNet and K3DN share: features of each view, a cost volume of shifted views, and the cutting of maps.

The names of parameters are those of the authors' files.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHIFTS = 4
"""Slices of the cost volume: the right view's features are shifted by 0, 1, 2 and 3 positions."""


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation and ReLU, in two or three dimensions."""

    def __init__(self, conv: nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d) -> None:
        super().__init__()
        self.conv = conv
        self.bn = (nn.BatchNorm2d if isinstance(conv, nn.Conv2d) else nn.BatchNorm3d)(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, [D,] H, W)`` to the size that the convolution gives."""
        return F.relu(self.bn(self.conv(x)))


def conv2d(inputs: int, outputs: int, dilation: int = 1, stride: int = 1) -> ConvNorm:
    """3x3 with its normalisation; keeps the size but for the stride."""
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
    return ConvNorm(conv)


def conv3d(inputs: int, outputs: int, stride: int = 1) -> ConvNorm:
    """3x3x3 with its normalisation; keeps the size but for the stride."""
    return ConvNorm(nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False))


class WidePool(nn.Module):
    """Average pooling over whole cells, in FP32 whatever the type: the sums exceed the range of FP16."""

    def __init__(self, cell: int) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, floor(H / cell), floor(W / cell))``; both sides are at least a cell."""
        return F.avg_pool2d(x.float(), self.cell).to(x.dtype)


class Features(nn.Module):
    """32 features of each position of a view, from its surroundings and from means over two sizes of cells.

    The means' 1x1 convolution is padded with one position of zeros, a slip of the authors that their weights need: the
    rim is what normalisation makes of zero.
    """

    def __init__(self, cells: tuple[int, int], stride: int) -> None:
        """Cells of ``branch1`` and ``branch3`` in px; ``stride`` is that of the last dilated convolution."""
        super().__init__()
        self.start = nn.Sequential(conv2d(3, 32), conv2d(32, 64))
        self.layer1 = nn.Sequential(conv2d(64, 128, dilation=4), conv2d(128, 128, dilation=8, stride=stride))
        self.branch1, self.branch3 = (
            nn.Sequential(
                WidePool(cell),
                nn.Sequential(nn.Conv2d(128, 32, 1, padding=1, bias=False), nn.BatchNorm2d(32)),
                nn.ReLU(),
            )
            for cell in cells
        )
        plain = nn.Sequential(OrderedDict(conv=nn.Conv2d(96, 32, 1, bias=False)))  # neither normalisation nor ReLU
        self.end = nn.Sequential(conv2d(192, 96), plain)

    def forward(self, view: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to ``(B, 32, H / stride, W / stride)``."""
        x = self.layer1(self.start(view))
        size = x.shape[2:]
        means = [
            F.interpolate(branch(x), size, mode="bilinear", align_corners=True)
            for branch in (self.branch1, self.branch3)
        ]
        return self.end(torch.cat([*means, x], dim=1))


def cost_volume(left: Tensor, right: Tensor) -> Tensor:
    """Features of the left view beside those of the right one, shifted by 0 to ``SHIFTS - 1`` positions.

    The first i columns of slice i, where the shifted view has none, are zero. The authors leave them uninitialised, so
    that their own result differs from run to run at the left rim.

    Args:
        left: ``(B, C, H, W)``.
        right: The same of the right view.

    Returns:
        ``(B, 2C, SHIFTS, H, W)``.
    """
    slices = [torch.cat([left, right], dim=1)]
    for shift in range(1, SHIFTS):
        both = torch.cat([left[..., shift:], right[..., :-shift]], dim=1)
        slices.append(F.pad(both, (shift, 0)))
    return torch.stack(slices, dim=2)


def cut(x: Tensor, rows: int, columns: int) -> Tensor:
    """Cuts into equal cells, row by row: ``(B, C, rows * h, columns * w)`` to ``(B * rows * columns, C, h, w)``."""
    batch, channels, height, width = x.shape
    cells = x.reshape(batch, channels, rows, height // rows, columns, width // columns)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (B, rows, columns, C, h, w) before


def join(cells: Tensor, rows: int, columns: int) -> Tensor:
    """Joins what ``cut`` has cut: ``(B * rows * columns, C, h, w)`` to ``(B, C, rows * h, columns * w)``."""
    channels, height, width = cells.shape[1:]
    x = cells.reshape(-1, rows, columns, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, channels, rows * height, columns * width)
