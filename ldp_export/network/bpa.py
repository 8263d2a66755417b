"""Blur-prior attention (BPA): self-attention whose map is biased by kernels read from the blur map (Eq. 9 and 10)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.network.layers import (
    Halves,
    LayerNorm2d,
    NormalisedConv,
    SimpleGate,
    add_scaled,
    fold_norm,
    fold_scale,
)

OUTSIDE = -(2.0**14)
"""Stands for -inf in the mask of keys outside the map: exp underflows to 0 in FP16 too, and no row becomes NaN."""


class BlurKernels(nn.Module):
    """``FFN_conv`` of Eq. 10: unnormalised blur map to q * q kernel logits a position."""

    def __init__(self, kernel: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2 * hidden, 3, padding=1)
        self.gate = SimpleGate()
        self.conv2 = nn.Conv2d(hidden, kernel * kernel, 3, padding=1)

    def forward(self, blur_logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Blur logits ``(B, 1, any, any)`` to kernel logits ``(B, q * q, *size)``, row-major offsets from -(q//2)."""
        resampled = F.interpolate(blur_logits, size=size, mode="bilinear", align_corners=False)
        return self.conv2(self.gate(self.conv1(resampled)))


def place_kernels(kernels: Tensor, side: int) -> Tensor:
    """``Pad`` of Eq. 10 for windows: puts q x q kernels at their relative offsets among a window's keys.

    Query (y, x) of a window stands at key (y + q//2, x + q//2), so offset (a, b) of its kernel is key (y + a, x + b).

    Args:
        kernels: ``(n, side, side, q, q)``: query row, query column, offset row, offset column.
        side: Side of the window of queries.

    Returns:
        O ``(n, side * side, keys * keys)`` with ``keys = side + q - 1``; zero outside the q x q neighbourhood.
    """
    q = kernels.shape[-1]
    keys = side + q - 1
    # Along an axis: for each pair of query and key, where in the queries' kernels its entry stands; entry q is zero.
    query = torch.arange(side, device=kernels.device)[:, None]
    offset = torch.arange(keys, device=kernels.device) - query
    entry = (query * (q + 1) + torch.where((offset >= 0) & (offset < q), offset, q)).flatten()
    placed = F.pad(kernels, (0, 1, 0, 1)).permute(0, 1, 3, 2, 4)  # (n, y, a, x, b)
    placed = placed.flatten(3).index_select(3, entry)  # (n, y, a, x and key column)
    placed = placed.flatten(1, 2).index_select(1, entry)  # (n, y and key row, x and key column)
    placed = placed.unflatten(2, (side, keys)).unflatten(1, (side, keys))  # (n, y, key row, x, key column)
    return placed.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)


def cut_windows(x: Tensor, side: int, reach: int) -> Tensor:
    """Windows of ``side`` x ``side`` positions that tile the map, each reaching further on every side.

    Args:
        x: ``(B, C, H, W)``.
        side: Side of a window.
        reach: Positions added on each side of a window. Those beyond the map repeat its border.

    Returns:
        ``(B * rows * columns, (side + 2 * reach)^2, C)``, with ``rows = ceil(H / side)`` and ``columns = ceil(W /
        side)``.
    """
    channels, height, width = x.shape[1:]
    row, column = (_positions(length, side, reach, x.device).clamp(0, length - 1) for length in (height, width))
    place = row[:, None, :, None] * width + column[:, None]  # (rows, columns, keys, keys)
    tokens = x.flatten(2).transpose(1, 2).index_select(1, place.flatten())
    return tokens.reshape(-1, (side + 2 * reach) ** 2, channels)


def merge_windows(windows: Tensor, side: int, batch: int, rows: int, columns: int) -> Tensor:
    """Puts windows together: ``(B * rows * columns, side * side, C)`` to ``(B, C, rows * side, columns * side)``."""
    channels = windows.shape[2]
    x = windows.reshape(batch, rows, columns, side, side, channels).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(batch, channels, rows * side, columns * side)


def _positions(length: int, side: int, reach: int, device: torch.device) -> Tensor:
    """Along an axis of ``length``, where each window's positions stand: ``(ceil(length / side), side + 2 * reach)``."""
    start = torch.arange((length + side - 1) // side, device=device)[:, None] * side
    return start + torch.arange(-reach, side + reach, device=device)


class BlurPriorAttention(nn.Module):
    """Multi-head spatial self-attention with ``softmax(Q K^T / beta + O) V`` (Eq. 9), beta = sqrt(head dimension).

    O (Eq. 10) comes from the blur logits and is shared by the heads. With ``window=None`` every position attends to
    every other. Otherwise windows of ``window`` x ``window`` queries attend to keys that reach ``kernel // 2``
    positions further on every side, so that no kernel is cut at a window's edge; the result equals the global one when
    one window holds the map.

    With ``hidden=None`` there is no O and the blur logits are not read: plain self-attention (Eq. 8) over the same
    keys, the "SA" of Table 6.
    """

    def __init__(self, channels: int, head_dim: int, kernel: int, hidden: int | None, window: int | None) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.kernel = kernel
        self.window = window
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        self.kernels = None if hidden is None else BlurKernels(kernel, hidden)

    def forward(self, x: Tensor, blur_logits: Tensor) -> Tensor:
        """Features ``(B, C, H, W)`` and blur logits ``(B, 1, any, any)`` to ``(B, C, H, W)``."""
        height, width = x.shape[2:]
        qkv: Tensor | tuple[Tensor, ...] = self.qkv(x)
        kernels = None if self.kernels is None else self.kernels(blur_logits.to(x.dtype), (height, width))
        if self.window is None:
            query, key, value = qkv if isinstance(qkv, tuple) else qkv.chunk(3, dim=1)
            attended = self._attend_globally(query, key, value, kernels)
        else:
            attended = self._attend_in_windows(qkv, kernels, self.window)
        return self.project(attended)

    def _attend_globally(self, query: Tensor, key: Tensor, value: Tensor, kernels: Tensor | None) -> Tensor:
        batch, channels, height, width = query.shape
        reach, side = self.kernel // 2, max(height, width)
        bias: Tensor | None = None
        if kernels is not None:
            # One square window that holds the map; keys beyond the map are cut off again.
            pad = (0, side - width, 0, side - height)
            square = F.pad(kernels, pad).permute(0, 2, 3, 1).unflatten(3, (self.kernel, self.kernel))
            bias = place_kernels(square, side).unflatten(2, (side + 2 * reach, -1)).unflatten(1, (side, side))
            bias = bias[:, :height, :width, reach : reach + height, reach : reach + width]
            bias = bias.reshape(batch, 1, height * width, height * width)
        query, key, value = (t.flatten(2).transpose(1, 2) for t in (query, key, value))
        attended = self._attend(query, key, value, bias)  # (B, H * W, C)
        return attended.transpose(1, 2).reshape(batch, channels, height, width)

    def _attend_in_windows(self, qkv: Tensor | tuple[Tensor, ...], kernels: Tensor | None, side: int) -> Tensor:
        """``qkv`` is ``(B, 3C, H, W)`` or its thirds."""
        if isinstance(qkv, tuple):
            query, *others = qkv
        else:  # CPU runtimes cut K and V at once; TensorRT would copy them out of one map first
            channels = qkv.shape[1] // 3
            query, *others = qkv[:, :channels], qkv[:, channels:]
        batch, _, height, width = query.shape
        reach = self.kernel // 2
        row, column = (_positions(length, side, reach, query.device) for length in (height, width))
        rows, columns = row.shape[0], column.shape[0]
        inside_y, inside_x = (row >= 0) & (row < height), (column >= 0) & (column < width)
        inside = inside_y[:, None, :, None] & inside_x[None, :, None, :]  # (rows, columns, keys, keys)
        outside = torch.where(inside, 0.0, OUTSIDE).to(query.dtype).reshape(1, rows * columns, 1, -1)

        queries = cut_windows(query, side, 0)  # (n, side * side, C)
        cut = [cut_windows(part, side, reach) for part in others]
        keys, values = cut if len(cut) > 1 else cut[0].chunk(2, dim=2)
        if kernels is None:
            bias = outside.repeat(batch, 1, 1, 1)
        else:
            squares = cut_windows(kernels, side, 0).unflatten(2, (self.kernel, self.kernel)).unflatten(1, (side, side))
            bias = place_kernels(squares, side).reshape(batch, rows * columns, side * side, -1) + outside
        bias = bias.flatten(0, 1)[:, None]  # (n, 1, side * side or 1, keys)
        attended = self._attend(queries, keys, values, bias)
        return merge_windows(attended, side, batch, rows, columns)[:, :, :height, :width]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Eq. 9: ``(n, queries, C)``, ``(n, keys, C)`` twice, bias ``(n, 1, queries or 1, keys)``."""
        query, key, value = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        logits = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3)  # scaled first: FP16 holds smaller products
        logits = logits if bias is None else logits + bias
        attention = torch.softmax(logits.float(), dim=3).to(value.dtype)
        return (attention @ value).transpose(1, 2).flatten(2)


class BPABlock(nn.Module):
    """Blur-prior attention and a gated pointwise layer, each residual behind a layer normalisation.

    With ``hidden=None`` the attention is plain self-attention.
    """

    beta: nn.Parameter | None
    gamma: nn.Parameter | None

    def __init__(self, channels: int, head_dim: int, kernel: int, hidden: int | None, window: int | None) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(channels)
        self.attention = BlurPriorAttention(channels, head_dim, kernel, hidden, window)
        self.norm2 = LayerNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1)
        self.gate = SimpleGate()
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor, blur_logits: Tensor) -> Tensor:
        """Features ``(B, C, H, W)`` and blur logits ``(B, 1, any, any)`` to ``(B, C, H, W)``."""
        x = add_scaled(x, self.attention(self.norm1(x), blur_logits), self.beta)
        return add_scaled(x, self.conv2(self.gate(self.conv1(self.norm2(x)))), self.gamma)

    def fold(self) -> None:
        """Moves normalisations' weights and the residual scales into the convolutions beside them, for export."""
        fold_norm(self.norm1, self.attention.qkv)
        fold_norm(self.norm2, self.conv1)
        fold_scale(self.attention.project, self.beta)
        fold_scale(self.conv2, self.gamma)
        self.beta = self.gamma = None

    def merge_norms(self) -> None:
        """Makes one layer of each normalisation and the convolution after it, for the FP16 graph; after ``fold``."""
        self.attention.add_module("qkv", NormalisedConv(self.norm1, self.attention.qkv, 3))
        self.add_module("conv1", NormalisedConv(self.norm2, self.conv1, 2))
        self.add_module("norm1", nn.Identity())
        self.add_module("norm2", nn.Identity())

    def split_gates(self) -> None:
        """Makes two of the convolution before the gate, for the graph of CPU runtimes; after ``fold``."""
        self.add_module("conv1", Halves(self.conv1))
