"""The simulator as a data set: shards of scenes that ``ldp-export data render`` wrote.

The first ``HELD_OUT_SHARDS`` shards are the split "val", the others "train"; for "test" there are the motorcycle sample
and the real data sets. Shards are not compressed, so their arrays are mapped from the file: opening is quick, and
processes that read one folder share its pages.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_export.data.base import DataError, PairSample
from ldp_export.data.layout import DatasetKind, Scan
from ldp_export.simulation.shards import DAMAGED, FIELDS, SHARD_PATTERN, map_field, scenes_in_shard

NAME = "simulated"
HELD_OUT_SHARDS = 2
"""So many first shards of rendered scenes validate and calibrate; no recipe trains on them."""

SHARP_DISPARITY = 1.0
"""Up to this |DP disparity| in px a pixel counts as sharp: the paper's threshold for blur maps."""


def shard_paths(folder: Path, split: str) -> list[Path]:
    """The shards of a split in the order of their numbers; none for "test"."""
    paths = sorted(folder.glob(SHARD_PATTERN))
    return {"val": paths[:HELD_OUT_SHARDS], "train": paths[HELD_OUT_SHARDS:]}.get(split, [])


class SimulatedPairs:
    """A split of a folder of shards; see ``PairDataset``."""

    def __init__(self, split: str, paths: Sequence[Path]) -> None:
        """Reads the headers of the shards.

        Raises:
            DataError: One is not a shard of rendered scenes.
        """
        self.name, self.split = NAME, split
        self._paths = tuple(paths)
        self._open: dict[int, dict[str, NDArray[Any]]] = {}
        self._names: list[str] = []
        counts = []
        for shard, path in enumerate(self._paths):
            fields = self._fields(shard)
            counts.append(len(fields["left"]))
            number = path.stem.rpartition("-")[2]
            self._names += [f"scene-{number}-{index:02d}" for index in range(counts[-1])]
        self._ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        """How many scenes there are."""
        return len(self._names)

    def __getitem__(self, index: int) -> PairSample:
        """The scene at ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect.bisect_right(self._ends, index)
        at = index - (self._ends[shard - 1] if shard else 0)
        left, right, target, coc, disparity = (np.array(self._fields(shard)[field][at]) for field in FIELDS)
        return PairSample(self._names[index], left, right, target, disparity.astype(np.float32), coc.astype(np.float32))

    def names(self) -> tuple[str, ...]:
        """The name of every scene."""
        return tuple(self._names)

    def subsets(self) -> dict[str, frozenset[str]]:
        """Scenes with a DP disparity of more than ``SHARP_DISPARITY`` somewhere, and the others; reads all maps."""
        blurred: list[bool] = []
        for shard in range(len(self._paths)):
            largest = np.abs(self._fields(shard)["disparity"]).max(axis=(1, 2))
            blurred += (largest > SHARP_DISPARITY).tolist()
        return {
            "blurred": frozenset(name for name, is_blurred in zip(self._names, blurred, strict=True) if is_blurred),
            "sharp": frozenset(name for name, is_blurred in zip(self._names, blurred, strict=True) if not is_blurred),
        }

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # each process maps the files itself

    def _fields(self, shard: int) -> dict[str, NDArray[Any]]:
        if shard not in self._open:
            path = self._paths[shard]
            try:
                fields = {field: map_field(path, field) for field in FIELDS}
            except DAMAGED as error:
                raise DataError(
                    f"{path}: expected a shard of rendered scenes, got {error}; remove it and render it again"
                ) from error
            shape = fields["left"].shape
            wanted = [shape] * 3 + [shape[:3]] * 2
            if len(shape) != 4 or shape[3] != 3 or [array.shape for array in fields.values()] != wanted:
                got = ", ".join(f"{field} {array.shape}" for field, array in fields.items())
                raise DataError(f"{path}: expected views, target and maps of one size, got {got}; render it again")
            self._open[shard] = fields
        return self._open[shard]


def _scan(folder: Path, split: str) -> Scan:
    paths = shard_paths(folder, split)
    if not paths:
        found = len(list(folder.glob(SHARD_PATTERN)))
        fix = "render more scenes with ldp-export data render" if split != "test" else "take val"
        return Scan(0, (f"{split}: no shards, of the {found} in {folder}; {fix}",))
    problems = tuple(
        f"{path.name}: no shard of rendered scenes; remove it and render it again"
        for path in paths
        if scenes_in_shard(path) == 0
    )
    return Scan(sum(map(scenes_in_shard, paths)), problems)


KIND = DatasetKind(
    name=NAME,
    title="the simulator's scenes",
    origin="ldp-export data render PHOTOS -o DIR --scenes N",
    tree=f"""\
DIR/scenes-NNNN.npz    left, right, target (n, h, w, 3) uint8, coc, disparity (n, h, w)
                       val: the first {HELD_OUT_SHARDS} shards; train: the others""",
    splits={"train": None, "val": None},
    scan=_scan,
    open=lambda folder, split: SimulatedPairs(split, shard_paths(folder, split)),
)
