"""A slow transcription of what renders layers."""

from collections.abc import Sequence

import cv2
import numpy as np

from ldp_export.simulation.apertures import Aperture, Layer
from ldp_export.simulation.optics import FloatArray, HalfAperturePSF


def composite(layers: Sequence[Layer], psf: Aperture | HalfAperturePSF) -> list[FloatArray]:
    """Left and right views ``(h, w, 3)``, linear light: each layer of one CoC by its kernels, over what lies behind."""
    views = [np.zeros_like(layers[0].color) for _ in range(2)]
    for layer in layers:
        coverage = layer.alpha[..., None]
        for i, kernel in enumerate(psf.views(float(layer.coc))):
            color, opaque = (
                cv2.filter2D(plane, -1, kernel[::-1, ::-1], borderType=cv2.BORDER_REFLECT_101)
                for plane in (layer.color * coverage, layer.alpha)
            )
            views[i] = color + (1 - opaque[..., None]) * views[i]
    return views
