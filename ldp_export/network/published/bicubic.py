"""Bicubic resizing by matrices whose coordinates are differences of integers, so that every runtime agrees on them.

``F.interpolate`` and runtimes of ONNX's Resize compute positions in FP32, each rounding in its own way. At 1792 px they
differ by some 1e-4 px, and where an image is steep, so do their results.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_A = -0.75  # of Keys' kernel, as torch and OpenCV have it
_REACH = 2


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """``F.interpolate(image, size, mode="bicubic")``: ``(B, C, H, W)`` to ``(B, C, *size)``, in the image's type."""
    height, width = image.shape[2:]
    rows, columns = (_weights(*lengths).to(image) for lengths in ((height, size[0]), (width, size[1])))
    return rows @ F.pad(image, [_REACH] * 4, mode="replicate") @ columns.T


def _weights(length: int, wanted: int) -> Tensor:
    """What each of ``wanted`` samples takes from positions -2 to ``length + 1``: ``(wanted, length + 4)`` FP32.

    Sample i lies at ``((2 i + 1) length - wanted) / (2 wanted)``.
    """
    sample = (2 * torch.arange(wanted) + 1) * length - wanted
    position = 2 * wanted * torch.arange(-_REACH, length + _REACH)
    d = ((sample[:, None] - position).float() / (2 * wanted)).abs().clamp(max=_REACH)
    near = ((_A + 2) * d - (_A + 3)) * d * d + 1
    far = ((_A * d - 5 * _A) * d + 8 * _A) * d - 4 * _A  # 0 at 2
    return torch.where(d < 1, near, far)
