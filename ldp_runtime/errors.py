"""Errors that are meant for the user.

Each message is one line, "expected X, got Y; fix". The command line prints it as ``ldp: error: ...`` and exits with
code 2; a traceback is only for bugs.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

_LISTED = 5


class LDPError(Exception):
    """Base of every error that a user can fix."""


class ImageError(LDPError):
    """An image cannot be read, encoded or used: wrong shape, depth, size or format."""


class WriteError(LDPError):
    """A file or folder cannot be written."""


class BundleError(LDPError):
    """A bundle is missing, damaged, or of a schema this version does not know."""


class BackendError(LDPError):
    """A backend or precision is not available here, or it refused a graph or its feeds."""


class NumericsError(LDPError):
    """A computation gave NaN or Inf, so there is no image to return."""


def one_line(error: BaseException) -> str:
    """An exception as one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def counted(count: int, thing: str) -> str:
    """A number of things, such as "1 pair" or "2 pairs"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def listed(things: Collection[object]) -> str:
    """The first few of some things, and how many more there are."""
    more = f" and {len(things) - _LISTED} more" if len(things) > _LISTED else ""
    return ", ".join(map(str, islice(things, _LISTED))) + more
