"""EBDB and DMENet as whole chains: a map of the center view's blur, then deconvolution by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.classical.deconvolution import Map, deconvolve
from benchmarks.classical.ebdb import blur_map

if TYPE_CHECKING:
    from ldp_export.network.published.dmenet import DMENet


def restore_ebdb(left: Map, right: Map) -> Map:
    """Restores the mean of two views ``(h, w, 3)`` in [0, 1] to that shape."""
    image = (left + right) / 2
    return deconvolve(image, blur_map(image))


def restore_dmenet(network: DMENet, left: Map, right: Map) -> Map:
    """Restores the mean of two views ``(h, w, 3)`` in [0, 1], h and w multiples of 16, to that shape."""
    import torch

    from ldp_export.network.published.dmenet import blur_sigma

    image = (left + right) / 2
    planes = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
    with torch.inference_mode():
        sigma = blur_sigma(network.defocus(planes))[0, 0].double().numpy()
    return deconvolve(image, sigma)
