"""Blur logits from the true disparity, with errors like CLIP's, for data sets that know it; CLIP need not run then."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ldp_export.data import PairSample
from ldp_export.data.simulated import SHARP_DISPARITY
from ldp_export.training.config import TrainingError
from ldp_runtime.stages.geometry import Padding

SOFTNESS = 0.5
"""In px of disparity: how far from ``SHARP_DISPARITY`` a pixel has to be to count as blurred, or as sharp, by 73 %."""

GAIN, OFFSET = 0.675, 0.25
"""CLIP's mean answer to logits of the true map; errors scatter around it."""

_CONFIDENCE = 0.03
_GAINS = (0.6, 1.4)
_DEVIATIONS = {"offset": 0.7, "smooth": 0.5, "patch": 0.25}
_SMOOTH_CELLS = 7
_BLANK = 0.1


def true_logits(sample: PairSample, padding: Padding, patch: int) -> NDArray[np.float32]:
    """Blur logits of a pair as a CLIP without errors would give them.

    Args:
        sample: A pair with disparity in px.
        padding: The size rule of the pair; beyond the pair the border is repeated.
        patch: p, side in px of the square of one logit.

    Returns:
        ``(H / p, W / p)`` float32 of the pair padded to ``(H, W)``.

    Raises:
        TrainingError: The disparity is not known.
    """
    if sample.disparity is None:
        raise TrainingError(f"expected pairs with disparity, got {sample.name} without; use blur_logits: clip")
    h, w = sample.disparity.shape
    H, W = padding.padded_size(h, w)
    distance = np.pad(np.abs(sample.disparity.astype(np.float32)), ((0, H - h), (0, W - w)), mode="edge")
    blurred = 1 / (1 + np.exp((SHARP_DISPARITY - distance) / SOFTNESS))
    share = blurred.reshape(H // patch, patch, W // patch, patch).mean((1, 3)).clip(_CONFIDENCE, 1 - _CONFIDENCE)
    return (np.log(share / (1 - share)) * GAIN + OFFSET).astype(np.float32)


def with_errors(logits: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """True logits ``(h, w)`` as CLIP might give them: scaled, shifted, with smooth and patchwise noise; some blank."""
    h, w = logits.shape
    gain, blank = rng.uniform(*_GAINS), rng.random() < _BLANK
    shift = rng.normal(0, _DEVIATIONS["offset"])
    cells = rng.standard_normal((_SMOOTH_CELLS, _SMOOTH_CELLS)).astype(np.float32)
    smooth = cv2.resize(cells, (w, h), interpolation=cv2.INTER_LINEAR)
    noise = _DEVIATIONS["smooth"] * smooth + _DEVIATIONS["patch"] * rng.standard_normal((h, w))
    if blank:
        return np.zeros_like(logits)
    return ((logits - OFFSET) * gain + OFFSET + shift + noise).astype(np.float32)
