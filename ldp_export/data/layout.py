"""Layouts of data sets: what a folder should hold, what it holds, and how to fix what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldp_export.data.base import DataError, PairDataset, PairSample
from ldp_runtime.errors import counted, listed
from ldp_runtime.images.photo import read_photo


@dataclass(frozen=True)
class Scan:
    """What a split of a folder holds.

    Attributes:
        pairs: How many complete pairs.
        problems: What is missing or wrong and its fix, a line each; none where the pairs can be used.
        remarks: What is not as published but does no harm, a line each.
    """

    pairs: int
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetKind:
    """A data set as its authors publish it.

    Attributes:
        name: What commands and configurations call it.
        title: What people call it.
        origin: Where it comes from.
        tree: Its layout, drawn for people.
        splits: Its splits, with the number of pairs that each has in full, or None where that is up to the user.
        scan: Looks at a split of a folder.
        open: Opens a split that was scanned and has no problems.
    """

    name: str
    title: str
    origin: str
    tree: str
    splits: Mapping[str, int | None]
    scan: Callable[[Path, str], Scan]
    open: Callable[[Path, str], PairDataset]


@dataclass(frozen=True)
class PairFiles:
    """The files of a pair.

    Attributes:
        name: The pair's name, safe as a file stem.
        left: Left view.
        right: Right view.
        target: All-in-focus image, if there is one.
        map: Disparity or something like it, if there is one.
    """

    name: str
    left: Path
    right: Path
    target: Path | None = None
    map: Path | None = None


@dataclass(frozen=True)
class Listing:
    """The pairs of a split that were found, and what is wrong with it; the lines are those of ``Scan``."""

    files: tuple[PairFiles, ...]
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def scan(self) -> Scan:
        """The listing in numbers."""
        return Scan(len(self.files), self.problems, self.remarks)


class FilePairs:
    """A split whose pairs are files; see ``PairDataset``. Subclasses decode what is no plain image."""

    def __init__(
        self, name: str, split: str, files: Sequence[PairFiles], subsets: Mapping[str, frozenset[str]] | None = None
    ) -> None:
        """Takes a listing; files are read when they are asked for."""
        self.name, self.split = name, split
        self._files = tuple(files)
        self._subsets = dict(subsets or {})

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self._files)

    def __getitem__(self, index: int) -> PairSample:
        """The pair at ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.decode(self._files[index])

    def names(self) -> tuple[str, ...]:
        """The name of every pair."""
        return tuple(files.name for files in self._files)

    def subsets(self) -> dict[str, frozenset[str]]:
        """Named parts of the split."""
        return dict(self._subsets)

    def decode(self, files: PairFiles) -> PairSample:
        """Reads a pair; raises ``LDPError`` where a file is damaged or the images differ in size or depth."""
        return PairSample(
            files.name,
            read_pixels(files.left),
            read_pixels(files.right),
            None if files.target is None else read_pixels(files.target),
        )


def read_pixels(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """An image as ``(h, w, 3)`` RGB in its own depth; grey is repeated."""
    pixels: NDArray[np.uint8] | NDArray[np.uint16] = read_photo(path).pixels
    return pixels


def list_images(folder: Path, suffixes: tuple[str, ...] = (".png",)) -> list[Path]:
    """The images of a folder by name, suffixes compared without case; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )


def missing_folders(root: Path, wanted: Sequence[str], title: str) -> tuple[str, ...]:
    """One line for each wanted folder that is not there; where a folder near by has them all, that it is meant."""
    missing = [name for name in wanted if not (root / name).is_dir()]
    if not missing:
        return ()
    if not root.is_dir():
        return (f"{root} does not exist; check the name, or unpack {title} there",)
    near = [root.parent, *sorted(path for path in root.iterdir() if path.is_dir())]
    for candidate in near:
        if all((candidate / name).is_dir() for name in wanted):
            return (f"{missing[0]}/ is not in {root}, but in {candidate}; give {candidate}",)
    return tuple(f"{name}/ is not in {root}; unpack {title} there" for name in missing)


def compare(what: str, expected: set[str], found: set[str], fix: str) -> tuple[str, ...]:
    """At most one line: which names of ``expected`` are not in ``found``."""
    absent = sorted(expected - found)
    if not absent:
        return ()
    return (f"{what}: {listed(absent)} missing; {fix}",)


def check_kind(kind: DatasetKind, folder: Path, split: str) -> Scan:
    """Looks at a split; a number of pairs that is not the published one is a remark.

    Raises:
        DataError: The data set has no such split.
    """
    if split not in kind.splits:
        raise DataError(f"expected a split of {kind.name}, one of {', '.join(kind.splits)}, got {split!r}")
    scan = kind.scan(folder, split)
    published = kind.splits[split]
    if scan.problems or published is None or scan.pairs == published:
        return scan
    return replace(
        scan, remarks=(*scan.remarks, f"{counted(scan.pairs, 'pair')}, not the {published} of the published split")
    )


def open_kind(kind: DatasetKind, folder: Path, split: str) -> PairDataset:
    """Opens a split.

    Raises:
        DataError: The data set has no such split, or the folder is not laid out as the data set is.
    """
    scan = check_kind(kind, folder, split)
    if scan.problems:
        more = f" ({len(scan.problems) - 1} more)" if len(scan.problems) > 1 else ""
        raise DataError(
            f"{kind.name}: {scan.problems[0]}{more}; `ldp-export data check {kind.name} {folder}` shows the layout"
        )
    if not scan.pairs:
        raise DataError(f"{kind.name}: no pairs of the split {split} in {folder}; check the folder")
    return kind.open(folder, split)
