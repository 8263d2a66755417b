"""The user's cache folder: what can be made again, keyed by content."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ENV_CACHE = "LDP_CACHE"


def cache_folder(*parts: str) -> Path | None:
    """Makes a folder under LDP's cache: ``$LDP_CACHE``, else the system's usual place for the user.

    Args:
        parts: Folder names below the cache's root.

    Returns:
        The folder, readable by the user alone; None where it cannot be made or written, so go on without.
    """
    try:
        folder = _root().joinpath(*parts)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home folder
        return None
    return folder if os.access(folder, os.W_OK) else None


def _root() -> Path:
    if chosen := os.environ.get(ENV_CACHE):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "ldp"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ldp"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ldp"
