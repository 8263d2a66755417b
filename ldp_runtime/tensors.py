"""What goes into a graph and comes out of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph.

    Attributes:
        name: Its name.
        shape: One entry an axis: the size, or a name (``"?"`` where the backend keeps none) if it is free.
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
