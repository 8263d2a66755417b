"""RDPD (Abuolaim et al., "Learning to Reduce Defocus Blur by Realistically Modeling Dual-Pixel Data", ICCV 2021).

DPDNet at half its width with a convolutional LSTM (512 channels) at the deepest scale, for video. On one pair its state
is zero, so that the recurrent kernel and the forget gate drop out: what is left is a convolution to the three other
gates and a product, exactly. The output is linear; the authors clip it.

One form has a seventh input channel, the distance from the center of the image, 1 in its corners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.network.published.base import PublishedConfig
from ldp_export.network.published.dpdnet import KerasNetwork, UpConvolution, pair_of_convolutions

WIDTHS = (32, 64, 128, 256)
STATE = 512
"""Channels of the LSTM."""

PAIR, MASKED = 6, 7


def hard_sigmoid(x: Tensor) -> Tensor:
    """Keras' piecewise linear sigmoid; torch's has another slope."""
    return (0.2 * x + 0.5).clamp(0, 1)


def radius_mask(pair: Tensor) -> Tensor:
    """Distance from the center of ``(B, C, H, W)``, 1 in the corners: ``(B, 1, H, W)``."""
    rows, columns = (
        torch.arange(size, device=pair.device, dtype=torch.float32) - (size - 1) / 2 for size in pair.shape[2:]
    )
    square = rows.square()[:, None] + columns.square()  # (H, W)
    corner = rows[:1].square()[:, None] + columns[:1].square()  # (1, 1)
    return (square / corner).sqrt().to(pair.dtype).expand(pair.shape[0], 1, -1, -1)


class RDPD(KerasNetwork):
    """The network.

    Args:
        channels: ``PAIR``, or ``MASKED`` for the form that reads ``radius_mask``, too; then tiles differ from the full
            frame, and the mask is that of the padded pair.
    """

    linear_end = "last.2"

    def __init__(self, channels: int = PAIR) -> None:
        super().__init__()
        self.config = PublishedConfig("rdpd", multiple=16, memory=900, halo=160 if channels == PAIR else None)
        self.channels = channels
        inputs = (channels, *WIDTHS[:-1])
        self.encoder = nn.ModuleList(pair_of_convolutions(a, b) for a, b in zip(inputs, WIDTHS, strict=True))
        self.bottleneck = nn.Conv2d(WIDTHS[-1], STATE, 3, padding=1)
        self.gates = nn.Conv2d(STATE, 3 * STATE, 3, padding=1)
        self.ups = nn.ModuleList(UpConvolution(2 * width) for width in reversed(WIDTHS))
        self.decoder = nn.ModuleList(pair_of_convolutions(2 * width, width) for width in reversed(WIDTHS))
        self.last = nn.Sequential(nn.Conv2d(WIDTHS[0], 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 1))

    @classmethod
    def fitting(cls, state: Mapping[str, Tensor]) -> RDPD:
        """See ``PublishedNetwork.fitting``: the first kernel says whether there is a mask."""
        first = state.get("0.kernel")
        return cls(MASKED if first is not None and first.ndim == 4 and first.shape[2] == MASKED else PAIR)

    def restore(self, pair: Tensor) -> Tensor:
        """See ``PublishedNetwork.restore``."""
        x = torch.cat([pair, radius_mask(pair)], dim=1) if self.channels == MASKED else pair
        skips = []
        for block in self.encoder:
            skips.append(block(x))
            x = F.max_pool2d(skips[-1], 2)
        write, candidate, read = self.gates(F.relu(self.bottleneck(x))).chunk(3, dim=1)
        x = hard_sigmoid(read) * torch.tanh(hard_sigmoid(write) * torch.tanh(candidate))
        for up, block in zip(self.ups, self.decoder, strict=True):
            x = block(torch.cat([skips.pop(), up(x)], dim=1))
        return self.last(x)

    def layers(self) -> Sequence[nn.Conv2d]:
        """See ``KerasNetwork.layers``; the gates stand where the LSTM is."""
        return [*self.convolutions(self.encoder), self.bottleneck, self.gates, *self.decoder_layers()]

    def published_state(self) -> dict[str, tuple[int, ...]]:
        """See ``PublishedNetwork.published_state``."""
        kernel = (3, 3, STATE, 4 * STATE)
        lstm = {"kernel": kernel, "recurrent_kernel": kernel, "bias": kernel[3:]}
        return super().published_state() | {f"{self._lstm}.{name}": shape for name, shape in lstm.items()}

    def load_published_state(self, state: Mapping[str, Tensor]) -> None:
        """See ``PublishedNetwork.load_published_state``; Keras orders the gates write, forget, candidate, read."""
        kept = {}
        for name in (f"{self._lstm}.kernel", f"{self._lstm}.bias"):
            write, _, candidate, read = state[name].chunk(4, dim=-1)
            kept[name] = torch.cat([write, candidate, read], dim=-1)
        super().load_published_state({**state, **kept})

    @property
    def _lstm(self) -> int:
        return 2 * len(WIDTHS) + 1
