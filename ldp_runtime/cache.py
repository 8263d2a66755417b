"""The user's cache folder: files that can be made again, keyed by content."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ENV_CACHE = "LDP_CACHE"
_SEAL = ".sha256"


def cache_folder(*parts: str) -> Path | None:
    """Makes a folder under LDP's cache: ``$LDP_CACHE``, else the system's usual place for the user.

    Its files are executed: compiled graphs and kernels. So a folder that others can write to is not used.

    Args:
        parts: Folder names below the cache's root.

    Returns:
        The folder, readable by the user alone; None where it cannot be made or written, or others could write to it or
        replace it: then there is no cache.
    """
    try:
        folder = _root()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _open_to_all(folder):
            return None
        for part in parts:
            folder /= part
            folder.mkdir(mode=0o700, exist_ok=True)
            if not _made_ours(folder):
                return None
    except (OSError, RuntimeError):  # RuntimeError: the user has no home folder
        return None
    return folder if os.access(folder, os.W_OK) else None


@contextmanager
def sealed(folder: Path | None) -> Iterator[None]:
    """Guards the files of a library in a cache folder: damaged ones are removed before, new ones get a hash after.

    A library that trusts its own cache may crash on a file in which a bit has flipped.

    Args:
        folder: From ``cache_folder``; with None nothing is done.
    """
    if folder is None:
        yield
        return
    for file in _files(folder):
        with suppress(OSError):
            if _seal(file).read_text(encoding="ascii", errors="replace") != _hash(file):
                raise FileNotFoundError
            continue
        _seal(file).unlink(missing_ok=True)
        file.unlink(missing_ok=True)
    yield
    for file in _files(folder):
        with suppress(OSError):
            if not (seal := _seal(file)).exists():
                temporary = seal.with_name(f"{seal.name}.{os.getpid()}{_SEAL}")
                temporary.write_text(_hash(file), encoding="ascii")
                os.replace(temporary, seal)


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.is_file() and file.suffix != _SEAL]


def _seal(file: Path) -> Path:
    return file.with_name(file.name + _SEAL)


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _open_to_all(root: Path) -> bool:
    """Whether other users can replace the files of a folder; the sticky bit prevents it."""
    mode = root.stat().st_mode
    return hasattr(os, "getuid") and bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def _made_ours(folder: Path) -> bool:
    """Whether a folder below the root is the user's own, or root's; removes the others' right to write to it."""
    if not hasattr(os, "getuid"):
        return True
    status = folder.stat(follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (0, os.getuid()):
        return False
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        folder.chmod(stat.S_IMODE(status.st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))
    return True


def _root() -> Path:
    if chosen := os.environ.get(ENV_CACHE):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "ldp"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ldp"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ldp"
