"""The scales that a pair is restored at, and the one that fits its blur."""

from __future__ import annotations

AUTO = "auto"
SCALES = {"1": 1, "1/2": 2, "1/4": 4}
"""Name of a scale -> px of the photo per px of what is restored."""

BLUR_RANGE = 14.0
"""Largest radius in px of a circle of confusion that a model knows, where its manifest does not say."""

DISPARITY_PER_RADIUS = 0.3
"""Disparity in px per px of radius that fits: two thirds of what real cameras have (centroids 0.40 to 0.50 r apart), as
a model reaches less far on real pictures than in training. Measured with ldp-nano, whose range is 20 px: six Pixel 4
scenes with 6.6 to 8.3 px gain 0.3 to 0.8 dB more at half the scale, six of seven Canon scenes with up to 3.3 px less;
simulated pairs gain more from 9 px on."""


def fitting_scale(disparity: float, blur_range: float) -> int:
    """Px of the photo per px of the largest scale at which a disparity in px fits a range of radii in px."""
    most = blur_range * DISPARITY_PER_RADIUS
    return next((n for n in SCALES.values() if disparity <= most * n), max(SCALES.values()))
