"""Inputs and outputs of graphs, and which arrays are on a CUDA device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]

_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph.

    Attributes:
        name: Its name.
        shape: One entry per axis: the size, or a name (``"?"`` where the backend keeps none) if it is dynamic.
        dtype: Its element type.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: np.dtype[np.generic]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.shape))}) {self.dtype}"

    def fits(self, array: Array) -> bool:
        """Whether an array has this dtype and shape."""
        return (
            array.dtype == self.dtype
            and array.ndim == len(self.shape)
            and all(isinstance(want, str) or want == have for want, have in zip(self.shape, array.shape, strict=True))
        )


def is_device_array(value: object) -> bool:
    """Whether a value is an array on a CUDA device, by its ``__cuda_array_interface__`` or DLPack."""
    if isinstance(value, np.ndarray):
        return False
    return hasattr(value, "__cuda_array_interface__") or shares_by_dlpack(value)


def shares_by_dlpack(value: object) -> bool:
    """Whether a value is an array on a CUDA device that DLPack shares."""
    if not hasattr(value, "__dlpack__") or not hasattr(value, "__dlpack_device__"):
        return False
    return value.__dlpack_device__()[0] in _DLPACK_CUDA
