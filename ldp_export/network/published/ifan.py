"""IFAN (Lee et al., "Iterative Filter Adaptive Network for Single Image Defocus Deblurring", CVPR 2021), dual-pixel.

The model for pairs of the paper's supplement: the filter encoder sees both views, the deblurring path the center view.
A disparity map is estimated on the way, and from it and the encoder's features every position at 1/8 gets, for each
channel, 17 filters of 3 taps and biases; iterative adaptive convolution (Eq. 2) applies them one after the other to the
features of the center view, along columns, then along rows. The parts for training only (reblurring, warping) are
omitted.

The paper has a filter for columns and another for rows. The authors' code predicts both and, as they confirm, applies
that for columns twice; their weights were trained so. Here the second one is not computed: a head of 8704 channels in
place of 15232.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.network.published.base import PublishedConfig, PublishedNetwork
from ldp_export.network.published.layers import center

WIDTHS = (32, 64, 128, 128)
FILTERS = 17
TAPS = 3
SLOPE = 0.1

_RANDOM_FILTERS = 0.03


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
    """Iterative adaptive convolution: for each position and channel a column filter, the same along the row, LReLU.

    Args:
        x: ``(B, C, H, W)``.
        filters: ``(B, FILTERS * C * (TAPS + 1), H, W)``: for each step the taps, then the biases.

    Returns:
        ``(B, C, H, W)``.
    """
    height, width = x.shape[2:]
    reach = TAPS // 2
    for step in filters.chunk(FILTERS, dim=1):
        *taps, bias = step.chunk(TAPS + 1, dim=1)
        padded = F.pad(x, (0, 0, reach, reach), mode="replicate")
        columns = [w * padded[:, :, i : i + height] for i, w in enumerate(taps)]
        padded = F.pad(columns[0] + columns[1] + columns[2], (reach, reach, 0, 0), mode="replicate")
        rows = [w * padded[..., i : i + width] for i, w in enumerate(taps)]
        x = F.leaky_relu(rows[0] + rows[1] + rows[2] + bias, SLOPE)
    return x


class IFAN(PublishedNetwork):
    """The network; its authors' filter encoder reads the right view first."""

    config = PublishedConfig("ifan", multiple=8, memory=2200, halo=256)
    adds_center = True
    linear_end = "last"
    ignored = ("reblurNet.",)
    names = (
        (r"units\.(\d)\.0\.0\.", r"stem.\1.0."),
        (r"units\.(\d)\.1\.", r"stem.\1.2."),
        (r"^disparity\.", "DME."),
        (r"^disparity_features\.", "conv_DME."),
        (r"^join\.", "conv4_4."),
        (r"^filters\.", "F."),
        (r"^refine\.", "conv_res."),
        (r"^last\.", "out_res."),
    )

    def __init__(self) -> None:
        super().__init__()
        w1, w2, w3, w4 = WIDTHS
        self.features = _encoder(3)
        self.filter_encoder = _encoder(6)
        self.disparity = _body(w4, [nn.Conv2d(w4, 1, 3, padding=1)])
        self.disparity_features = _convolution(1, w4)
        self.join = _body(2 * w4, [_convolution(w4, w4)])
        self.filters = _body(w4, [nn.Conv2d(w4, FILTERS * w4 * (TAPS + 1), 1)])
        self.refine = nn.Sequential(_convolution(w4, w4), Residual(w4, 3), _convolution(w4, w4))
        self.ups = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(a, b, 4, 2, 1), nn.LeakyReLU(SLOPE))
            for a, b in ((w4, w3), (w3, w2), (w2, w1))
        )
        self.decoder = nn.ModuleList(nn.Sequential(Residual(w, 1), Residual(w, 1)) for w in (w3, w2, w1))
        self.last = _convolution(w1, 3)

    def restore(self, pair: Tensor) -> Tensor:
        """See ``PublishedNetwork.restore``; the residual alone."""
        skips, x = [], center(pair)
        for level in self.features:
            x = level(x)
            skips.append(x)
        skips.pop()
        encoded = pair
        for level in self.filter_encoder:
            encoded = level(encoded)
        disparity = self.disparity_features(self.disparity(encoded))
        x = adaptive_convolution(x, self.filters(self.join(torch.cat([encoded, disparity], dim=1))))
        x = self.refine(x)
        for up, block in zip(self.ups, self.decoder, strict=True):
            x = block(up(x) + skips.pop())
        return self.last(x)

    @torch.no_grad()
    def tame(self) -> None:
        """See ``PublishedNetwork.tame``; filters are made to differ little from the identity: 17 follow each other."""
        last = self.filters[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        for parameter in last.parameters():
            parameter.mul_(_RANDOM_FILTERS)
        last.bias.view(FILTERS, TAPS + 1, -1)[:, TAPS // 2] += 1
        super().tame()

    def published_name(self, key: str) -> str:
        """See ``PublishedNetwork.published_name``."""
        key = super().published_name(key)
        if match := re.match(r"(filter_encoder|features)\.(\d)\.(\d)\.(.*)", key):
            kind, level, layer, rest = match.groups()
            return f"{'k' if kind == 'filter_encoder' else ''}conv{int(level) + 1}_{int(layer) + 1}.{rest}"
        if match := re.match(r"ups\.(\d)\.(.*)", key):
            return f"upconv{3 - int(match[1])}_u.{match[2]}"
        if match := re.match(r"decoder\.(\d)\.(\d)\.(.*)", key):
            return f"upconv{3 - int(match[1])}_{int(match[2]) + 1}.{match[3]}"
        return key

    def published_state(self) -> dict[str, tuple[int, ...]]:
        """See ``PublishedNetwork.published_state``; the last layer of the filters has those for rows, too."""
        outputs = FILTERS * WIDTHS[-1] * (2 * TAPS + 1)
        last = {"F.3.weight": (outputs, WIDTHS[-1], 1, 1), "F.3.bias": (outputs,)}
        return super().published_state() | last

    def load_published_state(self, state: Mapping[str, Tensor]) -> None:
        """See ``PublishedNetwork.load_published_state``."""
        first = state["kconv1_1.0.weight"].roll(3, dims=1)
        kept = {name: state[name][_kept_filters()] for name in ("F.3.weight", "F.3.bias")}
        super().load_published_state({**state, **kept, "kconv1_1.0.weight": first})


def _kept_filters() -> Tensor:
    """Where the authors' last layer of the filters has the outputs that are used, in the order of those here.

    Theirs: for each step the taps of columns, then of rows, each channel by channel; behind all steps their biases.
    """
    channels = WIDTHS[-1]
    step, tap, channel = torch.meshgrid(*map(torch.arange, (FILTERS, TAPS, channels)), indexing="ij")
    taps = (2 * step * channels + channel) * TAPS + tap  # (FILTERS, TAPS, C)
    biases = 2 * FILTERS * channels * TAPS + torch.arange(FILTERS * channels).reshape(FILTERS, 1, channels)
    return torch.cat([taps, biases], dim=1).flatten()
