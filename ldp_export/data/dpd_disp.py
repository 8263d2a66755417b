"""DPD-disp (Punnappurath et al., ICCP 2020): real Canon pairs with a map of the scene's depth, 8 bit, for tests only.

The map ``NNN_D.TIF`` of the folder ``Quantitative`` is the DP disparity up to an unknown factor and offset, scaled here
to [0, 1] as the authors' evaluation does: enough for AI(1), AI(2) and rank correlation, which do not see those two, and
for no threshold in px. The authors score at half size without the borders that their own method cannot fill.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from ldp_export.data.base import DataError, PairSample
from ldp_export.data.layout import DatasetKind, FilePairs, Listing, PairFiles, compare, list_images, read_pixels

NAME = "dpd-disp"

_TITLE = "the folder Quantitative"
_SUFFIXES = (".jpg", ".png", ".tif")
_FIX = "get the repository again"


class DPDDispPairs(FilePairs):
    """The pairs, with their relative disparity."""

    def decode(self, files: PairFiles) -> PairSample:
        """Reads a pair and its map."""
        if files.map is None:
            raise DataError(f"{files.name}: expected a map, got none; {_FIX}")
        return PairSample(
            files.name,
            read_pixels(files.left),
            read_pixels(files.right),
            relative_disparity=_read_relative(files.map),
        )


def list_pairs(folder: Path) -> Listing:
    """Finds the pairs; ``folder`` is ``Quantitative``."""
    if not folder.is_dir():
        return Listing((), (f"{folder} does not exist; check the name, or get {_TITLE} there",))
    ends = {"left": "_L", "right": "_R", "map": "_D"}
    images = list_images(folder, _SUFFIXES)
    found = {
        what: {path.stem.removesuffix(end): path for path in images if path.stem.endswith(end)}
        for what, end in ends.items()
    }
    every = set().union(*found.values())
    if not every:
        nested = folder / "Quantitative"
        fix = f"give {nested}" if nested.is_dir() else f"get {_TITLE} of the authors' repository"
        return Listing((), (f"no files *_L.jpg, *_R.jpg, *_D.TIF in {folder}; {fix}",))
    problems = tuple(line for what, end in ends.items() for line in compare(f"*{end}", every, set(found[what]), _FIX))
    complete = sorted(set.intersection(*(set(paths) for paths in found.values())))
    return Listing(
        tuple(PairFiles(stem, **{what: paths[stem] for what, paths in found.items()}) for stem in complete), problems
    )


def _read_relative(path: Path) -> NDArray[np.float32]:
    """A grey map as shares of its dtype's maximum, ``(h, w)``."""
    try:
        values = np.asarray(tifffile.imread(path))
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise DataError(f"{path}: expected a TIFF map, got {error}; {_FIX}") from error
    if values.ndim == 3:
        values = values[..., 0]
    if values.ndim != 2 or values.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: expected a grey map of 8 or 16 bits, got {values.shape} of {values.dtype}; {_FIX}")
    return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)


KIND = DatasetKind(
    name=NAME,
    title="DPD-disp",
    origin="the folder Quantitative of abhijithpunnappurath/dual-pixel-defocus-disparity",
    tree="""\
Quantitative/
  001_L.jpg, 001_R.jpg    views
  001_D.TIF               disparity up to a factor and an offset""",
    splits={"test": None},
    scan=lambda folder, split: list_pairs(folder).scan(),
    open=lambda folder, split: DPDDispPairs(NAME, split, list_pairs(folder).files),
)
