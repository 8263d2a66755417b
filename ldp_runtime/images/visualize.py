"""Pictures for people: the blur map in colour, and labelled panels side by side."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

PANEL_SIDE = 2048
"""Longest side in px of a panel of a comparison; larger images are scaled down."""

_MARGIN = 8
_BACKGROUND = 24
_TEXT_COLOUR = (235, 235, 235)
_FONT, _FONT_SCALE, _FONT_THICKNESS = cv2.FONT_HERSHEY_SIMPLEX, 0.6, 1


def colour_blur_map(blur_map: np.ndarray) -> np.ndarray:
    """Colours a blur map: black and violet where it is sharp, over red to light yellow where it is blurred.

    The colour map is perceptually even and keeps its order in greyscale.

    Args:
        blur_map: ``(h, w)`` float in [0, 1].

    Returns:
        ``(h, w, 3)`` uint8 RGB.
    """
    levels = np.rint(np.clip(blur_map, 0, 1) * 255).astype(np.uint8)
    coloured: np.ndarray = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return coloured


def colour_disparity(disparity: np.ndarray, known: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Colours a disparity: red where positive, blue where negative, grey where unknown, white at none.

    Args:
        disparity: ``(rows, columns)`` float, of blocks.
        known: ``(rows, columns)`` bool.
        size: Width and height in px of the picture.

    Returns:
        ``(height, width, 3)`` uint8 RGB.
    """
    largest = max(1.0, float(np.abs(disparity[known]).max(initial=0.0)))
    share = np.clip(disparity / largest, -1, 1)[..., None]
    red, blue, grey = (np.array(colour, np.float32) for colour in ((178, 24, 43), (33, 102, 172), (128, 128, 128)))
    white = np.float32(247)
    coloured = np.where(share > 0, white + share * (red - white), white - share * (blue - white))
    blocks = np.where(known[..., None], coloured, grey).round().astype(np.uint8)
    picture: np.ndarray = cv2.resize(blocks, size, interpolation=cv2.INTER_NEAREST)
    return picture


def comparison(panels: Mapping[str, np.ndarray]) -> np.ndarray:
    """Sets images side by side, each under its label; four of them as two rows of two.

    Args:
        panels: Label -> ``(h, w, 3)`` RGB, uint8, uint16, or float in [0, 1]; all of one size.

    Returns:
        ``(H, W, 3)`` uint8 RGB. Panels have the size of the images, at most ``PANEL_SIDE``.
    """
    columns = 2 if len(panels) == 4 else len(panels)
    cells = [_cell(label, image) for label, image in panels.items()]
    height = max(cell.shape[0] for cell in cells)
    width = max(cell.shape[1] for cell in cells)
    rows = -(-len(cells) // columns)
    canvas = np.full(
        (rows * (height + _MARGIN) + _MARGIN, columns * (width + _MARGIN) + _MARGIN, 3), _BACKGROUND, np.uint8
    )
    for index, cell in enumerate(cells):
        y = _MARGIN + index // columns * (height + _MARGIN)
        x = _MARGIN + index % columns * (width + _MARGIN)
        canvas[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
    return canvas


def _cell(label: str, image: np.ndarray) -> np.ndarray:
    """A label above its image, ``(h + label height, at least the label's width, 3)`` uint8."""
    image = to_uint8(image)
    scale = PANEL_SIDE / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    (text_width, _), _ = cv2.getTextSize(label, _FONT, _FONT_SCALE, _FONT_THICKNESS)
    (_, text_height), below = cv2.getTextSize("(Ag)", _FONT, _FONT_SCALE, _FONT_THICKNESS)  # for any label
    strip = text_height + below + _MARGIN
    cell = np.full((strip + image.shape[0], max(text_width, image.shape[1]), 3), _BACKGROUND, np.uint8)
    cv2.putText(cell, label, (0, text_height), _FONT, _FONT_SCALE, _TEXT_COLOUR, _FONT_THICKNESS, cv2.LINE_AA)
    cell[strip:, : image.shape[1]] = image
    return cell


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Scales uint16 or float in [0, 1] to uint8, rounded; uint8 is returned unchanged."""
    if image.dtype == np.uint8:
        return image
    top = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1
    levels: np.ndarray = np.rint(image.astype(np.float32) * np.float32(255 / top))
    return levels.clip(0, 255).astype(np.uint8)
