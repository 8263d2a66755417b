"""Which files are pairs: the naming conventions, each a small rule, and the CSV.

A rule maps the path of an image below the input folder to a view of a pair. Files that agree on a pair are matched; a
file that two rules match differently, or none, is an error, because a wrong guess costs a night.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ldp_runtime.errors import ImageError
from ldp_runtime.files import cannot_read
from ldp_runtime.images.photo import SUFFIXES

CONVENTIONS = "NAME_L and NAME_R, folders left/ and right/, folders NAME_l/ and NAME_r/ (DPD-blur), or left and right"
CSV_COLUMNS = ("left", "right", "output")

_LEFT, _RIGHT = "left", "right"
_SHOWN = 5


class PairingError(ImageError):
    """Files that make no pairs, or too many."""


@dataclass(frozen=True)
class Pair:
    """The files of a pair.

    Attributes:
        left: File of the left view.
        right: File of the right view.
        name: The output's path below the output folder, without a suffix.
        suffix: The output's suffix with its dot, if the user gave one.
    """

    left: Path
    right: Path
    name: PurePosixPath
    suffix: str | None = None


@dataclass(frozen=True)
class Listing:
    """The images of a folder.

    Attributes:
        pairs: The pairs, by name.
        alone: Images that belong to no pair.
    """

    pairs: tuple[Pair, ...]
    alone: tuple[Path, ...]


@dataclass(frozen=True)
class _Mark:
    """A rule's match: a file is this view of the pair ``key``, whose output would have this ``name``."""

    key: tuple[str, PurePosixPath]
    view: str
    name: PurePosixPath


def find_pairs(folder: Path, output: Path) -> Listing:
    """Finds the pairs in a folder and in the folders in it, except hidden ones.

    Args:
        folder: The input folder.
        output: The output folder, whose files are no inputs.

    Raises:
        PairingError: The folder cannot be read, or a file belongs to more than one pair.
    """
    return match_files(folder, _images(folder, output))


def match_files(folder: Path, files: Iterable[PurePosixPath]) -> Listing:
    """Matches images by the conventions.

    Args:
        folder: The input folder; a pair of files ``left`` and ``right`` in it has its name.
        files: The paths of the images, relative to the folder.

    Raises:
        PairingError: A file belongs to more than one pair.
    """
    files = sorted(files)
    groups: dict[tuple[str, PurePosixPath], dict[str, list[PurePosixPath]]] = defaultdict(lambda: defaultdict(list))
    names: dict[tuple[str, PurePosixPath], PurePosixPath] = {}
    for file in files:
        for mark in _marks(file, folder.resolve().name):
            groups[mark.key][mark.view].append(file)
            names[mark.key] = mark.name
    found: dict[tuple[PurePosixPath, PurePosixPath], PurePosixPath] = {}
    partners: dict[PurePosixPath, set[PurePosixPath]] = defaultdict(set)
    for key, views in groups.items():
        for left in views[_LEFT]:
            for right in views[_RIGHT]:
                found.setdefault((left, right), names[key])
                partners[left].add(right)
                partners[right].add(left)
    for file, others in sorted(partners.items()):
        if len(others) > 1:
            several = " and ".join(str(folder / other) for other in sorted(others))
            raise PairingError(
                f"{folder / file} makes a pair with each of {several}; expected one: move the others away, rename "
                "them, or list the pairs in a CSV"
            )
    pairs = tuple(
        Pair(folder / left, folder / right, name)
        for (left, right), name in sorted(found.items(), key=lambda item: item[1])
    )
    targets = _target_places(partners)
    alone = tuple(folder / file for file in files if file not in partners and not _is_target(file, targets))
    return Listing(pairs, alone)


def read_csv(path: Path) -> tuple[Pair, ...]:
    """Reads a CSV with the columns ``left``, ``right`` and, to choose the name, ``output``.

    ``left`` and ``right`` are relative to the CSV's folder; ``output`` is below the output folder, and its suffix, if
    it has one, chooses the format.

    Raises:
        PairingError: The CSV cannot be read, has other columns, or names missing files.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = tuple(name.strip() for name in reader.fieldnames or ())
            if set(columns) not in ({*CSV_COLUMNS[:2]}, {*CSV_COLUMNS}) or len(columns) != len(set(columns)):
                raise PairingError(
                    f"{path}: expected a first line left,right or left,right,output, got "
                    f"{','.join(columns) or 'none'}; rename the columns"
                )
            reader.fieldnames = columns
            return tuple(_row(path, reader.line_num, row) for row in reader if any(row.values()))
    except OSError as error:
        raise PairingError(cannot_read(path, error)) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise PairingError(f"{path} is no CSV in UTF-8 ({error}); save it as one") from error


def check_listing(folder: Path, listing: Listing, *, skip_unpaired: bool) -> None:
    """Refuses a folder without pairs, or with images that belong to none unless these are to be skipped.

    Raises:
        PairingError: The message names the files.
    """
    if listing.alone and not skip_unpaired:
        raise PairingError(
            f"{first_names(listing.alone)} {'belongs' if len(listing.alone) == 1 else 'belong'} to no pair; expected "
            f"{CONVENTIONS}: fix the names, list the pairs in a CSV, or skip such files with --skip-unpaired"
        )
    if not listing.pairs:
        raise PairingError(f"{folder} has no pairs ({', '.join(SUFFIXES)}); expected {CONVENTIONS}, or give a CSV")


def first_names(paths: Sequence[Path]) -> str:
    """The first paths, for a message, and how many more there are."""
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(map(str, paths[:_SHOWN])) + more


# --- the rules ----------------------------------------------------------------------------------------------


def _marks(file: PurePosixPath, root: str) -> Iterator[_Mark]:
    """The matches of the rules for a file; ``root`` is the name of the input folder."""
    stem = file.stem
    side = {"_l": _LEFT, "_r": _RIGHT}.get(stem[-2:].lower())
    if side is not None and len(stem) > 2:
        yield _Mark(("suffix", name := file.with_name(stem[:-2])), side, name)
    if stem.lower() in (_LEFT, _RIGHT):
        name = file.parent if file.parent.name else PurePosixPath(root)
        yield _Mark(("files", name), stem.lower(), name)
    for i, part in enumerate(file.parts[:-1]):
        before, after = file.parts[:i], file.parts[i + 1 :]
        if part.lower() in (_LEFT, _RIGHT):
            rest = _without_mark(PurePosixPath(*after), part.lower())
            yield _Mark(("folders", PurePosixPath(*before, "*", rest)), part.lower(), PurePosixPath(*before, rest))
        side = {"_l": _LEFT, "_r": _RIGHT}.get(part[-2:].lower())
        if side is not None and len(part) > 2:
            name = PurePosixPath(*before, part[:-2], _without_mark(PurePosixPath(*after), side))
            yield _Mark(("DPD-blur", name), side, name)


def _without_mark(file: PurePosixPath, side: str) -> PurePosixPath:
    """Drops the suffix, and ``_L`` or ``_R`` if it repeats the view that the folder names."""
    stem = file.stem
    marked = stem[-2:].lower() == f"_{side[0]}" and len(stem) > 2
    return file.with_name(stem[:-2] if marked else stem)


def _target_places(views: Iterable[PurePosixPath]) -> frozenset[PurePosixPath]:
    """The places of targets beside these views: folders ``NAME_c`` of DPD-blur, and ``target`` beside ``left``."""
    places = set()
    for view in views:
        if view.stem.lower() == _LEFT:
            places.add(view.parent / "target")
        for i, part in enumerate(view.parts[:-1]):
            if part[-2:].lower() == "_l":
                places.add(PurePosixPath(*view.parts[:i], f"{part[:-2]}_c"))
    return frozenset(places)


def _is_target(file: PurePosixPath, places: frozenset[PurePosixPath]) -> bool:
    return not places.isdisjoint({file.with_suffix(""), *file.parents})


# --- files and rows -----------------------------------------------------------------------------------------


def _images(folder: Path, output: Path) -> list[PurePosixPath]:
    """The images in a folder, as paths relative to it."""

    def fail(error: OSError) -> None:
        raise PairingError(cannot_read(error.filename, error)) from error

    found: list[PurePosixPath] = []
    avoid, seen = os.path.realpath(output), set()
    for here, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(here)
        if real == avoid or real in seen:  # a link may lead back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(here).relative_to(folder)
        found += [
            PurePosixPath(relative.as_posix(), name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
        ]
    return found


def _row(path: Path, line: int, row: dict[str, str | None]) -> Pair:
    where = f"{path}, line {line}"
    cells = {name: (row.get(name) or "").strip() for name in CSV_COLUMNS}
    if None in row:
        raise PairingError(f"{where}: expected {len(row) - 1} cells, got more; quote names that hold a comma")
    views = []
    for column in (_LEFT, _RIGHT):
        if not cells[column]:
            raise PairingError(f"{where}: expected a file in the column {column}, got none; fill it in")
        views.append(path.parent / cells[column])
        if not views[-1].is_file():
            raise PairingError(f"{where}: {views[-1]} does not exist; names are relative to the CSV's folder")
    if cells["output"]:
        name = PurePosixPath(cells["output"].replace(os.sep, "/"))
        if name.is_absolute() or ".." in name.parts or not name.name:
            raise PairingError(f"{where}: expected an output below the output folder, got {name}; omit .. and /")
        if name.suffix.lower() in SUFFIXES:
            return Pair(views[0], views[1], name.with_suffix(""), name.suffix)
        return Pair(views[0], views[1], name)
    return Pair(views[0], views[1], _own_name(path.parent, PurePosixPath(cells[_LEFT]), PurePosixPath(cells[_RIGHT])))


def _own_name(folder: Path, left: PurePosixPath, right: PurePosixPath) -> PurePosixPath:
    """The name that a convention gives to two files, else that of the left one."""
    if left.is_absolute() or ".." in left.parts:
        left, right = PurePosixPath(left.name), PurePosixPath(right.name)
    root = folder.resolve().name
    other = {mark.key for mark in _marks(right, root) if mark.view == _RIGHT}
    for mark in _marks(left, root):
        if mark.view == _LEFT and mark.key in other:
            return mark.name
    return left.with_suffix("")
