"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldp_runtime.errors import LDPError


class WriteError(LDPError):
    """A file or folder cannot be written."""


@contextmanager
def staged_folder(folder: Path, last: str) -> Iterator[Path]:
    """A temporary folder beside `folder`, whose files go there when the block ends without an error.

    A folder that did not exist appears whole, in one step. In one that did, files of other names stay, and the file
    `last`, which makes the folder valid, is taken away first and put back last.

    Raises:
        WriteError: The folder cannot be made or written.
    """
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        staged.chmod(0o755)
    except OSError as error:
        raise WriteError(f"{folder} cannot be written: {error.strerror or error}; choose another") from error
    try:
        yield staged
        try:
            _publish(staged, folder, last)
        except OSError as error:
            raise WriteError(f"{folder} cannot be written: {error.strerror or error}; choose another") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _publish(staged: Path, folder: Path, last: str) -> None:
    if not folder.exists():
        os.rename(staged, folder)
        return
    (folder / last).unlink(missing_ok=True)
    files = sorted((path for path in staged.iterdir()), key=lambda path: path.name == last)
    for path in files:
        os.replace(path, folder / path.name)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step.

    Raises:
        WriteError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}; choose another") from error
    finally:
        temporary.unlink(missing_ok=True)
