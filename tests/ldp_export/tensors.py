"""Tensors of the tests, and a slow convolution."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def slow_pointwise(x: Array, conv: nn.Conv2d) -> Array:
    """A 1x1 convolution of ``(c, h, w)``."""
    return np.einsum("oc,cij->oij", array(conv.weight)[:, :, 0, 0], x) + array(conv.bias)[:, None, None]
