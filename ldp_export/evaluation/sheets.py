"""Contact sheets: what a model makes of each pair of a data set, in small."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ldp_export.data.base import PairSample
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import encode_photo
from ldp_runtime.images.quality import center_view
from ldp_runtime.images.visualize import colour_blur_map, comparison
from ldp_runtime.result import Result

THUMBNAIL = 240
ROWS_A_SHEET = 8
_DIFFERENCE_GAIN = 4


def contact_row(
    sample: PairSample, result: Result, center_decibels: float | None, decibels: float | None
) -> NDArray[np.uint8]:
    """One pair of a contact sheet: center view, restored, target, blur map and difference, ``THUMBNAIL`` px wide.

    Args:
        sample: The pair.
        result: What was made of it.
        center_decibels: PSNR of the center view, for its label.
        decibels: PSNR of the restored image.
    """
    center = center_view(sample.left, sample.right)
    panels = {
        _label(sample.name, center_decibels): center / sample.peak,
        _label("restored", decibels): result.restored / sample.peak,
    }
    if sample.target is not None:
        difference = np.abs(result.restored.astype(np.float32) - sample.target) * (_DIFFERENCE_GAIN / sample.peak)
        panels |= {"target": sample.target / sample.peak, f"difference x {_DIFFERENCE_GAIN}": difference}
    small = {label: _thumbnail(panel) for label, panel in panels.items()}
    if result.blur_map is not None:
        small["blur map"] = _thumbnail(colour_blur_map(result.blur_map) / 255)
    return comparison(small)


def stack(rows: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Rows ``(h, w, 3)`` under each other, narrow ones widened with their own last pixel."""
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), mode="edge") for row in rows])


def encode_sheet(path: Path, pixels: NDArray[np.uint8]) -> bytes:
    """A contact sheet as a PNG file."""
    return encode_photo(path, Photo(pixels))


def _thumbnail(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """``(h, w, 3)`` in [0, 1], ``THUMBNAIL`` px wide; small images keep their size."""
    scale = min(1.0, THUMBNAIL / image.shape[1])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_AREA))


def _label(text: str, decibels: float | None) -> str:
    return text if decibels is None else f"{text} {decibels:.2f} dB"
