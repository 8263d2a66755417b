"""K3DN (Yang et al., "K3DN: Disparity-Aware Kernel Estimation for Dual-Pixel Defocus Deblurring", CVPR 2023).

An encoder and a decoder at three scales; between them the map is cut into windows, and each of eight blocks convolves a
window depthwise and scales its channels by what the disparity between the views says of that window. At each scale of
the decoder, a local correlation of queries and keys gates what is added.

The authors resize every photo to ``WORKING_SIZE``, whatever its size and proportions, and the result back; so does
``forward``. Kernels that they parametrise for inversion are folded into plain ones by ``load_published_state``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.network.published.base import PublishedConfig, PublishedNetwork
from ldp_export.network.published.bicubic import resize
from ldp_export.network.published.mimo import Conv, Group, conv, up
from ldp_export.network.published.stereo import Features, conv3d, cost_volume, cut, join

WORKING_SIZE = (1152, 1792)
"""Height and width in px at which the network runs; photos of DPD-blur have 1120 x 1680 px."""

WIDTH = 48
BLOCKS = 4
"""Residual blocks of each group."""
WINDOW_BLOCKS = 8
WINDOW = (18, 14)
"""Height and width of a window on the map of an eighth of the size."""
UNIT = (16 * WINDOW[0], 16 * WINDOW[1])
"""The working size is a multiple of this many px, 288 x 224: two windows along each axis."""
STYLE = 256
"""Numbers that describe the disparity of a window."""
SIDE = 9
"""Side of the depthwise kernels, and of the neighbourhood of the correlation."""
SLOPE = 0.2
_GATE = 0.01
_EPS = 1e-8


def activated(inputs: int, outputs: int, stride: int = 1) -> Conv:
    """3x3, then LeakyReLU."""
    return conv(inputs, outputs, stride=stride, activation=nn.LeakyReLU(SLOPE))


class Residual(nn.Module):
    """``x + conv(leaky_relu(conv(x)))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(activated(width, width), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        return x + self.main(x)


def group(width: int) -> Group:
    """``BLOCKS`` residual blocks."""
    return Group(*(Residual(width) for _ in range(BLOCKS)))


class WindowBlock(nn.Module):
    """A depthwise 9x9 and a pointwise convolution of each window, its channels scaled by the window's disparity.

    Zero padding is that of the window, not of the map. The linear layers hold their constant factors: ``read`` the
    depthwise kernel's weighted sum, ``scale`` the authors' 1/16.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, SIDE, padding=SIDE // 2, groups=width, bias=False)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.read = nn.Linear(STYLE, width)
        self.write = nn.Linear(width, STYLE)
        self.scale = nn.Linear(STYLE, width)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Windows ``(N, C, h, w)`` and their styles ``(N, STYLE)`` to the windows' shape; the softmax is FP32."""
        style = style + F.leaky_relu(self.write(self.read(style)), SLOPE)
        scale = torch.softmax(self.scale(style).float(), dim=1).to(x.dtype)
        y = F.leaky_relu(self.depthwise(x), SLOPE) * scale[:, :, None, None]
        return x + F.leaky_relu(self.pointwise(y), SLOPE)


def nearest_means(size: int, samples: int, cell: int) -> Tensor:
    """Nearest resizing of an axis of ``size`` to ``samples``, then means over ``cell``: ``(samples / cell, size)``."""
    source = torch.arange(samples) * size // samples
    return F.one_hot(source, size).float().unflatten(0, (samples // cell, cell)).mean(1)


class WindowDisparity(nn.Module):
    """The style of each window, from a cost volume of the views at a quarter of the size."""

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.feature = Features((32, 16), stride=2)
        self.matching = nn.ModuleDict(
            {
                "start": nn.Sequential(conv3d(64, 32), conv3d(32, 48, stride=2), conv3d(48, 48)),
                "conv1a": nn.Sequential(conv3d(48, 64, stride=2), conv3d(64, 64)),
            }
        )
        self.fc = nn.Sequential(nn.Linear(64, STYLE), nn.LeakyReLU(SLOPE))
        for name, side, unit, cell in zip(("rows", "columns"), size, UNIT, (5, 4), strict=True):
            matrix = nearest_means(side // 32, side // 32 + side // unit, cell)
            self.register_buffer(name, matrix, persistent=False)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Views ``(B, 3, H, W)`` of the working size to the windows' styles ``(B * windows, STYLE)``, row by row."""
        small = [F.avg_pool2d(view, 4) for view in (left, right)]
        cost = cost_volume(*(self.feature(view) for view in small))  # (B, 64, 4, H / 8, W / 8)
        matched = self.matching["conv1a"](self.matching["start"](cost)).squeeze(2)  # (B, 64, H / 32, W / 32)
        means = self.rows @ matched @ self.columns.T  # (B, 64, windows down, windows across)
        return self.fc(means.flatten(2).transpose(1, 2).flatten(0, 1))


def correlate(query: Tensor, key: Tensor) -> Tensor:
    """Mean over channels of a query times the keys of its ``SIDE x SIDE`` neighbourhood, zero outside the map.

    Eight queries of a row are multiplied with the 16 keys that they share, one row of the neighbourhood at a time;
    the nine of each that belong to it lie on diagonals. So there are 9 matrix products in place of 81 products of whole
    maps. All of it is FP32 whatever the type, and so is the result.

    Args:
        query: ``(B, C, H, W)``; W is a multiple of 8.
        key: The same shape.

    Returns:
        ``(B, SIDE ** 2, H, W)``: channel ``(dy + 4) * 9 + dx + 4`` belongs to the key at ``(y + dy, x + dx)``.
    """
    channels, height, width = query.shape[1:]
    reach = SIDE // 2
    block = 2 * reach
    queries = (query.float() / channels).permute(0, 2, 3, 1).unflatten(2, (width // block, block))
    keys = F.pad(key.float(), [reach] * 4).permute(0, 2, 3, 1).unflatten(2, (width // block + 1, block))
    keys = torch.cat([keys[:, :, :-1], keys[:, :, 1:]], dim=3).transpose(3, 4)  # (B, H + 8, W / 8, C, 16)
    rows = []
    for shift in range(SIDE):
        products = queries @ keys[:, shift : shift + height]  # (B, H, W / 8, 8, 16)
        skewed = F.pad(products.flatten(3), (0, block)).unflatten(3, (block, 2 * block + 1))
        rows.append(skewed[..., :SIDE])  # from (B, H, W / 8, 8, 17), where a diagonal is a column
    return torch.cat(rows, dim=4).flatten(2, 3).permute(0, 3, 1, 2)


class CorrelationGate(nn.Module):
    """Joins features of the encoder with those from below; their local correlation gates what is added (SRP)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_q, self.conv_k = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.conv_v = nn.Conv2d(SIDE**2, width, 3, padding=1)
        ends = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.conv_o = nn.Sequential(next(ends), group(width), next(ends))

    def forward(self, old: Tensor, new: Tensor) -> Tensor:
        """``(B, C, H, W)`` and ``(B, D, H, W)`` to ``(B, C + D, H, W)``."""
        x = torch.cat([old, new], dim=1)
        gate = self.conv_v(correlate(self.conv_q(x), self.conv_k(x)).to(x.dtype))
        return x + self.conv_o(x * gate)


class K3DN(PublishedNetwork):
    """The network in its published size, L; takes photos of any size and works at one."""

    config = PublishedConfig("k3dn", multiple=1, memory=3700)

    def __init__(self, size: tuple[int, int] = WORKING_SIZE) -> None:
        """``size`` is height and width in px, multiples of 288 x 224 and at least 288 x 448."""
        super().__init__()
        self.config = replace(self.config, works_at=size)
        widths = [WIDTH, 2 * WIDTH, 4 * WIDTH]
        self.Encoder = nn.ModuleList(group(width) for width in widths)
        ups = ((4 * WIDTH, 2 * WIDTH), (4 * WIDTH, WIDTH), (2 * WIDTH, WIDTH))
        self.feat_extract = nn.ModuleList(
            [
                *(activated(a, b, stride=2) for a, b in zip([6, *widths], widths, strict=False)),
                *(up(a, b, nn.LeakyReLU(SLOPE)) for a, b in ups),
            ]
        )
        joined = (4 * WIDTH, 2 * WIDTH, WIDTH + 6)
        self.Decoder = nn.ModuleList(group(width) for width in joined)
        self.srp = nn.ModuleList(CorrelationGate(width) for width in joined)
        self.disp = WindowDisparity(size)
        self.deblur = nn.ModuleList(WindowBlock(4 * WIDTH) for _ in range(WINDOW_BLOCKS))
        self.out = conv(joined[-1], 3)

    @torch.no_grad()
    def tame(self) -> None:
        """See ``PublishedNetwork.tame``; a gate multiplies features with the square of theirs, thrice in a row."""
        for gate in self.modules():
            if isinstance(gate, CorrelationGate):
                for parameter in gate.conv_v.parameters():
                    parameter.mul_(_GATE)

    def forward(self, pair: Tensor) -> Tensor:
        """See ``PublishedNetwork.forward``; the output lies in [-0.5, 1.5], but for what bicubic resizing adds.

        Resizing is FP32 whatever the type; views are clamped after it, as integer photos are.
        """
        assert self.config.works_at is not None
        height, width = pair.shape[2:]
        resized = resize(pair, self.config.works_at).clamp(0, 1)
        return resize(super().forward(resized - 0.5), (height, width)) + 0.5

    def restore(self, pair: Tensor) -> Tensor:
        """Pair ``(B, 6, h, w)`` in [-0.5, 0.5] to the restored image ``(B, 3, h, w)`` in [-1, 1], at ``works_at``."""
        style = self.disp(pair[:, :3], pair[:, 3:])
        x, skips = pair, [pair]
        for extract, blocks in zip(self.feat_extract[:3], self.Encoder, strict=True):
            x = blocks(extract(x))
            skips.append(x)
        skips.pop()
        windows = [side // 8 // window for side, window in zip(pair.shape[2:], WINDOW, strict=True)]
        x = cut(x, *windows)  # (B * windows, 192, 18, 14)
        for block in self.deblur:
            x = block(x, style)
        x = join(x, *windows)
        for extract, gate, blocks in zip(self.feat_extract[3:], self.srp, self.Decoder, strict=True):
            x = blocks(gate(skips.pop(), extract(x)))
        return self.out(x).clamp(-1, 1)

    def published_state(self) -> dict[str, tuple[int, ...]]:
        """See ``PublishedNetwork.published_state``; the file holds the window blocks' kernels unfolded."""
        own = {key: shape for key, shape in super().published_state().items() if not key.startswith("deblur.")}
        width = 4 * WIDTH
        block = {
            "conv1.weight": (1, width, 1, 10, 6, 2),
            **{f"conv2.{name}": (width, width) for name in ("p", "lower", "upper")},
            **{f"conv2.{name}": (width,) for name in ("sign_s", "log_s", "modulation.bias")},
            "conv2.modulation.weight": (width, STYLE),
            "inter.to_w": (1, width, 1, SIDE, SIDE // 2 + 1),
            "inter.to_r.weight": (width, STYLE),
            "inter.to_r.bias": (width,),
            "inter.out.weight": (STYLE, width),
            "inter.out.bias": (STYLE,),
        }
        return own | {f"deblur.{i}.{name}": shape for i in range(len(self.deblur)) for name, shape in block.items()}

    def load_published_state(self, state: Mapping[str, Tensor]) -> None:
        """See ``PublishedNetwork.load_published_state``; folds what is constant."""
        plain = {key: state[key] for key in self.state_dict() if not key.startswith("deblur.")}
        for i in range(len(self.deblur)):
            start = f"deblur.{i}."
            block = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
            plain |= {f"{start}{key}": value for key, value in _fold_block(block).items()}
        self.load_state_dict(plain)


def _fold_block(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The plain weights of a ``WindowBlock`` from the published ones."""
    kernel = depthwise_kernel(block["conv1.weight"])
    half = kernel[..., : SIDE // 2 + 1]
    weights = (block["inter.to_w"][0].double() * half).sum((1, 2, 3))  # (C,)
    upper = block["conv2.upper"].double().triu(1) + torch.diag(block["conv2.sign_s"] * block["conv2.log_s"].exp())
    lower = block["conv2.lower"].double().tril(-1) + torch.eye(len(upper), dtype=torch.float64)
    pointwise = block["conv2.p"].double() @ lower @ upper
    folded = {
        "depthwise.weight": kernel,
        "pointwise.weight": pointwise[:, :, None, None],
        "read.weight": block["inter.to_r.weight"] * weights[:, None],
        "read.bias": block["inter.to_r.bias"] * weights,
        "write.weight": block["inter.out.weight"],
        "write.bias": block["inter.out.bias"],
        "scale.weight": block["conv2.modulation.weight"] / math.sqrt(STYLE),
        "scale.bias": block["conv2.modulation.bias"],
    }
    return {key: value.float() for key, value in folded.items()}


def depthwise_kernel(spectrum: Tensor) -> Tensor:
    """The depthwise kernels of a spectrum: its inverse transform's first nine rows and five columns, mirrored.

    Args:
        spectrum: ``(1, C, 1, 10, 6, 2)``: real and imaginary part of half a spectrum of 10 x 10.

    Returns:
        ``(C, 1, 9, 9)`` float64, each kernel of unit length.
    """
    full = torch.fft.irfft2(torch.view_as_complex(spectrum[0].double().contiguous()))  # (C, 1, 10, 10)
    half = full[:, :, :SIDE, : SIDE // 2 + 1]
    kernel = torch.cat([half, half[..., :-1].flip(-1)], dim=-1)
    return kernel * torch.rsqrt(kernel.square().sum((1, 2, 3), keepdim=True) + _EPS)
