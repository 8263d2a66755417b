"""The form of every benchmark's result: one JSON file, and the Markdown tables made from it.

A result says which machine, commit and bundle its figures come from. It holds no NaN and no infinity: a figure that
does not exist is None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from benchmarks.harness.machine import Commit
from ldp_runtime.errors import LDPError
from ldp_runtime.files import cannot_write, write_whole

if TYPE_CHECKING:
    from ldp_runtime.bundle.bundle import Bundle

SCHEMA = "ldp-benchmark"
SCHEMA_VERSION = 1


class BenchmarkError(LDPError):
    """A benchmark cannot run here, or a result cannot be read."""


@dataclass(frozen=True)
class BundleId:
    """Which bundle was measured.

    Attributes:
        name: Its name.
        content: ``Bundle.content``, a SHA-256 over all of its files.
        trained: Its weights are trained, so a restored image means something.
    """

    name: str
    content: str
    trained: bool

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> BundleId:
        """The identity of a loaded bundle."""
        manifest = bundle.manifest
        return cls(manifest.name, bundle.content, manifest.training.get("weights") != "random")

    def __str__(self) -> str:
        return f"{self.name} ({'trained' if self.trained else 'random weights'}, content {self.content[:12]})"


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON of a report."""

    schema: Literal["ldp-benchmark"]
    schema_version: Literal[1]
    kind: str
    machine: dict[str, Any]
    created: str
    commit: Commit
    bundle: BundleId | None
    data: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """The result of one benchmark.

    Attributes:
        kind: Which benchmark, such as "latency" or "engine_build".
        machine: The machine that it ran on, see ``machine.describe``.
        created: When, ISO 8601 in UTC.
        commit: State of the source.
        bundle: The bundle, or None where the benchmark needs none.
        data: The benchmark's own figures, plain JSON values.
    """

    kind: str
    machine: Mapping[str, Any]
    created: str
    commit: Commit
    bundle: BundleId | None
    data: Mapping[str, Any]

    @classmethod
    def new(cls, kind: str, data: Mapping[str, Any], bundle: Bundle | None = None) -> Report:
        """A report of this machine, this commit and this moment.

        Args:
            kind: See the attribute.
            data: See the attribute.
            bundle: The bundle that was measured, if it is one.
        """
        from benchmarks.harness.machine import commit, describe

        created = datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")
        return cls(kind, describe(), created, commit(), None if bundle is None else BundleId.from_bundle(bundle), data)

    @property
    def name(self) -> str:
        """The bundle's name for titles."""
        return self.bundle.name if self.bundle else "the bundle"

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: object, where: str = "the report") -> Report:
        """The inverse of ``to_json``.

        Args:
            value: The parsed JSON.
            where: Names it in errors.

        Raises:
            BenchmarkError: A field is missing, unknown or of the wrong type; the message names it.
        """
        try:
            file = msgspec.convert(value, _File)
        except msgspec.ValidationError as error:
            raise BenchmarkError(
                f"{where}: expected {SCHEMA} of version {SCHEMA_VERSION}, got another form: {error}; run the benchmark "
                "again"
            ) from error
        return cls(file.kind, file.machine, file.created, file.commit, file.bundle, file.data)

    def write(self, path: Path) -> None:
        """Writes the report as JSON, in one step; folders are made.

        Raises:
            BenchmarkError: The file cannot be written, or a figure is NaN, infinite or no JSON value.
        """
        try:
            text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BenchmarkError(
                f"{path}: expected finite numbers and plain JSON values, got {error}; give None for what does not exist"
            ) from error
        write_text(path, text + "\n")

    @classmethod
    def read(cls, path: Path) -> Report:
        """Reads a file that ``write`` wrote.

        Raises:
            BenchmarkError: The file is missing, no JSON, or no report.
        """
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise BenchmarkError(
                f"{path}: expected the JSON of a benchmark, got {error}; run the benchmark again"
            ) from error
        return cls.from_json(value, str(path))

    def provenance(self) -> str:
        """One line for people: bundle, machine, commit and time."""
        parts = [] if self.bundle is None else [str(self.bundle)]
        parts += [str(self.machine.get("summary", "unknown machine")), str(self.commit), self.created]
        return "; ".join(parts)


def publish(report: Report, markdown: str, folder: Path, name: str | None = None) -> None:
    """Prints the tables of a report and saves it; see ``save``."""
    print(markdown)
    paths = save(report, markdown, folder, name)
    print(f"wrote {' and '.join(map(str, paths))}")


def save(report: Report, markdown: str, folder: Path, name: str | None = None) -> tuple[Path, Path]:
    """Writes ``folder/name.json`` and ``folder/name.md``.

    Args:
        report: The report.
        markdown: Its tables, below a title; the file gets a line on the provenance as well.
        folder: The output folder; made if missing.
        name: The files' stem; the report's kind and bundle if None.

    Returns:
        The two paths.

    Raises:
        BenchmarkError: A file cannot be written.
    """
    name = name or (f"{report.kind}-{report.bundle.name}" if report.bundle else report.kind)
    paths = folder / f"{name}.json", folder / f"{name}.md"
    report.write(paths[0])
    write_text(paths[1], f"{markdown.rstrip()}\n\n{report.provenance()}.\n")
    return paths


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step; folders are made.

    Raises:
        BenchmarkError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole({path: text.encode()})
    except OSError as error:
        raise BenchmarkError(cannot_write(path, error)) from error
