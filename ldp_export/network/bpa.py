"""Blur-prior attention (BPA): self-attention whose map is biased by kernels read from the blur map (Eq. 9 and 10)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.network.layers import LayerNorm2d, SimpleGate

OUTSIDE = -(2.0**14)
"""Stands for -inf in the mask of keys outside the map: exp underflows to 0 in FP16 too, and no row becomes NaN."""


class BlurKernels(nn.Module):
    """`FFN_conv` of Eq. 10: unnormalised blur map to q * q kernel logits a position."""

    def __init__(self, kernel: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2 * hidden, 3, padding=1)
        self.gate = SimpleGate()
        self.conv2 = nn.Conv2d(hidden, kernel * kernel, 3, padding=1)

    def forward(self, blur_logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Blur logits `(B, 1, any, any)` to kernel logits `(B, q * q, *size)`, row-major offsets from -(q//2)."""
        resampled = F.interpolate(blur_logits, size=size, mode="bilinear", align_corners=False)
        return self.conv2(self.gate(self.conv1(resampled)))


def place_kernels(kernels: Tensor, side: int) -> Tensor:
    """`Pad` of Eq. 10 for windows: puts q x q kernels at their relative offsets among a window's keys.

    Query (y, x) of a window stands at key (y + q//2, x + q//2), so offset (a, b) of its kernel is key (y + a, x + b).

    Args:
        kernels: `(n, side, side, q, q)`: query row, query column, offset row, offset column.
        side: Side of the window of queries.

    Returns:
        O `(n, side * side, keys * keys)` with `keys = side + q - 1`; zero outside the q x q neighbourhood.
    """
    q = kernels.shape[-1]
    keys = side + q - 1
    # Rows of length keys + 1 read back as rows of length keys shift one place further right in each next row.
    placed = kernels.permute(0, 1, 3, 2, 4)  # (n, y, a, x, b)
    placed = F.pad(placed, (0, keys + 1 - q)).flatten(3)[..., : side * keys]
    placed = placed.unflatten(3, (side, keys))  # (n, y, a, x, key column)
    placed = placed.permute(0, 3, 4, 1, 2)  # (n, x, key column, y, a)
    placed = F.pad(placed, (0, keys + 1 - q)).flatten(3)[..., : side * keys]
    placed = placed.unflatten(3, (side, keys))  # (n, x, key column, y, key row)
    placed = placed.permute(0, 3, 1, 4, 2)  # (n, y, x, key row, key column)
    return placed.flatten(3).flatten(1, 2)


def query_windows(x: Tensor, side: int) -> Tensor:
    """`(B, C, rows * side, columns * side)` to `(B * rows * columns, side, side, C)`."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // side, side, width // side, side)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, side, side, channels)


def merge_windows(windows: Tensor, batch: int, rows: int, columns: int) -> Tensor:
    """Undoes `query_windows`: `(B * rows * columns, side, side, C)` to `(B, C, rows * side, columns * side)`."""
    side, channels = windows.shape[1], windows.shape[3]
    x = windows.reshape(batch, rows, columns, side, side, channels).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(batch, channels, rows * side, columns * side)


def key_windows(x: Tensor, side: int, reach: int) -> Tensor:
    """Overlapping windows of keys: those of `query_windows`, reaching `reach` positions further on every side.

    Args:
        x: `(B, C, rows * side, columns * side)`.
        side: Side of the window of queries; at least `2 * reach`.
        reach: Positions added on each side; outside the map they are zero.

    Returns:
        `(B * rows * columns, (side + 2 * reach)^2, C)`.
    """
    batch, channels, height, width = x.shape
    rows, columns = height // side, width // side
    # A window is a block of `side` and the first 2 * reach places of the next block.
    x = F.pad(x, (reach, side - reach, reach, side - reach))
    x = x.reshape(batch, channels, rows + 1, side, columns + 1, side)
    x = torch.cat([x[:, :, :-1], x[:, :, 1:, : 2 * reach]], dim=3)
    x = torch.cat([x[:, :, :, :, :-1], x[:, :, :, :, 1:, : 2 * reach]], dim=5)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch * rows * columns, -1, channels)


def _key_positions(windows: int, side: int, reach: int, device: torch.device) -> Tensor:
    """Along one axis, where in the map the keys of each window stand: `(windows, side + 2 * reach)`."""
    start = torch.arange(windows, device=device)[:, None] * side
    return start + torch.arange(-reach, side + reach, device=device)


class BlurPriorAttention(nn.Module):
    """Multi-head spatial self-attention with `softmax(Q K^T / beta + O) V` (Eq. 9), beta = sqrt(head dimension).

    O (Eq. 10) comes from the blur logits and is shared by the heads. With `window=None` every position attends to every
    other. Otherwise windows of `window` x `window` queries attend to keys that reach `kernel // 2` positions further on
    every side, so that no kernel is cut at a window's edge; the result equals the global one when one window holds the
    map.
    """

    def __init__(self, channels: int, head_dim: int, kernel: int, hidden: int, window: int | None) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.kernel = kernel
        self.window = window
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        self.kernels = BlurKernels(kernel, hidden)

    def forward(self, x: Tensor, blur_logits: Tensor) -> Tensor:
        """Features `(B, C, H, W)` and blur logits `(B, 1, any, any)` to `(B, C, H, W)`."""
        height, width = x.shape[2:]
        qkv = self.qkv(x)
        kernels = self.kernels(blur_logits.to(x.dtype), (height, width))
        if self.window is None:
            query, key, value = qkv.chunk(3, dim=1)
            attended = self._attend_globally(query, key, value, kernels)
        else:
            attended = self._attend_in_windows(qkv, kernels, self.window)
        return self.project(attended)

    def _attend_globally(self, query: Tensor, key: Tensor, value: Tensor, kernels: Tensor) -> Tensor:
        batch, channels, height, width = query.shape
        reach, side = self.kernel // 2, max(height, width)
        # One square window that holds the map; keys beyond the map are cut off again.
        pad = (0, side - width, 0, side - height)
        square = F.pad(kernels, pad).permute(0, 2, 3, 1).unflatten(3, (self.kernel, self.kernel))
        bias = place_kernels(square, side).unflatten(2, (side + 2 * reach, -1)).unflatten(1, (side, side))
        bias = bias[:, :height, :width, reach : reach + height, reach : reach + width]
        bias = bias.reshape(batch, 1, height * width, height * width)
        query, key, value = (t.flatten(2).transpose(1, 2) for t in (query, key, value))
        attended = self._attend(query, key, value, bias)  # (B, H * W, C)
        return attended.transpose(1, 2).reshape(batch, channels, height, width)

    def _attend_in_windows(self, qkv: Tensor, kernels: Tensor, side: int) -> Tensor:
        batch, channels, height, width = qkv.shape
        reach = self.kernel // 2
        rows, columns = (height + side - 1) // side, (width + side - 1) // side
        pad = (0, columns * side - width, 0, rows * side - height)
        qkv, kernels = F.pad(qkv, pad), F.pad(kernels, pad)
        row, column = (_key_positions(count, side, reach, qkv.device) for count in (rows, columns))
        inside_y, inside_x = (row >= 0) & (row < height), (column >= 0) & (column < width)
        inside = inside_y[:, None, :, None] & inside_x[None, :, None, :]  # (rows, columns, keys, keys)
        outside = torch.where(inside, 0.0, OUTSIDE).to(qkv.dtype).reshape(1, rows * columns, 1, -1)

        queries = query_windows(qkv[:, : channels // 3], side).flatten(1, 2)  # (n, side * side, C)
        bias = place_kernels(query_windows(kernels, side).unflatten(3, (self.kernel, self.kernel)), side)
        bias = bias.reshape(batch, rows * columns, side * side, -1) + outside
        bias = bias.flatten(0, 1)[:, None]  # (n, 1, side * side, keys)
        keys, values = key_windows(qkv[:, channels // 3 :], side, reach).chunk(2, dim=2)
        attended = self._attend(queries, keys, values, bias).unflatten(1, (side, side))
        return merge_windows(attended, batch, rows, columns)[:, :, :height, :width]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """`(n, queries, C)`, `(n, keys, C)`, `(n, keys, C)`, `(n, 1, queries, keys)` to `(n, queries, C)` (Eq. 9)."""
        query, key, value = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        logits = query @ key.transpose(2, 3) / math.sqrt(query.shape[3]) + bias
        attention = torch.softmax(logits.float(), dim=3).to(value.dtype)
        return (attention @ value).transpose(1, 2).flatten(2)


class BPABlock(nn.Module):
    """Blur-prior attention and a gated pointwise layer, each residual behind a layer normalisation."""

    def __init__(self, channels: int, head_dim: int, kernel: int, hidden: int, window: int | None) -> None:
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
        """Features `(B, C, H, W)` and blur logits `(B, 1, any, any)` to `(B, C, H, W)`."""
        x = x + self.attention(self.norm1(x), blur_logits) * self.beta.to(x.dtype)
        return x + self.conv2(self.gate(self.conv1(self.norm2(x)))) * self.gamma.to(x.dtype)
