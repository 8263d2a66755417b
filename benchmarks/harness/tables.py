"""Markdown tables and numbers for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]], align: str | None = None) -> str:
    """A Markdown table; None becomes a dash.

    Args:
        header: Names of the columns.
        rows: One cell per column; texts and numbers that are formatted already.
        align: One letter per column, "l" or "r"; the first column left and the others right if None.

    Raises:
        ValueError: A row or ``align`` has another length than the header.
    """
    align = align or "l" + "r" * (len(header) - 1)
    if len(align) != len(header) or set(align) - {"l", "r"}:
        raise ValueError(f"expected {len(header)} letters of l and r, got {align!r}")

    def line(cells: Sequence[object]) -> str:
        if len(cells) != len(header):
            raise ValueError(f"expected {len(header)} cells, got {len(cells)}: {cells}")
        texts = ("–" if cell is None else str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
        return f"| {' | '.join(texts)} |"

    marks = ["---" if letter == "l" else "---:" for letter in align]
    return "\n".join([line(header), f"| {' | '.join(marks)} |", *map(line, rows)])


def significant(value: float | None, digits: int = 3) -> str | None:
    """A number with so many significant digits and no exponent: 0.0123, 1.23, 1234; None stays None."""
    if value is None or not math.isfinite(value):
        return None
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # after rounding: 9.999 has that of 10
    decimals = digits - 1 - exponent
    return f"{round(value, decimals):.{max(decimals, 0)}f}"


def signed(value: float, decimals: int) -> str:
    """A change with its sign; one that rounds to zero has none."""
    text = f"{value:+.{decimals}f}"
    return text if float(text) else f"{0:.{decimals}f}"


def size_text(shape: Sequence[int]) -> str:
    """Height and width as "1120x1680"."""
    return f"{shape[0]}x{shape[1]}"


def mebibytes(count: float | None) -> str | None:
    """Bytes as whole MiB; None stays None."""
    return None if count is None else f"{count / 2**20:.0f}"


def load_text(load_average: Mapping[str, float | None]) -> str:
    """Load averages in their order, such as "0.52 and 1.38"; None is "unknown"."""
    return " and ".join("unknown" if value is None else f"{value:.2f}" for value in load_average.values())


def megapixels(shape: Sequence[int]) -> float:
    """10^6 px of a height and width."""
    return shape[0] * shape[1] / 1e6
