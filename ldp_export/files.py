"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldp_runtime.errors import LDPError
from ldp_runtime.files import abandoned, cannot_write, claimed_folder, is_disk_error, write_whole

_FOLDER_ERRORS = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


class WriteError(LDPError):
    """A file or folder cannot be written."""


@contextmanager
def staged_folder(folder: Path, last: str) -> Iterator[Path]:
    """A temporary folder beside ``folder``, whose files go there when the block ends without an error.

    A folder that did not exist appears whole, in one step. In one that did, files of other names stay, and the file
    ``last``, which makes the folder valid, is taken away first and put back last. A process that is killed on the way
    leaves all that is new in ``.NAME.new`` beside it, and ``finish_staged`` ends its work.

    Raises:
        WriteError: The folder cannot be made or written, or the disk is full.
    """
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        finish_staged(folder, last)
        with claimed_folder(folder) as staged:
            yield staged
            _publish(staged, folder, last)
    except OSError as error:
        if not (is_disk_error(error) or isinstance(error, _FOLDER_ERRORS)):
            raise
        raise WriteError(cannot_write(folder, error)) from error


def finish_staged(folder: Path, last: str) -> None:
    """Ends what a ``staged_folder`` that was killed had begun; does nothing where there is nothing to end.

    Raises:
        OSError: The folder cannot be written.
    """
    ready = _ready(folder.absolute())
    if ready.is_dir():
        with abandoned(ready) as left_over:
            if left_over:
                _move_in(ready, folder.absolute(), last)


def _publish(staged: Path, folder: Path, last: str) -> None:
    if not folder.exists():
        os.rename(staged, folder)
        return
    os.rename(staged, _ready(folder))  # from here on a kill loses nothing
    _move_in(_ready(folder), folder, last)


def _ready(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.new")


def _move_in(ready: Path, folder: Path, last: str) -> None:
    files = sorted(ready.iterdir(), key=lambda path: path.name == last)
    if files:
        (folder / last).unlink(missing_ok=True)
    for path in files:
        os.replace(path, folder / path.name)
    ready.rmdir()


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step.

    Raises:
        WriteError: It cannot be written.
    """
    try:
        write_whole({path: text.encode()})
    except OSError as error:
        raise WriteError(cannot_write(path, error)) from error
