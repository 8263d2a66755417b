"""The scales that a pair is restored at, and the one that fits its blur."""

from __future__ import annotations

AUTO = "auto"
SCALES = {"1": 1, "1/2": 2, "1/4": 4}
"""Name of a scale -> px of the photo per px of what is restored."""

BLUR_RANGE = 14.0
"""Largest radius in px of a circle of confusion that a model knows, where its manifest does not say."""

DISPARITY_PER_RADIUS = 0.45
"""Disparity in px per px of radius that fits: that of the views of real cameras, whose centroids lie 0.40 to 0.50 r
apart. Measured with ldp-nano, whose range is 20 px: mostly full scale gains more up to 7 px, and half the scale from
9 px on; between them it depends on the picture, and full scale is crisper."""


def fitting_scale(disparity: float, blur_range: float) -> int:
    """Px of the photo per px of the largest scale at which a disparity in px fits a range of radii in px."""
    most = blur_range * DISPARITY_PER_RADIUS
    return next((n for n in SCALES.values() if disparity <= most * n), max(SCALES.values()))
