"""The report of a run: progress while it runs, failures and a summary at its end, the same as a JSON log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from ldp_runtime.batch.work import Done, Failure, Outcome
from ldp_runtime.errors import counted
from ldp_runtime.images.quality import Quality

LINE_SECONDS = 30.0
_SHOWN = 20


@dataclass
class Tally:
    """The outcomes so far.

    Attributes:
        pairs: How many pairs there are in all.
        skipped: How many were done before.
        restored: How many this run restored.
        failures: Those that failed.
        warnings: The warnings about restored pairs, each once.
        pixels: Pixels that this run restored.
        stages: Seconds by stage, summed over the pairs; stages overlap.
        ran: Backend and precision -> how many pairs they restored.
        quality: Output -> its quality, see ``quality.against_target``; of pairs with a target.
        begin: When the run began, by ``time.monotonic``.
    """

    pairs: int
    skipped: int
    restored: int = 0
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pixels: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    ran: dict[str, int] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    begin: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome) -> list[str]:
        """Counts an outcome; returns its new warnings."""
        if isinstance(outcome, Failure):
            self.failures.append(outcome)
            return []
        made = outcome.record.made
        self.restored += 1
        self.pixels += made["pixels"]
        ran = f"{made['backend']} {made['precision']}"
        self.ran[ran] = self.ran.get(ran, 0) + 1
        if "quality" in made:
            self.quality[outcome.record.name] = made["quality"]
        for stage, value in made["seconds"].items():
            self.stages[stage] = self.stages.get(stage, 0.0) + value
        new = [warning for warning in dict.fromkeys(outcome.warnings) if warning not in self.warnings]
        self.warnings += new
        return new

    @property
    def ended(self) -> int:
        """Pairs that are finished in this run, in whatever way."""
        return self.skipped + self.restored + len(self.failures)

    @property
    def seconds(self) -> float:
        """Wall time since the run began."""
        return time.monotonic() - self.begin

    @property
    def megapixels_per_second(self) -> float:
        """Throughput over the whole run."""
        return self.pixels / 1e6 / max(self.seconds, 1e-9)

    def summary(self) -> str:
        """The last line of a run."""
        return (
            f"{counted(self.pairs, 'pair')}: {self.restored} restored, {self.skipped} skipped, {len(self.failures)} "
            f"failed; {self.pixels / 1e6:.1f} megapixels in {self.seconds:.1f} s, "
            f"{self.megapixels_per_second:.2f} Mpx/s"
        )

    def fields(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "pairs": self.pairs,
            "restored": self.restored,
            "skipped": self.skipped,
            "failed": len(self.failures),
            "left": self.pairs - self.ended,
            "megapixels": round(self.pixels / 1e6, 6),
            "seconds": round(self.seconds, 3),
            "ran": self.ran,
            "stages": {name: round(value, 3) for name, value in self.stages.items()},
            "warnings": self.warnings,
            "failures": [structs.asdict(failure) for failure in self.failures],
            **({"quality": dict(sorted(self.quality.items()))} if self.quality else {}),
        }


def failure_lines(failures: Sequence[Failure]) -> list[str]:
    """The first failures, a line each."""
    lines = [f"failed: {failure.name}: {failure.error}" for failure in failures[:_SHOWN]]
    if len(failures) > _SHOWN:
        lines.append(f"failed: {len(failures) - _SHOWN} more, see the log")
    return lines


def quality_table(quality: Mapping[str, Quality]) -> list[str]:
    """PSNR in dB and SSIM of the center views and the restored images against their targets, and the means."""
    width = max(len("mean"), *map(len, quality))
    keys = [(image, value) for image in ("center_view", "restored") for value in ("psnr_db", "ssim")]
    lines = [f"{'':{width}}  {'center view':>17}  {'restored':>17}"]
    rows = {name: [each[image][value] for image, value in keys] for name, each in sorted(quality.items())}
    columns = [[value for value in column if value is not None] for column in zip(*rows.values(), strict=True)]
    rows["mean"] = [sum(column) / len(column) if column else None for column in columns]
    for name, values in rows.items():
        cells = [
            f"{'equal' if psnr is None else f'{psnr:.2f} dB':>9}  {'-' if ssim is None else f'{ssim:.4f}':>6}"
            for psnr, ssim in (values[:2], values[2:])
        ]
        lines.append(f"{name:{width}}  {'  '.join(cells)}")
    return lines


class Progress:
    """Shows a tally on stderr: a bar on a terminal, elsewhere a line every ``LINE_SECONDS``."""

    def __init__(self, tally: Tally, *, quiet: bool) -> None:
        """Starts the bar; ``quiet`` shows warnings alone."""
        from tqdm import tqdm

        self._tally = tally
        self._terminal = sys.stderr.isatty() and not quiet
        self._lines = not self._terminal and not quiet
        self._next = time.monotonic() + LINE_SECONDS
        self._bar = tqdm(
            total=tally.pairs, initial=tally.skipped, unit="pair", disable=not self._terminal, dynamic_ncols=True
        )

    def add(self, outcome: Outcome) -> None:
        """Counts an outcome and shows it."""
        for warning in self._tally.add(outcome):
            self.say(f"ldp: warning: {warning}")
        if isinstance(outcome, Done):
            self._bar.set_postfix_str(f"{self._tally.megapixels_per_second:.2f} Mpx/s", refresh=False)
        self._bar.update()
        if self._lines and time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_SECONDS
            self.say(self._line())

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()

    def _line(self) -> str:
        tally = self._tally
        now = tally.ended - tally.skipped
        left = round((tally.pairs - tally.ended) * tally.seconds / max(now, 1))
        return (
            f"{tally.ended}/{counted(tally.pairs, 'pair')}, {len(tally.failures)} failed, "
            f"{tally.megapixels_per_second:.2f} Mpx/s, about {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        )
