"""CLIP on small patches of a pair, as the authors' released code estimates the blur map."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldp_export.clip.load import LoadedClip


class PatchEncoder(nn.Module):
    """The graph of CLIP of a bundle whose blur map comes from patches: CLIP's preprocessing and its pooled feature.

    CLIP's preprocessing scales the shorter side to its image size, bicubically, and cuts out the center square. Of a
    patch of L beside the flipped same patch of R that leaves the right half of L's beside the left half of R's.
    """

    rows: Tensor
    columns: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, clip: LoadedClip, side: int) -> None:
        """Makes the matrices that resize.

        Args:
            clip: CLIP.
            side: Side of a patch in px.
        """
        super().__init__()
        self.side = side
        self.encoder = clip.encoder
        size = int(self.encoder.visual.image_size[0])
        rows = resize_matrix(side, size)
        columns = resize_matrix(2 * side, 2 * size)[size // 2 : size // 2 + size]
        self.register_buffer("rows", torch.from_numpy(rows))
        self.register_buffer("columns", torch.from_numpy(columns).T.contiguous())
        self.register_buffer("mean", torch.tensor(clip.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(clip.std)[:, None, None])

    @property
    def image_size(self) -> int:
        """Side in px of the image that CLIP sees of a patch."""
        return int(self.rows.shape[0])

    def forward(self, patches: Tensor) -> Tensor:
        """Features of patches.

        Args:
            patches: ``(B, 3, side, 2 * side)`` in [0, 1]: a patch of L beside the flipped same patch of R.

        Returns:
            ``(B, c)``, not normalised.
        """
        # The sums overshoot at edges; images of 8 bits, which CLIP's preprocessing resizes, cannot.
        across = (patches @ self.columns).clamp(0, 1)
        image = (self.rows @ across).clamp(0, 1)
        return self.encoder.pooled((image - self.mean) / self.std)


def resize_matrix(size: int, out: int) -> NDArray[np.float32]:
    """Bicubic enlargement of an axis as Pillow does it (a = -0.5, half-pixel centres, cut off at the ends).

    Args:
        size: Length of the axis.
        out: Length to make, at least ``size``: then no antialiasing widens the kernel.

    Returns:
        ``(out, size)``; each row sums to one.
    """
    center = (np.arange(out) + 0.5) * size / out
    x = np.abs(np.arange(size) + 0.5 - center[:, None])
    a = -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
