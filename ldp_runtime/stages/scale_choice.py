"""The scales that a pair is restored at, and the one that fits its blur."""

from __future__ import annotations

AUTO = "auto"
SCALES = {"1": 1, "1/2": 2, "1/4": 4}
"""Name of a scale -> px of the photo per px of what is restored."""

BLUR_RANGE = 7.0
"""Largest radius in px of a circle of confusion that a model knows, where its manifest does not say."""

DISPARITY_PER_RADIUS = 0.9
"""Disparity in px per px of radius that is within the range: 0.77 by the default half-aperture, up to 0.9 by others.
With ldp-nano, a pair with a disparity of 6.4 px gains as much at full as at half scale."""


def fitting_scale(disparity: float, blur_range: float) -> int:
    """Px of the photo per px of the largest scale at which a disparity in px fits a range of radii in px."""
    most = blur_range * DISPARITY_PER_RADIUS
    return next((n for n in SCALES.values() if disparity <= most * n), max(SCALES.values()))
