"""Bicubic resizing whose coordinates are integers, so that every runtime agrees on them.

``F.interpolate`` and runtimes of ONNX's Resize compute positions in FP32, each rounding in its own way. At 1792 px they
differ by some 1e-4 px, and where an image is steep, so do their results. ONNX Runtime also takes Resize one px at a
time, many times slower than what is here.
"""

from __future__ import annotations

import torch
from torch import Tensor

_A = -0.75  # of Keys' kernel, as torch and OpenCV have it


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """``F.interpolate(image, size, mode="bicubic")``: ``(B, C, H, W)`` to ``(B, C, *size)``, in the image's type."""
    for axis, length in zip((2, 3), size, strict=True):
        image = _resize_axis(image, axis, length)
    return image


def _resize_axis(x: Tensor, axis: int, length: int) -> Tensor:
    """Sample i lies at ``((2 i + 1) n - length) / (2 length)`` of n positions; those outside repeat the rim."""
    positions, unit = x.shape[axis], 2 * length
    place = (2 * torch.arange(length, device=x.device) + 1) * positions + length  # one position further: not negative
    quotient = place // unit
    offset = (place - quotient * unit).to(x.dtype) / unit
    before = quotient - 2  # of the four taps, the first
    broadcast = [-1 if a == axis else 1 for a in range(4)]
    taps = [
        x.index_select(axis, (before + tap).clamp(0, positions - 1)) * weight.reshape(broadcast)
        for tap, weight in enumerate(_weights(offset))
    ]
    return taps[0] + taps[1] + taps[2] + taps[3]


def _weights(t: Tensor) -> tuple[Tensor, ...]:
    """Weights of the taps at -1, 0, 1 and 2 of a sample at ``t`` in [0, 1)."""

    def near(d: Tensor) -> Tensor:
        return ((_A + 2) * d - (_A + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:
        return ((_A * d - 5 * _A) * d + 8 * _A) * d - 4 * _A

    return far(t + 1), near(t), near(1 - t), far(2 - t)
