"""Layers of the NAFNet backbone (Chen et al. 2022), with channel attention that pools locally.

Some layers have three forms that compute the same: PyTorch's own for training, and two for export. CPU runtimes take
the FP32 graph, where a reduction costs a pass over the map and often a change of its layout: there means are
convolutions and pooling layers, and what a gate multiplies comes from two convolutions in place of one whose result
would be cut in two. TensorRT takes the FP16 graph, where time is what the layers read and write: no normalised map is
written, a gate's product is made where its second convolution ends, and a skip is added where the map is enlarged.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDE = 256
"""From so many channels on TensorRT-RTX takes matrix kernels for 1x1 convolutions, which scale nothing afterwards. A
transposed convolution stays one, and is the same product."""


def exports_for_cpu(x: Tensor) -> bool:
    """Whether a graph for CPU runtimes is being exported, where ``x`` is a map of the network."""
    return torch.compiler.is_exporting() and x.dtype == torch.float32


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of ``(B, C, H, W)``, with FP32 statistics whatever the input's type.

    The residual stream of a NAFNet reaches |x| ~ 175, and sums of its squares overflow FP16.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    averaging: Tensor | None

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("averaging", None, persistent=False)  # weights of a 1x1 convolution; `fold_norm` sets it
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape and type."""
        if torch.compiler.is_exporting():  # no transposes in the graph, and FP32 islands that every runtime keeps
            centred, scale = self.statistics(x)
            normalised = centred * scale
            if self.weight is not None and self.bias is not None:
                normalised = normalised * self.weight.float()[:, None, None] + self.bias.float()[:, None, None]
            return normalised.to(x.dtype)
        channels_last = x.permute(0, 2, 3, 1)
        weight, bias = (None if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
        return F.layer_norm(channels_last, (x.shape[1],), weight, bias, self.eps).permute(0, 3, 1, 2)

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` less its channels' mean ``(B, C, H, W)``, and the factor ``(B, 1, H, W)`` to variance 1; both FP32."""
        averaging = self.averaging if exports_for_cpu(x) else None
        wide = x.float()
        centred = wide - _channel_mean(wide, averaging)
        return centred, torch.rsqrt(_channel_mean(centred * centred, averaging) + self.eps)


def _channel_mean(x: Tensor, averaging: Tensor | None) -> Tensor:
    """Mean of the channels: ``(B, C, H, W)`` to ``(B, 1, H, W)``; by convolution where there are weights for one."""
    return x.mean(1, keepdim=True) if averaging is None else F.conv2d(x, averaging)


class SimpleGate(nn.Module):
    """The product of the two halves of the channels: ``(B, 2C, H, W)`` to ``(B, C, H, W)``."""

    def forward(self, x: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """``(B, 2C, H, W)``, or its halves, to ``(B, C, H, W)``."""
        first, second = x if isinstance(x, tuple) else x.chunk(2, dim=1)
        return first * second


class Halves(nn.Module):
    """A convolution before a gate as two, one for each half of its output channels; for export only.

    CPU runtimes copy what they split; two convolutions leave nothing to split. The result is the same to the bit.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        """Copies the weights of ``conv``, which is dense or depthwise."""
        super().__init__()
        self.first, self.second = (_part(conv, half, 2) for half in range(2))

    def forward(self, x: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """``(B, C, H, W)``, or for a depthwise convolution its halves, to the halves of what the convolution gives."""
        first, second = x if isinstance(x, tuple) else (x, x)
        return self.first(first), self.second(second)


def _part(conv: nn.Conv2d, number: int, count: int) -> nn.Conv2d:
    """Part ``number`` of ``count`` of the output channels; of a depthwise convolution, from those alone."""
    channels = conv.out_channels // count
    depthwise = conv.groups > 1
    part = nn.utils.skip_init(
        nn.Conv2d,
        channels if depthwise else conv.in_channels,
        channels,
        conv.kernel_size,
        padding=conv.padding,
        groups=channels if depthwise else 1,
        bias=conv.bias is not None,
    )
    for name, value in conv.named_parameters():
        setattr(part, name, nn.Parameter(value.detach().chunk(count)[number].clone()))
    return part


def _transposed(kernel: Tensor) -> nn.ConvTranspose2d:
    """A transposed convolution without overlap or bias, of ``(C out, C in, s, s)``: enlarges by s."""
    outputs, inputs, side = kernel.shape[:3]
    conv = nn.utils.skip_init(nn.ConvTranspose2d, inputs, outputs, side, stride=side, bias=False)
    conv.weight = nn.Parameter(kernel.detach().transpose(0, 1).contiguous())
    return conv


class NormalisedConv(nn.Module):
    """A normalisation and the 1x1 convolution after it as one, for the FP16 graph only.

    With ``m`` the mean of a position's channels and ``s`` one over their deviation, ``W ((x - m) s) + b`` is
    ``(W' x) s + b``, where each row of ``W'`` is W's less its mean. The map itself is convolved and the result scaled,
    which TensorRT does in one layer; the normalised map is never written, only ``s``, one number a position.
    """

    def __init__(self, norm: LayerNorm2d, conv: nn.Conv2d, count: int = 1) -> None:
        """Copies the weights of ``conv``.

        Args:
            norm: The normalisation; ``fold_norm`` has moved its weight and bias into ``conv``.
            conv: The convolution.
            count: How many convolutions to make of it, where what follows takes its output channels in parts.
        """
        super().__init__()
        self.norm = norm
        centred = copy.deepcopy(conv)
        centred.weight = nn.Parameter(conv.weight.detach() - conv.weight.detach().mean(1, keepdim=True))
        self.biases, self.parts = nn.ParameterList(), nn.ModuleList()
        for part in (_part(centred, number, count) for number in range(count)):
            assert part.bias is not None  # `fold_norm` gives it one
            self.biases.append(nn.Parameter(part.bias.detach()[:, None, None]))
            part.bias = None
            self.parts.append(_transposed(part.weight) if part.in_channels >= WIDE else part)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """``(B, C, H, W)`` to ``(B, any, H, W)``, or to its parts."""
        scale = self.norm.statistics(x)[1].to(x.dtype)
        parts = tuple(part(x) * scale + bias for part, bias in zip(self.parts, self.biases, strict=True))
        return parts if len(parts) > 1 else parts[0]


class SimplifiedChannelAttention(nn.Module):
    """NAFNet's SCA, ``x * conv1x1(pool(x))``, with the pool taken over a local window.

    The map is averaged over cells of ``cell`` x ``cell`` positions and those over their 3 x 3 neighbours (fewer at the
    border), so that a position's statistics come from about three cells around it; the 1x1 convolution runs on that
    coarse grid and its result is interpolated bilinearly. Training patches, tiles and full frames then see the same
    statistics. ``cell=None`` averages the whole map, which is NAFNet's own layer.
    """

    def __init__(self, channels: int, cell: int | None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)``, H and W multiples of ``cell``, to the same shape."""
        if self.cell is None:
            return x * self.conv(x.float().mean((2, 3), keepdim=True).to(x.dtype))
        attention = self.conv(self._pool(x, self.cell).to(x.dtype))
        scale = float(self.cell)  # the size would be read from x in the graph
        return x * F.interpolate(attention, scale_factor=scale, mode="bilinear", align_corners=False).to(x.dtype)

    @staticmethod
    def _pool(x: Tensor, cell: int) -> Tensor:
        """Means over cells and their neighbours: ``(B, C, H, W)`` to ``(B, C, H / cell, W / cell)`` in FP32."""
        if not torch.compiler.is_exporting() or exports_for_cpu(x):
            return F.avg_pool2d(F.avg_pool2d(x.float(), cell), 3, stride=1, padding=1, count_include_pad=False)
        # TensorRT pools while it writes x; pooling layers would take FP32 copies of x and of its means.
        cells = x.reshape(x.shape[0], x.shape[1], x.shape[2] // cell, cell, x.shape[3] // cell, cell)
        means = cells.float().mean((3, 5))
        return _sum_neighbours(means) / _sum_neighbours(torch.ones_like(means[:, :1]))


def _sum_neighbours(x: Tensor) -> Tensor:
    """Sums over 3 x 3 positions, zero beyond the border: ``(B, C, H, W)`` to the same shape."""
    x = F.pad(x, (1, 1, 1, 1))
    x = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    return x[..., :-2] + x[..., 1:-1] + x[..., 2:]


def fold_norm(norm: LayerNorm2d, conv: nn.Conv2d) -> None:
    """Moves a normalisation's weight and bias into the 1x1 convolution that follows it.

    Args:
        norm: Keeps neither; a graph for CPUs has its means by convolution from here on.
        conv: Computes after this what both did before.
    """
    if norm.weight is None or norm.bias is None:
        return
    channels = norm.weight.shape[0]
    norm.averaging = torch.full((1, channels, 1, 1), 1 / channels)  # exact in bf16 too where channels are a power of 2
    kernel = conv.weight.detach()
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
    conv.bias = nn.Parameter(bias + kernel.flatten(1) @ norm.bias.detach())
    conv.weight = nn.Parameter(kernel * norm.weight.detach()[:, None, None])
    norm.weight = norm.bias = None


def fold_scale(conv: nn.Conv2d, scale: nn.Parameter | None) -> None:
    """Moves a learned scale ``(1, C, 1, 1)`` into the convolution that it follows; None changes nothing."""
    if scale is None:
        return
    factor = scale.detach().flatten()
    conv.weight = nn.Parameter(conv.weight.detach() * factor[:, None, None, None])
    if conv.bias is not None:
        conv.bias = nn.Parameter(conv.bias.detach() * factor)


def add_scaled(x: Tensor, y: Tensor, scale: nn.Parameter | None) -> Tensor:
    """The residual ``x + scale * y`` of ``(B, C, H, W)``; None is a scale that was folded into what made ``y``."""
    return x + y if scale is None else x + y * scale.to(x.dtype)


class NAFBlock(nn.Module):
    """The block of NAFNet: a gated depthwise convolution with SCA, then a gated pointwise layer, both residual."""

    beta: nn.Parameter | None
    gamma: nn.Parameter | None

    def __init__(self, channels: int, sca_cell: int | None) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.gate = SimpleGate()
        self.sca = SimplifiedChannelAttention(channels, sca_cell)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.norm2 = LayerNorm2d(channels)
        self.conv4 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        y = self.conv3(self.sca(self.gate(self.conv2(self.conv1(self.norm1(x))))))
        x = add_scaled(x, y, self.beta)
        y = self.conv5(self.gate(self.conv4(self.norm2(x))))
        return add_scaled(x, y, self.gamma)

    def fold(self) -> None:
        """Moves normalisations' weights and the residual scales into the convolutions beside them, for export."""
        fold_norm(self.norm1, self.conv1)
        fold_norm(self.norm2, self.conv4)
        fold_scale(self.conv3, self.beta)
        fold_scale(self.conv5, self.gamma)
        self.beta = self.gamma = None

    def merge_norms(self) -> None:
        """Makes one layer of each normalisation and the convolution after it, for the FP16 graph; after ``fold``."""
        self.add_module("conv1", NormalisedConv(self.norm1, self.conv1))
        self.add_module("conv4", NormalisedConv(self.norm2, self.conv4, 2))
        self.add_module("norm1", nn.Identity())
        self.add_module("norm2", nn.Identity())

    def split_gates(self) -> None:
        """Makes two of each convolution before a gate, for the graph of CPU runtimes; after ``fold``."""
        for name, conv in (("conv1", self.conv1), ("conv2", self.conv2), ("conv4", self.conv4)):
            self.add_module(name, Halves(conv))


class Enlarge(nn.Sequential):
    """A 1x1 convolution and a pixel shuffle: ``(B, C, H, W)`` to ``(B, C / 2, 2H, 2W)``."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, 2 * channels, 1, bias=False), nn.PixelShuffle(2))

    def merge_shuffle(self) -> None:
        """Makes one transposed convolution of both, for the FP16 graph: TensorRT adds the skip as it writes."""
        kernel = self.get_parameter("0.weight").detach()  # (4c, C, 1, 1), four rows for the positions of each channel
        self[0] = _transposed(kernel.unflatten(0, (-1, 2, 2)).movedim(3, 1).flatten(3))
        del self[1]
