"""What several commands share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ldp_runtime.errors import LDPError
from ldp_runtime.files import cannot_write

if TYPE_CHECKING:
    import numpy as np

    from ldp_export.simulation.optics import FloatArray

WINDOW_HELP = "side of CLIP's windows (default: the checkpoint's, or 224)"

T = TypeVar("T")


class ArgumentError(LDPError):
    """Options that do not fit together."""


def write_pair(
    folder: Path,
    left: np.ndarray,
    right: np.ndarray,
    target: np.ndarray,
    coc: FloatArray,
    record_name: str,
    record: dict[str, Any],
) -> None:
    import numpy as np

    from ldp_runtime.files import staged_folder
    from ldp_runtime.images.photo import write_pixels

    with staged_folder(folder, last=record_name) as staged:
        for name, pixels in (("left", left), ("right", right), ("target", target)):
            write_pixels(staged / f"{name}.png", pixels)
        np.save(staged / "coc.npy", coc)
        (staged / record_name).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def print_gates(parity: Mapping[str, Any]) -> None:
    """Prints the parity figures of a manifest, a line per gate."""
    for gate in parity.get("gates", ()):
        value = "not finite" if gate["value"] is None else f"{gate['value']:.5g}"
        failed = "" if gate["passed"] else ", failed"
        print(f"{gate['name']:44}{value:14}{gate['is']} {gate['limit']:g}{failed}")


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it; raises ``ArgumentError``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"{folder} cannot be made: {error.strerror or error}; choose another folder") from error


def check_folder(folder: Path, marker: str) -> None:
    """Refuses, before anything is computed, a folder that cannot be written or that holds something else.

    What a killed run had nearly put there is put there first.

    Raises:
        ArgumentError: It is a file, it lacks the file ``marker`` and holds more than notes (.md), or is not writable.
    """
    from ldp_runtime.files import finish_staged

    existing = folder.absolute()
    try:
        finish_staged(existing, marker)
    except OSError as error:
        raise ArgumentError(cannot_write(folder, error)) from error
    holds_more = existing.is_dir() and any(path.suffix != ".md" for path in existing.iterdir())
    if holds_more and not (existing / marker).is_file():
        raise ArgumentError(f"expected a new folder, an empty one or one with {marker}, got {folder}; choose another")
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ArgumentError(f"{folder} cannot be written: {existing} is no folder to write to; choose another")


def say(line: str) -> None:
    print(line, file=sys.stderr)


@contextmanager
def step_bar(total: int) -> Iterator[Callable[[str], None]]:
    """Says what step a long command is at: in a bar on a terminal, else in a line of stderr for each.

    Args:
        total: How many steps there are.

    Yields:
        What takes the name of each step as it begins.
    """
    if not sys.stderr.isatty():
        yield say
        return
    from tqdm import tqdm

    form = "{desc}, step {n_fmt} of {total_fmt} |{bar}| {elapsed}"
    with tqdm(total=total, leave=False, bar_format=form, miniters=0, mininterval=0) as bar:

        def begin(name: str) -> None:
            bar.set_description_str(name, refresh=False)
            bar.update()

        yield begin


class Progress:
    """A progress bar on stderr around any iterable, where somebody can see it."""

    def __init__(self, unit: str, total: int | None = None) -> None:
        self._unit, self._total = unit, total

    def __call__(self, items: Iterable[T]) -> Iterator[T]:
        from tqdm import tqdm

        return iter(tqdm(items, total=self._total, unit=f" {self._unit}", disable=None, leave=False))
