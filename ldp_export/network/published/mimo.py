"""Layers of networks built like MIMO-UNet, K3DN and DeepRFT: names of parameters are those of the authors' files."""

from __future__ import annotations

from torch import Tensor, nn


class Conv(nn.Module):
    """A convolution, then an activation where there is one."""

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.main = nn.Sequential(layer, *([] if activation is None else [activation]))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the size that the convolution gives."""
        return self.main(x)


def conv(inputs: int, outputs: int, side: int = 3, stride: int = 1, activation: nn.Module | None = None) -> Conv:
    """A convolution without bias, of an odd side; keeps the size but for the stride."""
    return Conv(nn.Conv2d(inputs, outputs, side, stride=stride, padding=side // 2, bias=False), activation)


def up(inputs: int, outputs: int, activation: nn.Module) -> Conv:
    """A transposed 4x4 convolution without bias, to twice the size."""
    return Conv(nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False), activation)


class Group(nn.Module):
    """Blocks one after another."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        return self.layers(x)
