"""The views that the dual-pixel capture app for Google's Pixel 3 and 4 saves (Garg et al. 2019).

``TIME_left.pgm`` and ``TIME_right.pgm``: 16 bits, linear, the green pixels alone, with a black level. A view has half
of the sensor's width and a quarter of its height, so its pixels are twice as high as wide. The same is known as
PNG where the name is still the app's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

import cv2
import numpy as np

from ldp_runtime.images.decode import Photo
from ldp_runtime.images.linear import encode_srgb

BLACK = 4096
"""Value without light: 1024 of 14 bits, in 16."""

CAPTURE_NAMES = ("_left.pgm", "_right.pgm")
"""How the names of the two files end."""

_AS_PNG = re.compile(r"\d[\d_]*_(left|right)\.png")

_DARKEST = 0.8 * BLACK
"""Sensor noise leaves no more than one pixel of a thousand below this; a photo encoded for display has darker ones."""

_NOTE = (
    "linear green samples of a Pixel capture: black level 4096 subtracted, rows doubled for square pixels, encoded as "
    "sRGB, restored as grey"
)


def has_capture_names(names: Sequence[str | os.PathLike[str]]) -> bool:
    """Whether two files have the names of a capture, in either order."""
    last = [PurePath(name).name.lower() for name in names]
    last = [str(PurePath(name).with_suffix(".pgm")) if _AS_PNG.fullmatch(name) else name for name in last]
    return all(any(name.endswith(end) for name in last) for end in CAPTURE_NAMES)


def is_pixel_capture(names: Sequence[str | os.PathLike[str]], photos: Sequence[Photo]) -> bool:
    """Whether two files are a capture: by their names, their kind, and that nothing is darker than the black level."""
    return has_capture_names(names) and all(map(holds_samples, photos))


def holds_samples(photo: Photo) -> bool:
    """Whether a picture may be a view of a capture: by its kind, and that nothing is darker than the black level."""
    samples = photo.pixels[..., 0]
    return photo.grey and samples.dtype == np.uint16 and bool(np.percentile(samples, 0.1) > _DARKEST)


def develop_pixel_capture(photo: Photo) -> Photo:
    """Develops a view: black level, sRGB encoding, and square pixels, for which each row becomes two."""
    linear = photo.pixels[..., 0]
    height, width = linear.shape
    square = cv2.resize(linear, (width, 2 * height), interpolation=cv2.INTER_CUBIC)
    pixels = np.repeat(encode_srgb(square, BLACK, 65535)[..., None], 3, axis=2)
    return replace(photo, pixels=pixels, notes=(*photo.notes, _NOTE))
