"""The paper's figures as data: Tables 1 to 7 and what its text states, as printed, one CSV file each.

What the figures themselves show, and ``tests/ldp_export/evaluation/test_paper.py`` checks:

* MSE_rel is ``10^(-PSNR / 20)`` of the printed mean PSNR, that is the root of a mean squared error, but in five rows.
* Table 1's headings *Outdoor* and *Indoor* are exchanged. With 37 indoor and 39 outdoor scenes the printed averages
  come out within 0.013 dB for all twelve methods if the columns headed *Outdoor* are the 37 indoor scenes, and miss by
  0.11 dB and more as they are headed. The files keep the printed headings; ``SUBSET_COLUMNS`` gives the right ones.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent

OURS = ("Ours (Small)", "Ours (Large)")
"""The paper's own models, as its tables name them."""

SUBSET_COLUMNS = {"indoor": "outdoor", "outdoor": "indoor", "": "average"}
"""A subset of DPD-blur's test set -> the heading in Table 1 whose columns hold its figures; "" is the whole set."""

INFERENCE_DEVICE = "RTX 4090"
"""What the times of ``inference.csv`` were taken on (Section 4.1). The paper names no image size or precision there."""

_FILES = (*(f"table{number}" for number in range(1, 8)), "discussion", "inference")
_TEXT_COLUMNS = ("method", "prompt", "setting", "bpa", "loss", "blur_aware", "dp_aware")


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        labels: What names it, by column: ``{"method": "K3DN"}``. All of Table 4 is labels: it holds no figures.
        values: Its figures by column: PSNR in dB (``psnr``), ``ssim``, ``mae`` and ``mse_rel`` as shares of the peak.
    """

    labels: Mapping[str, str]
    values: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        rows: Its rows in print order.
    """

    rows: tuple[Row, ...]

    def find(self, *labels: str) -> Row:
        """The row of these labels, in the order of the columns.

        Raises:
            KeyError: There is none.
        """
        for row in self.rows:
            if tuple(row.labels.values()) == labels:
                return row
        raise KeyError(f"expected a row of {[tuple(row.labels.values()) for row in self.rows]}, got {labels}")


def load_table(number: int) -> Table:
    """Reads a table of the paper.

    Args:
        number: 1 to 7.

    Raises:
        ValueError: There is no such table, or its file is damaged.
    """
    if not 1 <= number <= 7:
        raise ValueError(f"expected a table from 1 to 7, got {number}")
    return load(f"table{number}")


def load(name: str) -> Table:
    """Reads "table1" to "table7", "discussion" or "inference"; ``ValueError`` for others or a damaged file."""
    if name not in _FILES:
        raise ValueError(f"expected one of {', '.join(_FILES)}, got {name!r}")
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        columns = next(reader)
        return Table(tuple(_row(columns, cells, f"{name}.csv:{reader.line_num}") for cells in reader))


def _row(columns: list[str], cells: list[str], where: str) -> Row:
    if len(cells) != len(columns):
        raise ValueError(f"{where}: expected {len(columns)} cells, got {len(cells)}")
    fields = dict(zip(columns, cells, strict=True))
    return Row(
        {column: cell for column, cell in fields.items() if column in _TEXT_COLUMNS},
        {column: float(cell) for column, cell in fields.items() if column not in _TEXT_COLUMNS},
    )
