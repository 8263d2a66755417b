"""Writing files so that a failure, a kill, or two writers at once leave the old file or the new one, each whole.

New content goes to ``.NAME.N.tmp`` in the same folder, is flushed to the disk, and is renamed when it is complete.
A writer holds a lock on its temporary file until it ends. The lock distinguishes a file in use from one that a killed
process left behind, which the next writer of that name reuses: a name never has more temporary files than it had
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
from typing import BinaryIO, TypeGuard

from ldp_runtime.errors import WriteError

try:
    import fcntl

    _LOCKS = True
except ImportError:  # Windows has no such locks: files of a killed process stay there
    _LOCKS = False

_LONGEST_NAME = 200
"""Bytes of a file's name that its temporary name can hold; file systems take 255."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISK = (*_FULL, errno.EROFS, errno.EIO)
_FOLDER_ERRORS = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Writes several files: all to temporary names first, then all put in place.

    Args:
        contents: Path -> content. Existing files are replaced; their folders exist.

    Raises:
        OSError: A file cannot be written; its ``filename`` says which. No temporary file stays behind.
    """
    with ExitStack() as stack:
        pending = [(stack.enter_context(_Temporary.create(path)), content) for path, content in contents.items()]
        for temporary, content in pending:
            with _naming(temporary.target):
                temporary.file.write(content)
                temporary.complete()
        for temporary, _ in pending:
            with _naming(temporary.target):
                temporary.publish()


def write_files(contents: Mapping[Path, bytes] | Mapping[str, bytes]) -> None:
    """As ``write_whole``, through links, for what a user names.

    Raises:
        WriteError: A file cannot be written; its cause is the OSError.
    """
    try:
        write_whole({Path(os.path.realpath(name)): content for name, content in contents.items()})
    except OSError as error:
        raise WriteError(cannot_write(error.filename or "the file", error)) from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which replaces ``path`` when the block ends without an error.

    Raises:
        OSError: It cannot be written; its ``filename`` says which. No temporary file stays behind.
    """
    with _Temporary.create(path) as temporary, _naming(path):
        yield temporary.file
        temporary.complete()
        temporary.publish()


def check_writable(path: str | os.PathLike[str]) -> None:
    """Checks, before a long computation, that a file can be written at ``path``; nothing is left there.

    Raises:
        WriteError: The folder is missing or cannot be written, or ``path`` is a folder.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise WriteError(f"{path} is a folder; give a file name in it")
    if not target.parent.is_dir():
        raise WriteError(f"{path} cannot be written: the folder {target.parent} does not exist; make it first")
    try:
        with _Temporary.create(target):
            pass
    except OSError as error:
        raise WriteError(cannot_write(os.fspath(path), error)) from error


@contextmanager
def claimed_folder(target: Path) -> Iterator[Path]:
    """An empty temporary folder beside ``target``, which the caller may rename; gone when the block ends.

    One that a killed process left behind is emptied and reused.

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
    """Whether a folder exists that no living process has claimed; within the block no other process can claim it.

    Args:
        folder: One that ``claimed_folder`` made, under whatever name.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError:
        yield False
        return
    try:
        yield lock_file(handle) is True and _is_at(handle, folder)
    finally:
        os.close(handle)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Waits until no other ``locked_folder`` of this folder is open, where the system has locks of folders.

    Args:
        folder: Not one of ``claimed_folder``, which is locked already.
    """
    with ExitStack() as stack:
        with contextlib.suppress(OSError):  # Windows opens no folders
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def staged_folder(folder: Path, last: str) -> Iterator[Path]:
    """A temporary folder beside ``folder``, whose files go there when the block ends without an error.

    A folder that did not exist appears whole, in one step. In one that did, files of other names stay, and the file
    ``last``, which makes the folder valid, is removed first and put back last. A process that is killed in between
    leaves all new files in ``.NAME.new`` beside it, and ``finish_staged`` completes its work.

    Raises:
        WriteError: The folder cannot be made or written, or the disk is full.
    """
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        finish_staged(folder, last)
        with claimed_folder(folder) as staged:
            yield staged
            if folder.exists():
                os.rename(staged, _ready(folder))  # from here on a kill loses nothing
                _move_in(folder, last)
            else:
                os.rename(staged, folder)
    except OSError as error:
        if not (is_disk_error(error) or isinstance(error, _FOLDER_ERRORS)):
            raise
        raise WriteError(cannot_write(folder, error)) from error


def finish_staged(folder: Path, last: str) -> None:
    """Completes the work of a ``staged_folder`` that was killed; does nothing where there is none.

    Raises:
        OSError: The folder cannot be written.
    """
    with abandoned(_ready(folder.absolute())) as left_over:
        if left_over:
            _move_in(folder.absolute(), last)


def _ready(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.new")


def _move_in(folder: Path, last: str) -> None:
    ready = _ready(folder)
    files = sorted(ready.iterdir(), key=lambda path: path.name == last)
    if files:
        (folder / last).unlink(missing_ok=True)
    for path in files:
        os.replace(path, folder / path.name)
    ready.rmdir()


def is_disk_error(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error lies in the disk (full, read-only, failing) and not in the code.

    Libraries do not always pass the system's error on: numpy counts the items that it could not write.
    """
    if not isinstance(error, OSError):
        return False
    return error.errno in _DISK or (error.errno is None and " requested and " in str(error))


def cannot_write(path: Path | str, error: BaseException) -> str:
    """The message about a file or folder that cannot be written, with the fix."""
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number is not None else " ".join(str(error).split())
    full = number in _FULL or (number is None and is_disk_error(error))
    fix = "free some space or choose another folder" if full else "choose another folder"
    return f"{path} cannot be written: {reason}; {fix}"


def cannot_read(path: Path | str, error: OSError) -> str:
    """The message about a file or folder that cannot be read, with the fix."""
    return f"{path} cannot be read: {error.strerror or error}; check its name and rights"


def temporary_stem(name: str) -> str:
    """The NAME of a file in ``.NAME.N.tmp``: its name, or a hash where that is too long."""
    if len(os.fsencode(name)) > _LONGEST_NAME:
        return hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return name


def _remove_folder(path: Path) -> None:
    try:
        shutil.rmtree(path, ignore_errors=True)
    except KeyboardInterrupt:  # raised just here: once more
        shutil.rmtree(path, ignore_errors=True)
        raise


class _Temporary:
    """A temporary file of this process."""

    def __init__(self, target: Path, path: Path, handle: int) -> None:
        self.target, self._path = target, path
        self.file = os.fdopen(handle, "wb")
        self._pending = True

    @classmethod
    def create(cls, target: Path) -> _Temporary:
        with _naming(target):
            path, handle = _claim(target, folder=False)
            assert handle is not None  # only folders go without
            return cls(target, path, handle)

    def complete(self) -> None:
        """Flushes the content to the disk, which may turn out to be full only here."""
        self.file.flush()
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system has no such thing
                raise

    def publish(self) -> None:
        if not _LOCKS:
            self.file.close()  # Windows does not rename open files
        os.replace(self._path, self.target)  # elsewhere the lock stays across the rename
        self._pending = False

    def __enter__(self) -> _Temporary:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._remove()
        except KeyboardInterrupt:  # raised just here: once more
            self._remove()
            raise

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            if self._pending:
                self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # flushing the rest of the buffer may fail
            self.file.close()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the target's name into errors, in place of the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _claim(target: Path, *, folder: bool) -> tuple[Path, int | None]:
    """Makes or reuses a temporary file or folder; returns it with the handle that holds its lock."""
    name = temporary_stem(target.name)
    for n in itertools.count():
        path = target.with_name(f".{name}.{n}.tmp")
        while True:
            try:
                fresh, handle = _open(path, folder)
            except OSError:
                if os.path.lexists(path):  # another user's, or of another kind
                    break
                raise
            locked = lock_file(handle) if handle is not None else None
            if locked is None and fresh:
                return path, handle
            if locked and handle is not None and _is_at(handle, path):
                if not folder:
                    os.ftruncate(handle, 0)
                return path, handle
            if handle is not None:
                os.close(handle)
            if not locked:  # in use, or unknown
                break
            # It was renamed or removed before we had the lock: once more.
    raise AssertionError("unreachable")


def _open(path: Path, folder: bool) -> tuple[bool, int | None]:
    """Opens a temporary file or folder; returns whether it is new, and its handle (None where folders have none)."""
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


def lock_file(handle: int) -> bool | None:
    """Locks a file for as long as its handle is open; False: another process holds it; None: no locks here."""
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
