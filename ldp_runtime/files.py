"""Writing files so that a failure, a kill, or two writers at once leave the old file or the new one, each whole.

What is written goes to ``.NAME.N.tmp`` in the same folder, is flushed to the disk, and is renamed when it is complete.
A writer holds a lock on its temporary file for as long as it lives. So a file that a killed process left behind is told
from one in use, and the next writer of that name takes it over: a name never has more temporary files than it had
writers at the same time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl

    _LOCKS = True
except ImportError:  # Windows has no such locks: what a killed process leaves there stays
    _LOCKS = False

_LONGEST_NAME = 200
"""Bytes of a file's name that its temporary name can hold; file systems take 255."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISK = (*_FULL, errno.EROFS, errno.EIO)


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Writes several files: all to temporary names first, then all put in place.

    Args:
        contents: Path -> content. Existing files are replaced; their folders exist.

    Raises:
        OSError: A file cannot be written; its ``filename`` says which. No temporary file stays behind.
    """
    with ExitStack() as stack:
        pending = [(stack.enter_context(_Temporary.of(path)), content) for path, content in contents.items()]
        for temporary, content in pending:
            with _naming(temporary.target):
                temporary.file.write(content)
                temporary.complete()
        for temporary, _ in pending:
            with _naming(temporary.target):
                temporary.publish()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` when the block ends without an error.

    Raises:
        OSError: It cannot be written; its ``filename`` says which. No temporary file stays behind.
    """
    with _Temporary.of(path) as temporary, _naming(path):
        yield temporary.file
        temporary.complete()
        temporary.publish()


def check_can_write(path: Path) -> None:
    """Tries, before a long computation, whether a file can be written at ``path``; nothing is left there.

    Raises:
        OSError: It cannot.
    """
    with _Temporary.of(path):
        pass


@contextmanager
def claimed_folder(target: Path) -> Iterator[Path]:
    """An empty temporary folder beside ``target``, which the caller may rename; gone when the block ends.

    One that a killed process left behind is emptied and taken over.

    Raises:
        OSError: It cannot be made.
    """
    with ExitStack() as stack:
        path, handle = _claim(target, folder=True)
        if handle is not None:
            stack.callback(os.close, handle)
        stack.callback(_remove_folder, path)
        for child in path.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()
        yield path


@contextmanager
def abandoned(folder: Path) -> Iterator[bool]:
    """Whether a folder is there that no living process has claimed; within the block nobody else claims it.

    Args:
        folder: One that ``claimed_folder`` made, under whatever name it has now.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        yield _lock(handle) is True and _is_at(handle, folder)
    finally:
        os.close(handle)


def is_disk_error(error: BaseException) -> bool:
    """Whether an error tells of the disk (full, read-only, failing) and not of a mistake in the code.

    Libraries do not always hand on the system's error: numpy counts what it could not write.
    """
    if not isinstance(error, OSError):
        return False
    return error.errno in _DISK or (error.errno is None and " requested and " in str(error))


def cannot_write(path: Path | str, error: BaseException) -> str:
    """The message about a file or folder that cannot be written: what was given, and the fix."""
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number is not None else " ".join(str(error).split())
    full = number in _FULL or (number is None and is_disk_error(error))
    fix = "free some space or choose another folder" if full else "choose another folder"
    return f"{path} cannot be written: {reason}; {fix}"


def temporary_stem(name: str) -> str:
    """What stands for a file's name in ``.NAME.N.tmp``: the name, or a hash where it is too long."""
    if len(os.fsencode(name)) > _LONGEST_NAME:
        return hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return name


def _remove_folder(path: Path) -> None:
    try:
        shutil.rmtree(path, ignore_errors=True)
    except KeyboardInterrupt:  # it came just here: once more
        shutil.rmtree(path, ignore_errors=True)
        raise


class _Temporary:
    """A temporary file of this process."""

    def __init__(self, target: Path, path: Path, handle: int) -> None:
        self.target, self._path = target, path
        self.file = os.fdopen(handle, "wb")
        self._there = True

    @classmethod
    def of(cls, target: Path) -> _Temporary:
        with _naming(target):
            path, handle = _claim(target, folder=False)
            assert handle is not None  # only folders go without
            return cls(target, path, handle)

    def complete(self) -> None:
        """Brings what was written to the disk, which is where it may turn out to be full."""
        self.file.flush()
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system has no such thing
                raise

    def publish(self) -> None:
        if not _LOCKS:
            self.file.close()  # Windows does not rename open files
        os.replace(self._path, self.target)  # elsewhere the lock outlives the name
        self._there = False

    def __enter__(self) -> _Temporary:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._remove()
        except KeyboardInterrupt:  # it came just here: once more
            self._remove()
            raise

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            if self._there:
                self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what is still in the buffer has nowhere to go
            self.file.close()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives errors the name of the file that the user knows."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _claim(target: Path, *, folder: bool) -> tuple[Path, int | None]:
    """Makes or takes over a temporary file or folder; returns it with the handle that holds its lock."""
    name = temporary_stem(target.name)
    for n in itertools.count():
        path = target.with_name(f".{name}.{n}.tmp")
        while True:
            try:
                fresh, handle = _open(path, folder)
            except OSError:
                if os.path.lexists(path):  # of somebody else, or of another kind
                    break
                raise
            locked = _lock(handle) if handle is not None else None
            if locked is None and fresh:
                return path, handle
            if locked and handle is not None and _is_at(handle, path):
                if not folder:
                    os.ftruncate(handle, 0)
                return path, handle
            if handle is not None:
                os.close(handle)
            if not locked:  # in use, or nobody can tell
                break
            # It was renamed or removed before the lock was ours: once more.
    raise AssertionError("unreachable")


def _open(path: Path, folder: bool) -> tuple[bool, int | None]:
    """Opens a temporary file or folder; tells whether it is new. No handle: the system opens no folders."""
    fresh = True
    if folder:
        try:
            path.mkdir()
        except FileExistsError:
            fresh = False
        try:
            return fresh, os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except PermissionError:
            if not _LOCKS:
                return fresh, None
            raise
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        return True, os.open(path, flags | os.O_EXCL, 0o666)
    except FileExistsError:
        return False, os.open(path, flags, 0o666)


def _lock(handle: int) -> bool | None:
    """Locks a file for as long as its handle is open; False: another has it; None: there are no locks here."""
    if not _LOCKS:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    opened = os.fstat(handle)
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)
