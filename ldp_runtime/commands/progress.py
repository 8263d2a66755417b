"""A bar for work that takes a while, on a terminal alone."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

DELAY = 2.0
"""Seconds before a bar is shown."""


class ProgressBar:
    """A bar on stderr, shown once the work has taken ``DELAY`` seconds; a function of the share that is done."""

    def __init__(self, *, quiet: bool = False, name: str = "restoring") -> None:
        """Shows nothing yet; ``quiet`` keeps it so."""
        self._shown = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._name = name
        self._bar: Any = None

    def __enter__(self) -> ProgressBar:
        if self._shown:
            from tqdm import tqdm

            form = "{desc} {percentage:3.0f} %|{bar}| {elapsed}<{remaining}"
            self._bar = tqdm(total=1.0, desc=self._name, delay=DELAY, leave=False, bar_format=form, file=sys.stderr)
        return self

    def __call__(self, done: float) -> None:
        """Moves the bar to a share of the work, 0 to 1."""
        if self._bar is not None:
            self._bar.update(max(0.0, done - self._bar.n))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
