"""People's own pairs: files that ``ldp batch`` finds by their names, or that a CSV lists, with or without targets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from ldp_export.data.base import PairSample
from ldp_export.data.layout import DatasetKind, Scan
from ldp_runtime.batch.pairs import CONVENTIONS, Pair, PairingError, check_listing, find_pairs, read_csv
from ldp_runtime.batch.targets import Targets, companion_targets
from ldp_runtime.errors import counted, listed
from ldp_runtime.images.pair_files import read_target, read_views

NAME = "pairs"
SPLIT = "test"
"""The one split: all pairs."""


class OwnPairs:
    """Pairs in files; see ``PairDataset``."""

    def __init__(self, pairs: Sequence[Pair], targets: Targets) -> None:
        """Takes what was found; files are read when they are asked for."""
        self.name, self.split = NAME, SPLIT
        self.pairs, self._targets = tuple(pairs), dict(targets)

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairSample:
        """Reads the pair at ``index``, turned so that its disparity runs along x.

        Raises:
            IndexError: There is no such pair.
            LDPError: A file cannot be read, or the pictures do not fit together.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        pair = self.pairs[index]
        views = read_views(pair.left, pair.right)
        pictures = [views.left.pixels, views.right.pixels]
        path = self._targets.get(pair.name)
        if path is not None:
            pictures.append(read_target(path, views.left).pixels)
        if views.axis == "vertical":
            pictures = [picture.transpose(1, 0, 2) for picture in pictures]
        return PairSample(_plain_name(pair), *pictures)

    def names(self) -> tuple[str, ...]:
        """The name of every pair."""
        return tuple(map(_plain_name, self.pairs))

    def subsets(self) -> dict[str, frozenset[str]]:
        """The pairs of each first folder, where there are several."""
        folders = defaultdict(set)
        for pair in self.pairs:
            if len(pair.name.parts) > 1:
                folders[pair.name.parts[0]].add(_plain_name(pair))
        return {name: frozenset(members) for name, members in folders.items()} if len(folders) > 1 else {}


def _plain_name(pair: Pair) -> str:
    return "-".join(pair.name.parts)


def _find(source: Path) -> tuple[tuple[Pair, ...], Targets, tuple[str, ...]]:
    """The pairs of a folder or a CSV, their targets, and what was left out.

    Raises:
        PairingError: There are none, files belong to more than one, or a CSV gives two the same name.
    """
    if source.is_dir():
        targets = source / "target"
        listing = find_pairs(source, targets)
        check_listing(source, listing, skip_unpaired=True)
        remark = f"left out, since they belong to no pair: {listed(listing.alone)}"
        return listing.pairs, companion_targets(listing.pairs, source), (remark,) if listing.alone else ()
    if source.suffix.lower() != ".csv" or not source.is_file():
        raise PairingError(f"expected a folder with pairs or a .csv that lists them, got {source}; check the name")
    pairs = read_csv(source)
    if not pairs:
        raise PairingError(f"{source} lists no pairs; expected a line a pair below the first")
    name, count = Counter(_plain_name(pair) for pair in pairs).most_common(1)[0]
    if count > 1:
        raise PairingError(
            f"{source}: expected a name of its own for each pair, got {name} for {count}; give names in a column output"
        )
    return pairs, {pair.name: pair.target for pair in pairs if pair.target is not None}, ()


def _scan(source: Path, split: str) -> Scan:
    try:
        pairs, targets, remarks = _find(source)
    except PairingError as error:
        return Scan(0, (str(error),))
    if len(targets) < len(pairs):
        remarks += (f"{len(pairs) - len(targets)} of {counted(len(pairs), 'pair')} without a target",)
    return Scan(len(pairs), remarks=remarks)


def _open(source: Path, split: str) -> OwnPairs:
    pairs, targets, _ = _find(source)
    return OwnPairs(pairs, targets)


KIND = DatasetKind(
    name=NAME,
    title="pairs of your own",
    origin="a folder, or a CSV with the columns left, right and, where wanted, output and target",
    tree=f"""\
{CONVENTIONS};
targets: target beside the views, as a file or as a folder of pictures with the pairs' names; NAME_c/ beside NAME_l/;
inputC/ beside inputL/""",
    splits={SPLIT: None},
    scan=_scan,
    open=_open,
)
