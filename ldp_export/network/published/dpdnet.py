"""DPDNet (Abuolaim and Brown, "Defocus Deblurring Using Dual-Pixel Data", ECCV 2020).

A U-Net on both views: two 3x3 convolutions with ReLU per scale (64 to 1024 channels), max pooling down, nearest
upsampling and a 2x2 convolution up, skips by concatenation, and a sigmoid at the end. The dropout of training does
nothing here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.network.published.base import PublishedConfig, PublishedNetwork, swap_colors

WIDTHS = (64, 128, 256, 512, 1024)


def pair_of_convolutions(channels: int, width: int) -> nn.Sequential:
    """Two 3x3 convolutions with ReLU: ``(B, channels, H, W)`` to ``(B, width, H, W)``."""
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


class KerasNetwork(PublishedNetwork):
    """A U-Net whose authors' file is Keras' and reads and writes BGR; ``0.kernel`` is that of the first layer.

    Attributes:
        ups: Upsampling convolutions, deepest first.
        decoder: Pairs of convolutions, one after each of them.
        last: The convolutions of the output, and what lies between them.
    """

    ups: nn.ModuleList
    decoder: nn.ModuleList
    last: nn.Sequential

    @abstractmethod
    def layers(self) -> Sequence[nn.Conv2d]:
        """The convolutions in the order of Keras."""

    @staticmethod
    def convolutions(modules: nn.Module) -> list[nn.Conv2d]:
        """The convolutions of a module in order."""
        return [module for module in modules.modules() if isinstance(module, nn.Conv2d)]

    def decoder_layers(self) -> list[nn.Conv2d]:
        """The convolutions from the first upsampling on, in order."""
        levels = zip(self.ups, self.decoder, strict=True)
        found = [layer for level in levels for module in level for layer in self.convolutions(module)]
        return found + self.convolutions(self.last)

    def published_state(self) -> dict[str, tuple[int, ...]]:
        """See ``PublishedNetwork.published_state``; kernels are ``(k, k, inputs, outputs)``."""
        state: dict[str, tuple[int, ...]] = {}
        for i, layer in enumerate(self.layers()):
            outputs, inputs, *sides = layer.weight.shape
            state |= {f"{i}.kernel": (*sides, inputs, outputs), f"{i}.bias": (outputs,)}
        return state

    @torch.no_grad()
    def load_published_state(self, state: Mapping[str, Tensor]) -> None:
        """See ``PublishedNetwork.load_published_state``."""
        layers = self.layers()
        for i, layer in enumerate(layers):
            kernel, bias = state[f"{i}.kernel"].permute(3, 2, 0, 1), state[f"{i}.bias"]
            if layer is layers[0]:
                kernel = swap_colors(kernel)
            if layer is layers[-1]:
                kernel, bias = kernel.flip(0), bias.flip(0)
            assert layer.bias is not None
            layer.weight.copy_(kernel)
            layer.bias.copy_(bias)


class DPDNet(KerasNetwork):
    """The network."""

    config = PublishedConfig("dpdnet", multiple=16, memory=1600, halo=160)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(pair_of_convolutions(a, b) for a, b in zip((6, *WIDTHS), WIDTHS, strict=False))
        self.ups = nn.ModuleList(UpConvolution(width) for width in reversed(WIDTHS[1:]))
        self.decoder = nn.ModuleList(pair_of_convolutions(2 * width, width) for width in reversed(WIDTHS[:-1]))
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

    def layers(self) -> Sequence[nn.Conv2d]:
        """See ``KerasNetwork.layers``."""
        return self.convolutions(self.encoder) + self.decoder_layers()
