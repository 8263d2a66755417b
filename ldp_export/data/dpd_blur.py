"""DPD-blur (Abuolaim and Brown, ECCV 2020): real Canon pairs with targets, 16 bit, 350 / 74 / 76 scenes.

The published archive is ``dd_dp_dataset_canon``. The views of one photo share a name, ``1P0A0917_L.png`` and
``1P0A0917_R.png``; the target is another photo, taken before or after it, so its name is another number: pairs are
formed by the order of names, as in the authors' own code, and checked by the distance of the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ldp_export.data.layout import DatasetKind, FilePairs, Listing, PairFiles, compare, list_images, missing_folders
from ldp_runtime.errors import counted

NAME = "dpd-blur"

LARGEST_GAP = 3
"""A target's number differs from its photo's by one or two; a larger distance means that a file is missing."""

INDOOR_TEST = frozenset(
    f"1P0A{number:04d}"
    for number in (
        *(1046, 1063, 1067, 1112, 1434, 1442, 1488, 1734, 1890, 1910, 1916, 1924, 1932, 1973, 1979, 1983),
        *(1987, 1992, 2003, 2014, 2030, 2066, 2074, 2098, 2151, 2154, 2177, 2202, 2206, 2239, 2258, 2261),
        *(2317, 2350, 2357, 2513, 2521),
    )
)
"""The 37 indoor scenes of the test set; its other 39 are outdoor scenes.

The authors publish no list, and names do not tell. A public derivative of Restormer's evaluation script spells out the
places of both kinds in the sorted test set, 37 and 39 of them; these are the names in those places. Restormer's own
label files, and the pictures, were not at hand to check them against.
"""

_TITLE = "dd_dp_dataset_canon"
_SUFFIXES = (".png", ".tif", ".jpg")
_FIX = "unpack the archive again"


def list_pairs(folder: Path, split: str) -> Listing:
    """Finds the pairs of a split.

    Args:
        folder: ``dd_dp_dataset_canon``.
        split: "train", "val" or "test".
    """
    left_folder, right_folder, target_folder = wanted = (f"{split}_l/source", f"{split}_r/source", f"{split}_c/target")
    problems = missing_folders(folder, wanted, _TITLE)
    if problems:
        return Listing((), problems)
    lefts = {_stem(path, "_L"): path for path in list_images(folder / left_folder, _SUFFIXES)}
    rights = {_stem(path, "_R"): path for path in list_images(folder / right_folder, _SUFFIXES)}
    targets = list_images(folder / target_folder, _SUFFIXES)
    problems = (
        *compare(right_folder, set(lefts), set(rights), _FIX),
        *compare(left_folder, set(rights), set(lefts), _FIX),
    )
    stems = sorted(lefts.keys() & rights.keys())
    if not problems and len(targets) != len(stems):
        problems = (f"{target_folder}: {counted(len(targets), 'image')} for {counted(len(stems), 'pair')}; {_FIX}",)
    files = []
    for stem, target in zip(stems, targets, strict=False):
        gap = _gap(stem, target.stem)
        if gap > LARGEST_GAP and not problems:
            problems = (
                f"{target_folder}: {target.name} is no target of {lefts[stem].name}, whose number is {gap} away: an "
                f"image before them is missing; {_FIX}",
            )
        files.append(PairFiles(stem, lefts[stem], rights[stem], target))
    return Listing(tuple(files), problems)


def indoor_and_outdoor(names: Iterable[str]) -> dict[str, frozenset[str]]:
    """The indoor and the outdoor scenes among scenes of the test set."""
    every = frozenset(names)
    return {"indoor": every & INDOOR_TEST, "outdoor": every - INDOOR_TEST}


def _open(folder: Path, split: str) -> FilePairs:
    files = list_pairs(folder, split).files
    subsets = indoor_and_outdoor(pair.name for pair in files) if split == "test" else None
    return FilePairs(NAME, split, files, subsets)


def _stem(path: Path, view: str) -> str:
    return path.stem.removesuffix(view)


def _gap(a: str, b: str) -> int:
    """How far the last numbers in two names are apart; 0 where one has none."""
    last = [re.findall(r"\d+", name) for name in (a, b)]
    return abs(int(last[0][-1]) - int(last[1][-1])) if all(last) else 0


_SPLITS = {"train": 350, "val": 74, "test": 76}
KIND = DatasetKind(
    name=NAME,
    title=f"DPD-blur ({_TITLE})",
    origin="the authors' repository Abdullah-Abuolaim/defocus-deblurring-dual-pixel",
    tree="""\
dd_dp_dataset_canon/
  train_l/source/1P0A0917_L.png    left views; likewise val_l and test_l
  train_r/source/1P0A0917_R.png    right views
  train_c/target/1P0A0916.png      targets, which pair up with the views by the order of their names""",
    splits=_SPLITS,
    scan=lambda folder, split: list_pairs(folder, split).scan(),
    open=_open,
)
