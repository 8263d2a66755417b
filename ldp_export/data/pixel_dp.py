"""PixelDP (Xin et al., ICCV 2021): 17 pairs of a Pixel 4, the green channel in linear light, for tests only.

Read as the authors' code reads them: 14 bits with a black level of 1024; the right view times the ratio of two
photographs of a white sheet, averaged over 101 x 101 px, which evens out the vignetting of the two halves; the middle
1008 x 1344 px. LDP sees encoded pictures, so views and target are then encoded as sRGB, at 16 bits, and grey is
repeated over the channels. The targets and defocus maps are taken to be in the form in which that code writes its own
results: targets linear, full scale being the same light as in the views, and maps up to a factor and an offset.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ldp_export.data.base import DataError, PairSample
from ldp_export.data.layout import DatasetKind, FilePairs, Listing, PairFiles, compare, list_images
from ldp_export.simulation.optics import FloatArray
from ldp_runtime.images.linear import encode_srgb

NAME = "pixel-dp"
BLACK_LEVEL = 1024
WHITE_LEVEL = 2**14 - 1
WHITE_SHEET_WINDOW = 101
FIELD = (1008, 1344)
"""Height and width of the middle of the frame that is used."""

_TITLE = "the folder DP_data_pixel_4"
_FIX = "get the repository again"
_TARGETS, _MAPS = "gt_all_in_focus_im", "gt_defocus_map"
_SHEETS = ("calibration/white_sheet_left.png", "calibration/white_sheet_right.png")


class PixelDPPairs(FilePairs):
    """The pairs, with target and relative disparity."""

    def decode(self, files: PairFiles) -> PairSample:
        """Reads a pair, evens out its vignetting and encodes it."""
        if files.target is None or files.map is None:
            raise DataError(f"{files.name}: expected a target and a map, got none; {_FIX}")
        left, right = (_linear(path) for path in (files.left, files.right))
        ratio = _vignetting(files.left.parent)
        if not left.shape == right.shape == ratio.shape:
            raise DataError(
                f"{files.name}: expected views and white sheets of one size, got {left.shape}, {right.shape} and "
                f"{ratio.shape}; {_FIX}"
            )
        target = _decode(files.target)
        scaled = _middle(target.astype(np.float32) / np.float32(np.iinfo(target.dtype).max), files.target)
        relative = _decode(files.map)
        return PairSample(
            files.name,
            _encode(_middle(left, files.left)),
            _encode(_middle(right * ratio, files.right)),
            _encode(scaled),
            relative_disparity=_middle(
                relative.astype(np.float32) / np.float32(np.iinfo(relative.dtype).max), files.map
            ),
        )


def list_pairs(folder: Path) -> Listing:
    """Finds the pairs; ``folder`` is ``DP_data_pixel_4``."""
    if not folder.is_dir():
        return Listing((), (f"{folder} does not exist; check the name, or get {_TITLE} there",))
    views, targets, maps = (list_images(path) for path in (folder, folder / _TARGETS, folder / _MAPS))
    found = {
        what: {path.stem.removesuffix(end): path for path in paths if path.stem.endswith(end)}
        for what, end, paths in (
            ("left", "_left", views),
            ("right", "_right", views),
            ("target", "_gt", targets),
            ("map", "_gt", maps),
        )
    }
    every = set().union(*found.values())
    if not every:
        nested = folder / "DP_data_pixel_4"
        fix = f"give {nested}" if nested.is_dir() else f"get {_TITLE} of the authors' repository"
        return Listing((), (f"no files *_left.png, *_right.png in {folder}; {fix}",))
    problems = compare("calibration", set(_SHEETS), {name for name in _SHEETS if (folder / name).is_file()}, _FIX)
    places = {"left": "*_left.png", "right": "*_right.png", "target": _TARGETS, "map": _MAPS}
    for what, place in places.items():
        problems += compare(place, every, set(found[what]), _FIX)
    complete = sorted(set.intersection(*(set(paths) for paths in found.values())))
    return Listing(
        tuple(PairFiles(stem, **{what: paths[stem] for what, paths in found.items()}) for stem in complete), problems
    )


@lru_cache(maxsize=1)
def _vignetting(folder: Path) -> FloatArray:
    """What the right view is multiplied by, ``(h, w)``."""
    left, right = (_linear(folder / name) for name in _SHEETS)
    ratio = left / np.maximum(right, 1 / WHITE_LEVEL)
    window = (WHITE_SHEET_WINDOW, WHITE_SHEET_WINDOW)
    return np.asarray(cv2.blur(ratio, window, borderType=cv2.BORDER_REFLECT_101), np.float32)


def _linear(path: Path) -> FloatArray:
    """A raw view in linear light, ``(h, w)``, 1 at 14 bits' full scale."""
    raw: FloatArray = _decode(path).astype(np.float32) - np.float32(BLACK_LEVEL)
    return np.asarray(np.maximum(raw, 0) / np.float32(WHITE_LEVEL), np.float32)


def _decode(path: Path) -> NDArray[Any]:
    decoded = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if decoded is None:
        raise DataError(f"{path}: expected a PNG image, got something that cannot be decoded; {_FIX}")
    return np.asarray(decoded if decoded.ndim == 2 else decoded[..., 0])


def _middle(image: FloatArray, path: Path) -> FloatArray:
    """The middle of the frame, ``FIELD``."""
    height, width = FIELD
    if image.shape[0] < height or image.shape[1] < width:
        raise DataError(f"{path}: expected at least {width} x {height} px, got {image.shape[1]} x {image.shape[0]}")
    y, x = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[y : y + height, x : x + width]


def _encode(linear: FloatArray) -> NDArray[np.uint16]:
    """Linear light ``(h, w)`` as sRGB ``(h, w, 3)``, 16 bits."""
    levels = encode_srgb(linear)
    return np.repeat(levels[..., None], 3, axis=2)


KIND = DatasetKind(
    name=NAME,
    title="PixelDP",
    origin="the folder DP_data_pixel_4 of cmu-ci-lab/dual_pixel_defocus_estimation_deblurring",
    tree="""\
DP_data_pixel_4/
  001_left.png, 001_right.png                      raw green views, 14 bits
  calibration/white_sheet_{left,right}.png         photographs of a white sheet
  gt_all_in_focus_im/001_gt.png                    targets
  gt_defocus_map/001_gt.png                        defocus up to a factor and an offset""",
    splits={"test": 17},
    scan=lambda folder, split: list_pairs(folder).scan(),
    open=lambda folder, split: PixelDPPairs(NAME, split, list_pairs(folder).files),
)
