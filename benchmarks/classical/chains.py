"""EBDB and DMENet as whole chains: a map of the center view's blur, then deconvolution by it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.classical.deconvolution import Map, deconvolve
from benchmarks.classical.ebdb import blur_map


def restore_ebdb(left: Map, right: Map) -> Map:
    """Restores the mean of two views ``(h, w, 3)`` in [0, 1] to that shape."""
    image = (left + right) / 2
    return deconvolve(image, blur_map(image))


def restore_dmenet(defocus: Callable[[Map, Map], Map], left: Map, right: Map) -> Map:
    """Restores the mean of two views ``(h, w, 3)`` in [0, 1] to that shape.

    Args:
        defocus: Takes both views and returns what ``DMENet.restore`` does, as a grey image ``(h, w, 3)``.
        left: The left view.
        right: The right view.
    """
    import torch

    from ldp_export.network.published.dmenet import blur_sigma

    sigma = blur_sigma(torch.from_numpy(defocus(left, right)[..., 0].astype(np.float64))).numpy()
    return deconvolve((left + right) / 2, sigma)
