"""Scores of a split of a data set: of each image, of all, and as tables beside what the paper prints for them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldp_export.evaluation.paper import OURS, SUBSET_COLUMNS, load
from ldp_runtime.errors import counted

RESTORATION = ("psnr", "ssim", "mae", "mse_rel")
PHOTOGRAPH = ("matched_psnr", "aligned_psnr", "registered_psnr", "sharpness")
BLUR = ("blur_map_accuracy", "blur_map_balanced_accuracy", "ai1", "ai2", "rank_disagreement")
CENTER = tuple(f"center_{name}" for name in (*RESTORATION, *PHOTOGRAPH))
GAINS = tuple(f"{name}_gain" for name in ("psnr", *PHOTOGRAPH[:3]))
COLUMNS = (*CENTER, *RESTORATION, *PHOTOGRAPH, *GAINS, *BLUR)
"""Columns of the table of images, ``center_`` being the scores of the center view, which is what there was before, and
``_gain`` what the model's are above them."""

HEADINGS = {
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "mae": "MAE",
    "mse_rel": "MSE_rel",
    "matched_psnr": "matched PSNR, dB",
    "aligned_psnr": "aligned PSNR, dB",
    "registered_psnr": "registered PSNR, dB",
    "sharpness": "sharpness, % per px",
    "blur_map_accuracy": "blur map accuracy",
    "blur_map_balanced_accuracy": "balanced accuracy",
    "ai1": "AI(1)",
    "ai2": "AI(2)",
    "rank_disagreement": "1 - abs(rho_s)",
}
EQUAL_PSNR = 100.0
"""What equal images count in a mean of PSNR, in dB: the convention of DPDNet's and Restormer's evaluations."""

WHOLE = ""
"""The name of the whole split among its subsets."""

_PAPER_TABLES = {"dpd-blur": "table1", "ddd-syn": "table2", "rdpd": "table3", "dpd-disp": "discussion"}


@dataclass(frozen=True)
class Score:
    """The scores of a pair.

    Attributes:
        name: The pair's name.
        values: Column of ``COLUMNS`` -> score; without what the data set has no truth for.
        pixels: How many pixels are blurred and found so, are blurred, are sharp and found so, are sharp; zeros where
            nothing is known of the blur.
    """

    name: str
    values: Mapping[str, float]
    pixels: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper: who it is of, where it stands, and its figures by column of ``COLUMNS``."""

    label: str
    source: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Report:
    """The outcome on one split of a data set.

    Attributes:
        model: Name of the model.
        backend: What ran it.
        precision: Its arithmetic.
        dataset: Name of the data set.
        split: Its split.
        scores: One per pair, in the order of the data set.
        subsets: Named parts of the split.
    """

    model: str
    backend: str
    precision: str
    dataset: str
    split: str
    scores: tuple[Score, ...]
    subsets: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """Begins the names of the report's files."""
        return f"{self.dataset}-{self.split}"

    def groups(self) -> dict[str, tuple[Score, ...]]:
        """The scores of the whole split, ``WHOLE``, and of each subset that has any."""
        parts = {
            name: tuple(score for score in self.scores if score.name in members)
            for name, members in self.subsets.items()
        }
        return {WHOLE: self.scores, **{name: scores for name, scores in parts.items() if scores}}

    def summary(self) -> dict[str, dict[str, float]]:
        """Group -> column -> figure; see ``summarise``."""
        return {name: summarise(scores) for name, scores in self.groups().items()}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; figures that are not finite are null."""
        return {
            "model": self.model,
            "backend": self.backend,
            "precision": self.precision,
            "data": self.dataset,
            "split": self.split,
            "groups": {
                name or "all": {
                    "images": len(self.groups()[name]),
                    "figures": {column: _plain(value) for column, value in figures.items()},
                    "paper": [
                        {"label": row.label, "source": row.source, "figures": dict(row.values)}
                        for row in paper_rows(self.dataset, name)
                    ],
                }
                for name, figures in self.summary().items()
            },
            "notes": self._notes(),
        }

    def to_csv(self) -> str:
        """The scores of each pair, a row each; a cell is empty where there is no truth."""
        columns = [column for column in COLUMNS if any(column in score.values for score in self.scores)]
        named = [name for name in self.groups() if name != WHOLE]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["name", *(["subset"] if named else []), *columns])
        for score in self.scores:
            subset = [" ".join(name for name in named if score.name in self.subsets[name])] if named else []
            cells = [f"{score.values[column]:.6g}" if column in score.values else "" for column in columns]
            writer.writerow([score.name, *subset, *cells])
        return text.getvalue()

    def to_markdown(self) -> str:
        """The summary for people, with the paper's figures under it."""
        lines = [
            f"# {self.model} on {self.dataset}, {self.split}",
            "",
            f"{counted(len(self.scores), 'pair')}; {self.backend}, {self.precision}. "
            "The center view is the mean of both views.",
        ]
        for name, figures in self.summary().items():
            columns = [column for column in HEADINGS if column in figures]
            lines += [
                "",
                f"## {name or 'All'}: {counted(len(self.groups()[name]), 'pair')}",
                "",
                "| | " + " | ".join(HEADINGS[column] for column in columns) + " |",
                "| --- |" + " ---: |" * len(columns),
            ]
            if any(column in figures for column in CENTER):
                center = {column: figures[f"center_{column}"] for column in columns if f"center_{column}" in figures}
                lines.append(_table_row("center view", center, columns))
            lines.append(_table_row(f"**{self.model}**", figures, columns))
            gains = {column: figures[f"{column}_gain"] for column in columns if f"{column}_gain" in figures}
            if gains:
                cells = [f"{gains[column]:+.2f}" if column in gains else "" for column in columns]
                lines.append(f"| gain | {' | '.join(cells)} |")
            for row in paper_rows(self.dataset, name):
                lines.append(_table_row(f"paper, {row.label} ({row.source})", row.values, columns))
        return "\n".join([*lines, "", *(f"- {note}" for note in self._notes())]) + "\n"

    def _notes(self) -> list[str]:
        """What the columns mean that there are."""
        columns = {column for score in self.scores for column in score.values}
        return [note for column, note in _NOTES.items() if column in columns]


_NOTES = {
    "psnr": "PSNR, SSIM and MAE are means over images, in which equal images count 100 dB; SSIM is scikit-image's with "
    "its defaults, over three channels.",
    "mse_rel": "MSE_rel is 10^(-PSNR/20) of the mean PSNR, as in the paper's tables.",
    "matched_psnr": "Matched PSNR takes the low frequencies (Gaussian, sigma 20 px) from the target, so that light and "
    "vignetting cancel.",
    "aligned_psnr": "Aligned PSNR lets each block of 64 px shift by up to 3 px along x and 1 px along y.",
    "registered_psnr": "Registered PSNR compares with the target as an affine map brings it to the restored image.",
    "sharpness": "Sharpness is the root mean square of the luminance's gradient, after a Gaussian of 1 px, in percent "
    "of the peak per px; noise and false texture raise it too. Grey pairs are scored on the mean of the channels.",
    "blur_map_accuracy": "Blur map: a pixel is blurred where |DP disparity| > 1 px. Accuracy is a mean over images; "
    "balanced accuracy is over all their pixels.",
    "ai1": "AI(1), AI(2) and 1 - |rho_s| compare the logits of the blur map with |DP disparity|, in its unit; means "
    "over the images in which it varies.",
}
"""Column -> what it and those beside it mean."""


def summarise(scores: Sequence[Score]) -> dict[str, float]:
    """Means over images of each column, over the images that have it; a PSNR counts ``EQUAL_PSNR`` at most.

    But ``mse_rel`` is ``10^(-PSNR / 20)`` of the mean PSNR, which is what the paper's tables print, and the balanced
    accuracy is that of the pixels of all images together: an image alone may be sharp, or blurred, everywhere.
    """
    figures: dict[str, float] = {}
    for column in COLUMNS:
        values = [score.values[column] for score in scores if column in score.values]
        if column == "blur_map_balanced_accuracy":
            hit, blurred, kept, sharp = (sum(counts) for counts in zip(*(s.pixels for s in scores), strict=True))
            if blurred and sharp:
                figures[column] = (hit / blurred + kept / sharp) / 2
        elif column.endswith("mse_rel") and values:
            figures[column] = 10 ** (-figures[column.replace("mse_rel", "psnr")] / 20)
        elif values:
            limit = EQUAL_PSNR if column.endswith("psnr") else math.inf
            figures[column] = math.fsum(min(value, limit) for value in values) / len(values)
    return figures


def paper_rows(dataset: str, subset: str = WHOLE) -> list[PaperRow]:
    """What the paper prints of its own models for a data set or a part of it; empty where it prints nothing."""
    table_name = _PAPER_TABLES.get(dataset)
    if table_name is None:
        return []
    if table_name == "discussion":
        values = load(table_name).find("Ours").values
        return [PaperRow("Ours", "Section 4.3", dict(values))] if subset == WHOLE else []
    source = f"Table {table_name[-1]}"
    if table_name != "table1":
        return [PaperRow(label, source, dict(load(table_name).find(label).values)) for label in OURS]
    heading = SUBSET_COLUMNS[subset]
    if subset != WHOLE:
        source += f', headed "{heading.capitalize()}" there by mistake'
    return [
        PaperRow(
            label, source, {name: load(table_name).find(label).values[f"{heading}_{name}"] for name in RESTORATION}
        )
        for label in OURS
    ]


def _plain(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _table_row(label: str, figures: Mapping[str, float], columns: Sequence[str]) -> str:
    cells = [_shown(figures[column], column) if column in figures else "" for column in columns]
    return f"| {label} | " + " | ".join(cells) + " |"


def _shown(value: float, column: str) -> str:
    return f"{value:.2f}" if column.endswith("psnr") else f"{value:.4f}"
