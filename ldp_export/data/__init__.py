"""Data sets of dual-pixel pairs, each in the layout that its authors publish."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ldp_export.data import ddd_syn, dpd_blur, dpd_disp, pairs, pixel_dp, rdpd, simulated
from ldp_export.data.base import SPLITS, DataError, PairDataset, PairSample, iterate, spread
from ldp_export.data.layout import DatasetKind, open_kind

__all__ = [
    "DATASETS",
    "SPLITS",
    "DataError",
    "DatasetKind",
    "PairDataset",
    "PairSample",
    "find_kind",
    "iterate",
    "open_dataset",
    "spread",
]

DATASETS: Mapping[str, DatasetKind] = MappingProxyType(
    {module.KIND.name: module.KIND for module in (simulated, pairs, dpd_blur, ddd_syn, rdpd, dpd_disp, pixel_dp)}
)
"""Every data set by name."""


def find_kind(name: str) -> DatasetKind:
    """The data set of a name; ``DataError`` where there is none."""
    if name not in DATASETS:
        raise DataError(f"expected a data set, one of {', '.join(DATASETS)}, got {name!r}")
    return DATASETS[name]


def open_dataset(name: str, folder: Path, split: str) -> PairDataset:
    """Opens a split of a data set; files are listed now, and decoded when a pair is asked for.

    Args:
        name: A name of ``DATASETS``.
        folder: Where it is, in the layout that its authors publish.
        split: One of the data set's splits.

    Raises:
        DataError: The name or the split is unknown, or the folder is not laid out as the data set is.
    """
    return open_kind(find_kind(name), folder, split)
