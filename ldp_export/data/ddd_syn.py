"""DDD-syn (Pan et al., CVPR 2021): pairs simulated from NYU Depth V2, 480 x 640 px, 8 bit, 5000 to train, 500 to test.

The authors publish the simulator that writes ``simudata/NYU``. The test set is ``testing`` (350 scenes) and
``testing1`` (the first 150 of those scenes again, blurred more strongly), as their own list has it, which names the
latter ``6001_h``. The disparity is that of ``NNNN_dm.pfm``, the map of the center view, in px and with the sign it has
in the file.
"""

from __future__ import annotations

from pathlib import Path

from ldp_export.data.base import DataError, PairSample
from ldp_export.data.layout import DatasetKind, FilePairs, Listing, PairFiles, compare, missing_folders, read_pixels
from ldp_export.simulation.maps import read_map

NAME = "ddd-syn"

_FOLDERS = {"train": {"training": ""}, "test": {"testing": "", "testing1": "_h"}}
_TITLE = "simudata/NYU"
_FIX = "run the authors' simulator again"
_PARTS = {"left": ("dp", "_l.png"), "right": ("dp", "_r.png"), "target": ("gt", "_m.png"), "map": ("disp", "_dm.pfm")}


class DDDSynPairs(FilePairs):
    """The pairs of a split, with their disparity."""

    def decode(self, files: PairFiles) -> PairSample:
        """Reads a pair and its disparity."""
        if files.map is None:
            raise DataError(f"{files.name}: expected a disparity map, got none; {_FIX}")
        left = read_pixels(files.left)
        return PairSample(
            files.name,
            left,
            read_pixels(files.right),
            None if files.target is None else read_pixels(files.target),
            read_map(files.map, (left.shape[0], left.shape[1])),
        )


def list_pairs(folder: Path, split: str) -> Listing:
    """Finds the pairs of a split.

    Args:
        folder: ``simudata/NYU``.
        split: "train" or "test".
    """
    wanted = [f"{part}/{kind}" for part in _FOLDERS[split] for kind in ("dp", "gt", "disp")]
    problems = missing_folders(folder, wanted, _TITLE)
    if problems:
        return Listing((), problems)
    files = []
    for part, suffix in _FOLDERS[split].items():
        found = {
            what: {path.name.removesuffix(end): path for path in (folder / part / kind).glob(f"*{end}")}
            for what, (kind, end) in _PARTS.items()
        }
        every = set().union(*found.values())
        for what, (kind, end) in _PARTS.items():
            problems += compare(f"{part}/{kind}/*{end}", every, set(found[what]), _FIX)
        for stem in sorted(set.intersection(*(set(paths) for paths in found.values()))):
            files.append(PairFiles(f"{stem}{suffix}", **{what: paths[stem] for what, paths in found.items()}))
    return Listing(tuple(files), problems)


KIND = DatasetKind(
    name=NAME,
    title=f"DDD-syn ({_TITLE})",
    origin="written by the authors' simulator, panpanfei/Dual-Pixel-Exploration-Simultaneous-Depth-Estimation-and-"
    "Image-Restoration",
    tree="""\
NYU/
  training/dp/0001_l.png, 0001_r.png    views; likewise testing and testing1
  training/gt/0001_m.png                targets
  training/disp/0001_dm.pfm             disparity of the center view in px""",
    splits={"train": 5000, "test": 500},
    scan=lambda folder, split: list_pairs(folder, split).scan(),
    open=lambda folder, split: DDDSynPairs(NAME, split, list_pairs(folder, split).files),
)
