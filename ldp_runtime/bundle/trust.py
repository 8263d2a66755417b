"""Which engines this machine trusts: an engine is native code, and its hash in the bundle proves integrity, not origin.

There is one record per hash in the user's configuration, outside every bundle: a bundle cannot vouch for itself.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from ldp_runtime.errors import BackendError
from ldp_runtime.files import write_whole

ENV_CONFIG = "LDP_CONFIG"
_HEX = frozenset("0123456789abcdef")


def trust(sha256s: Iterable[str], reason: str) -> None:
    """Records files as trusted, by their hashes; earlier records stay.

    Args:
        sha256s: SHA-256 of each file, 64 hexadecimal digits in lower case.
        reason: Why, such as ``"built here"``; only people read it.

    Raises:
        BackendError: The record cannot be written.
        ValueError: A hash has another form.
    """
    hashes = [_checked(sha256) for sha256 in sha256s]
    folder = trust_folder()
    record = {"reason": reason, "since": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole({folder / sha256: (json.dumps(record) + "\n").encode() for sha256 in hashes})
    except OSError as error:
        raise BackendError(
            f"{folder}: the record of trusted engines cannot be written ({error.strerror}); "
            f"make it writable or set {ENV_CONFIG} to a folder of yours"
        ) from error


def is_trusted(sha256: str) -> bool:
    """Whether a file of this hash is trusted.

    Args:
        sha256: 64 hexadecimal digits in lower case.

    Raises:
        BackendError: Others can write to the record: it proves nothing.
        ValueError: A hash has another form.
    """
    folder = trust_folder()
    trusted = (folder / _checked(sha256)).is_file()
    if trusted and hasattr(os, "getuid"):
        status = folder.stat()
        if status.st_uid not in (0, os.getuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise BackendError(
                f"{folder}: expected a folder that only you can write to, got owner {status.st_uid} and mode "
                f"{stat.filemode(status.st_mode)}; fix that (chmod 700) or the record proves nothing"
            )
    return trusted


def trust_folder() -> Path:
    """The folder of the records: below ``$LDP_CONFIG``, else in the system's folder for user configuration.

    Raises:
        BackendError: The user has no home folder.
    """
    return _root() / "trusted-engines"


def _root() -> Path:
    if chosen := os.environ.get(ENV_CONFIG):
        return Path(chosen)
    try:
        if sys.platform == "win32":
            return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "ldp"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Application Support" / "ldp"
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "ldp"
    except RuntimeError as error:
        raise BackendError(
            f"there is no home folder to keep the record of trusted engines in; set {ENV_CONFIG} to a folder of yours"
        ) from error


def _checked(sha256: str) -> str:
    if len(sha256) != 64 or set(sha256) - _HEX:
        raise ValueError(f"expected a SHA-256 as 64 hexadecimal digits in lower case, got {sha256!r}")
    return sha256
