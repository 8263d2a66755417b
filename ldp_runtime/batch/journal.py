"""The journal in the output folder, one JSON line per finished pair: a run continues where an earlier one ended.

A pair is done when its inputs, its settings and its outputs are those of its last line. An unchanged size and time of a
file stand for its content; otherwise its hash decides. The journal also lists the names that runs may write, so that no
other file is overwritten.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import msgspec
from msgspec import Struct

from ldp_runtime.batch.jobs import Job
from ldp_runtime.bundle.bundle import sha256_file
from ldp_runtime.errors import LDPError
from ldp_runtime.files import cannot_read, cannot_write, lock_file, temporary_stem

JOURNAL_FILE = ".ldp-batch.jsonl"

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(\d+|tries)\.tmp")  # of ldp_runtime.files and `tries_file`


class OutputError(LDPError):
    """The output folder cannot be used, so every pair would fail."""


class FileFacts(Struct, frozen=True):
    """A file as it was when it was read or written.

    Attributes:
        size: Bytes.
        mtime_ns: Time of its last change, nanoseconds.
        sha256: Hash of its content.
    """

    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def from_file(cls, path: Path) -> FileFacts:
        """Reads a file; its time is read first, so that a change during the hashing shows."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, sha256_file(path))


class Record(Struct, frozen=True):
    """A finished pair.

    Attributes:
        name: ``Job.name``.
        settings: ``Settings.key``.
        left: The left view.
        right: The right view; None if the file of the left view holds both.
        outputs: Path below the output folder -> the file there.
        made: How it was restored, for people: backend, precision, pixels, seconds, and its quality if it has a target.
        target: The target, if it was compared with one.
    """

    name: str
    settings: str
    left: FileFacts
    right: FileFacts | None
    outputs: dict[str, FileFacts]
    made: dict[str, Any]
    target: FileFacts | None = None


class _Line(Struct, omit_defaults=True):
    """A line of the journal: a finished pair, or outputs that runs may write."""

    done: Record | None = None
    ours: list[str] = []


class Journal:
    """The journal of an output folder. As a context it locks the folder, so that two runs do not write into one."""

    def __init__(self, folder: Path) -> None:
        """Reads the journal, if there is one; nothing is written.

        Args:
            folder: The output folder, which need not exist yet.

        Raises:
            OutputError: The journal cannot be read.
        """
        self.folder = Path(os.path.abspath(folder))
        self.path = self.folder / JOURNAL_FILE
        self._file: IO[bytes] | None = None
        self._read()

    def __enter__(self) -> Journal:
        """Makes the folder and locks it.

        Raises:
            OutputError: The folder cannot be written, or another run has locked it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise OutputError(cannot_write(self.folder, error)) from error
        if lock_file(self._file.fileno()) is False:
            self._file.close()
            raise OutputError(f"{self.folder} is in use by another ldp batch; wait until it ends, or stop it")
        self._read()  # another run may have just ended
        if self._torn:
            self._append(b"\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def is_done(self, job: Job, settings: str, *, verify: bool = False) -> bool:
        """Whether a pair needs no work.

        Args:
            job: The pair.
            settings: ``Settings.key`` of this run.
            verify: Hash every file, also those whose size and time have not changed.
        """
        record = self._records.get(job.name)
        if record is None or record.settings != settings:
            return False
        if (job.right is None) != (record.right is None):
            return False
        outputs = [record.outputs.get(self._relative(path)) for path in job.outputs]
        files = (*job.outputs, job.left, job.right, job.target)
        expected = zip(files, (*outputs, record.left, record.right, record.target), strict=True)
        return all(path is None or (facts is not None and _holds(path, facts, verify)) for path, facts in expected)

    def quality(self, name: str) -> dict[str, Any] | None:
        """The quality of a finished pair, by ``Job.name``, if it was compared with a target."""
        record = self._records.get(name)
        return None if record is None else record.made.get("quality")

    def foreign(self, jobs: Iterable[Job]) -> list[Path]:
        """The outputs that exist though no run wrote them."""
        return [
            path
            for job in jobs
            for path in job.outputs
            if self._relative(path) not in self._ours and os.path.lexists(path)
        ]

    def claim(self, jobs: Iterable[Job]) -> None:
        """Records, before any is written, that runs may write these outputs.

        Raises:
            OutputError: The journal cannot be written.
        """
        new = sorted({self._relative(path) for job in jobs for path in job.outputs} - self._ours)
        if new:
            self._append_line(_Line(ours=new))
            self._ours.update(new)

    def add(self, record: Record) -> None:
        """Records that a pair is done.

        Raises:
            OutputError: The journal cannot be written.
        """
        self._append_line(_Line(record))
        self._records[record.name] = record

    def remove_leftovers(self, jobs: Iterable[Job]) -> None:
        """Removes the temporary files of killed runs.

        Raises:
            OutputError: One cannot be removed.
        """
        expected: dict[Path, set[str]] = {}
        for job in jobs:
            for path in job.outputs:
                real = Path(os.path.realpath(path))
                expected.setdefault(real.parent, set()).add(temporary_stem(real.name))
        for folder, names in expected.items():
            try:
                for path in list(folder.iterdir()) if folder.is_dir() else ():
                    match = _TEMPORARY.fullmatch(path.name)
                    if match is not None and match["name"] in names:
                        path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{folder} cannot be tidied: {error.strerror or error}; fix its rights") from error

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _read(self) -> None:
        """Reads the lines; one that a kill cut off, or that is no record, is ignored."""
        self._records: dict[str, Record] = {}
        self._ours: set[str] = set()
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            content = b""
        except OSError as error:
            raise OutputError(f"{cannot_read(self.path, error)}, or choose another output folder") from error
        self._torn = bool(content) and not content.endswith(b"\n")
        for line in content.splitlines():
            try:
                entry = msgspec.convert(json.loads(line), _Line)
            except (ValueError, msgspec.ValidationError):
                continue
            self._ours.update(entry.ours)
            if entry.done is not None:
                self._records[entry.done.name] = entry.done

    def _append_line(self, line: _Line) -> None:
        # Names that are no Unicode pass through json, not through msgspec's own encoder.
        self._append(json.dumps(msgspec.to_builtins(line), separators=(",", ":")).encode() + b"\n")

    def _append(self, content: bytes) -> None:
        if self._file is None:
            raise ValueError("expected an open journal, got one that is only read; use it in a with block")
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            raise OutputError(cannot_write(self.path, error)) from error


def tries_file(job: Job) -> Path:
    """Where the workers of a cluster count their tries of a pair; a temporary file as any other."""
    return job.output.with_name(f".{temporary_stem(job.output.name)}.tries.tmp")


def _holds(path: Path, facts: FileFacts, verify: bool) -> bool:
    """Whether a file still has these facts."""
    try:
        status = path.stat()
        if status.st_size != facts.size:
            return False
        if status.st_mtime_ns == facts.mtime_ns and not verify:
            return True
        return sha256_file(path) == facts.sha256
    except OSError:
        return False
