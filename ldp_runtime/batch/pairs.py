"""Which files are pairs: the naming conventions, each a small rule, and the CSV.

A rule maps the path of an image below the input folder to a view of a pair. Files that agree on a pair are matched; a
file that two rules match differently, or none, is an error, because a wrong guess costs a night.
"""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ldp_runtime.errors import ImageError, listed
from ldp_runtime.files import cannot_read
from ldp_runtime.images import raw_container, tiff
from ldp_runtime.images.photo import SUFFIXES

CONVENTIONS = (
    "NAME_L and NAME_R, the words left and right in names, folders left/ and right/, inputL/ and inputR/, or NAME_l/ "
    "and NAME_r/ (DPD-blur), NAME-1 and NAME-2 (DPRSplit), or files that hold both views"
)
CSV_COLUMNS = ("left", "right", "output", "target")

_LEFT, _RIGHT = "left", "right"
_SIDES = {"l": _LEFT, "left": _LEFT, "r": _RIGHT, "right": _RIGHT}
_GAPS = "_-. "
_TIFF = tiff.TIFF.suffixes
_IMAGES = (*SUFFIXES, *raw_container.SUFFIXES)

_WORD = re.compile(r"(?<![a-z])(?P<side>left|right)(?![a-z])", re.IGNORECASE)
_LETTER = re.compile(r"(?<=.)_(?P<side>[lr])$", re.IGNORECASE)
_LETTER_FOLDER = re.compile(r"(?P<name>.+)_(?P<side>[lr])", re.IGNORECASE)
_CAMEL_FOLDER = re.compile(r"(?P<name>.*[a-z])(?P<side>[LR])")
_NUMBERED = re.compile(r"(?P<name>.+)-(?P<number>\d)")


class PairingError(ImageError):
    """Files that make no pairs, or too many."""


@dataclass(frozen=True)
class Pair:
    """The files of a pair.

    Attributes:
        left: File of the left view, or one that holds both.
        right: File of the right view; None if ``left`` holds both.
        name: The output's path below the output folder, without a suffix.
        suffix: The output's suffix with its dot, if the user gave one.
        target: The sharp photo, if a CSV names it.
    """

    left: Path
    right: Path | None
    name: PurePosixPath
    suffix: str | None = None
    target: Path | None = None


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


def find_pairs(folder: Path, output: Path, *, targets: Path | None = None, side_by_side: bool = False) -> Listing:
    """Finds the pairs in a folder and in the folders in it, except hidden ones.

    Args:
        folder: The input folder.
        output: The output folder, whose files are no inputs.
        targets: The folder of the targets, whose files are no views.
        side_by_side: Each picture holds both views.

    Raises:
        PairingError: The folder cannot be read, or a file belongs to more than one pair.
    """
    files = list_images(folder, *(path for path in (output, targets) if path is not None))
    if side_by_side:
        return Listing(tuple(_alone(folder, file) for file in sorted(files)), ())
    listing = match_files(folder, files)
    two_pages = [path for path in listing.alone if path.suffix.lower() in _TIFF and tiff.count_pages(path) == 2]
    pages = [_alone(folder, PurePosixPath(path.relative_to(folder).as_posix())) for path in two_pages]
    pairs = sorted((*listing.pairs, *pages), key=lambda pair: pair.name)
    return Listing(tuple(pairs), tuple(path for path in listing.alone if path not in two_pages))


def _alone(folder: Path, file: PurePosixPath) -> Pair:
    return Pair(folder / file, None, file.with_suffix(""))


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
    rest = [file for file in files if file not in partners]
    for left, right, name in _numbered(rest):
        found[left, right] = name
        partners[left], partners[right] = {right}, {left}
    raw = [file for file in rest if file.suffix.lower() in raw_container.SUFFIXES and file not in partners]
    pairs = [Pair(folder / left, folder / right, name) for (left, right), name in found.items()]
    pairs += [_alone(folder, file) for file in raw]
    pairs.sort(key=lambda pair: pair.name)
    companions = _companions(partners, found.values(), raw)
    alone = tuple(
        folder / file for file in rest if file not in partners and file not in raw and not _is_below(file, companions)
    )
    return Listing(tuple(pairs), alone)


def read_csv(path: Path, *, side_by_side: bool = False) -> tuple[Pair, ...]:
    """Reads a CSV with the columns ``left``, ``right`` and, where wanted, ``output``, the name, and ``target``.

    ``right`` is empty where the file in ``left`` holds both views, which ``side_by_side`` says of every picture.
    Files are relative to the CSV's folder; ``output`` is below the output folder, and its suffix, if it has one,
    chooses the format.

    Raises:
        PairingError: The CSV cannot be read, has other columns, or names missing files.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = tuple(name.strip() for name in reader.fieldnames or ())
            if not {*CSV_COLUMNS[:2]} <= {*columns} <= {*CSV_COLUMNS} or len(columns) != len(set(columns)):
                optional = " or ".join(CSV_COLUMNS[2:])
                raise PairingError(
                    f"{path}: expected a first line left,right, and {optional} where wanted, got "
                    f"{','.join(columns) or 'none'}; name the columns so, with commas between them"
                )
            reader.fieldnames = columns
            return tuple(_row(path, reader.line_num, row, side_by_side) for row in reader if any(row.values()))
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
            f"{listed(listing.alone)} {'belongs' if len(listing.alone) == 1 else 'belong'} to no pair; expected "
            f"{CONVENTIONS}: fix the names, list the pairs in a CSV, or skip such files with --skip-unpaired"
        )
    if not listing.pairs:
        raise PairingError(f"{folder} has no pairs ({', '.join(_IMAGES)}); expected {CONVENTIONS}, or give a CSV")


# --- the rules ----------------------------------------------------------------------------------------------


def _marks(file: PurePosixPath, root: str) -> Iterator[_Mark]:
    """The matches of the rules for a file; ``root`` is the name of the input folder."""
    stem = file.stem
    if stem.lower() in (_LEFT, _RIGHT):
        name = file.parent if file.parent.name else PurePosixPath(root)
        yield _Mark(("files", name), stem.lower(), name)
    elif (marked := _marked(stem)) is not None:
        side, start, end = marked
        key = file.with_name(f"{stem[:start]}*{stem[end:]}")
        yield _Mark(("names", key), side, file.with_name(_without_mark(stem, side)))
    for i, part in enumerate(file.parts[:-1]):
        before, after = file.parts[:i], PurePosixPath(*file.parts[i + 1 :])
        if part.lower() in (_LEFT, _RIGHT):
            rest = after.with_name(_without_mark(after.stem, part.lower()))
            yield _Mark(("folders", PurePosixPath(*before, "*", rest)), part.lower(), PurePosixPath(*before, rest))
        elif (match := _LETTER_FOLDER.fullmatch(part) or _CAMEL_FOLDER.fullmatch(part)) is not None:
            side = _SIDES[match["side"].lower()]
            rest = after.with_name(_without_mark(after.stem, side))
            inner = (match["name"],) if match.re is _LETTER_FOLDER else ()  # test_l/ makes test/, inputL/ nothing
            key = PurePosixPath(*before, f"{match['name']}*", rest)
            yield _Mark((match.re.pattern, key), side, PurePosixPath(*before, *inner, rest))


def _marked(stem: str) -> tuple[str, int, int] | None:
    """The side that a name without suffix says, and where: ``_L`` at its end, or the last word left or right."""
    found = [*_WORD.finditer(stem), *_LETTER.finditer(stem)]
    if not found:
        return None
    mark = max(found, key=lambda match: match.start("side"))
    return _SIDES[mark["side"].lower()], mark.start("side"), mark.end("side")


def _without_mark(stem: str, side: str) -> str:
    """A name without the mark of this side, and without what separated the mark."""
    marked = _marked(stem)
    if marked is None or marked[0] != side:
        return stem
    before, after = stem[: marked[1]].rstrip(_GAPS), stem[marked[2] :]
    return (before + after if before else after.lstrip(_GAPS)) or stem


def _numbered(files: Iterable[PurePosixPath]) -> Iterator[tuple[PurePosixPath, PurePosixPath, PurePosixPath]]:
    """The pairs ``NAME-1`` (sum) and ``NAME-2`` (view) of DPRSplit, and ``NAME``; a third number is another naming."""
    groups: dict[PurePosixPath, dict[str, list[PurePosixPath]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        match = _NUMBERED.fullmatch(file.stem)
        if match is not None:
            groups[file.with_name(match["name"])][match["number"]].append(file)
    for name, numbers in groups.items():
        if sorted(numbers) == ["1", "2"] and all(len(files) == 1 for files in numbers.values()):
            yield numbers["1"][0], numbers["2"][0], name


def _companions(
    views: Iterable[PurePosixPath], names: Iterable[PurePosixPath], raw: Iterable[PurePosixPath]
) -> frozenset[PurePosixPath]:
    """Files, without suffix, and folders that belong to pairs but are no views.

    The places of targets; the combined view of ``ldp split``; a camera's JPEG beside its raw file.
    """
    places = {file.with_suffix("") for file in raw} | {name.with_name(f"{name.name}_combined") for name in names}
    return frozenset(places.union(*map(target_places, views)))


def target_places(view: PurePosixPath) -> list[PurePosixPath]:
    """The places, relative to the input folder, where a view's target may lie: files without suffix, and folders.

    These are ``target`` beside the view or beside the folder of the views, ``NAME_c`` beside ``NAME_l`` (DPD-blur) and
    ``inputC`` beside ``inputL``.
    """
    places = [view.parent / "target"]
    for i, part in enumerate(view.parts[:-1]):
        here = PurePosixPath(*view.parts[:i])
        if part.lower() in (_LEFT, _RIGHT):
            places.append(here / "target")
        elif (match := _LETTER_FOLDER.fullmatch(part)) is not None:
            places.append(here / f"{match['name']}_c")
        elif (match := _CAMEL_FOLDER.fullmatch(part)) is not None:
            places += [here / f"{match['name']}C", here / "target"]
    return places


def _is_below(file: PurePosixPath, places: frozenset[PurePosixPath]) -> bool:
    return not places.isdisjoint({file.with_suffix(""), *file.parents})


# --- files and rows -----------------------------------------------------------------------------------------


def list_images(folder: Path, *avoided: Path) -> list[PurePosixPath]:
    """The images in a folder, as paths relative to it; those in the avoided folders are left out."""

    def fail(error: OSError) -> None:
        raise PairingError(cannot_read(error.filename, error)) from error

    found: list[PurePosixPath] = []
    seen = {os.path.realpath(path) for path in avoided}
    for here, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link may lead back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(here).relative_to(folder)
        found += [
            PurePosixPath(relative.as_posix(), name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in _IMAGES
        ]
    return found


def _row(path: Path, line: int, row: dict[str, str | None], side_by_side: bool) -> Pair:
    where = f"{path}, line {line}"
    cells = {name: (row.get(name) or "").strip() for name in CSV_COLUMNS}
    if None in row:
        raise PairingError(f"{where}: expected {len(row) - 1} cells, got more; quote names that hold a comma")
    both = side_by_side or Path(cells[_LEFT]).suffix.lower() in (*raw_container.SUFFIXES, *_TIFF)
    for column in (_LEFT,) if both else (_LEFT, _RIGHT):
        if not cells[column]:
            raise PairingError(f"{where}: expected a file in the column {column}, got none; fill it in")
    given = [path.parent / cells[column] if cells[column] else None for column in (_LEFT, _RIGHT, "target")]
    for file in given:
        if file is not None and not file.is_file():
            raise PairingError(f"{where}: {file} does not exist; names are relative to the CSV's folder")
    left, right, target = path.parent / cells[_LEFT], given[1], given[2]
    if cells["output"]:
        name = PurePosixPath(cells["output"].replace(os.sep, "/"))
        if name.is_absolute() or ".." in name.parts or not name.name:
            raise PairingError(f"{where}: expected an output below the output folder, got {name}; omit .. and /")
        if name.suffix.lower() in SUFFIXES:
            return Pair(left, right, name.with_suffix(""), name.suffix, target)
    else:
        name = _own_name(path.parent, PurePosixPath(cells[_LEFT]), PurePosixPath(cells[_RIGHT]))
    return Pair(left, right, name, target=target)


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
