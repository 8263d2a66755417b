"""The form that every benchmark's result has: one JSON file, and the Markdown tables that are made of it.

A result says which machine, which commit and which bundle its figures come from. NaN and infinity have no place in one:
a figure that does not exist is None.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.harness.machine import Commit
from ldp_runtime.errors import LDPError
from ldp_runtime.files import cannot_write, write_whole

if TYPE_CHECKING:
    from ldp_runtime.bundle.bundle import Bundle

SCHEMA = "ldp-benchmark"
SCHEMA_VERSION = 1
REPORTS = Path(__file__).resolve().parents[1] / "reports"
"""Where results go if nothing else is said."""

_FIX = "run the benchmark again"

T = TypeVar("T")


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
    def of(cls, bundle: Bundle) -> BundleId:
        """That of a loaded bundle."""
        manifest = bundle.manifest
        return cls(manifest.name, bundle.content, manifest.training.get("weights") != "random")

    def __str__(self) -> str:
        return f"{self.name} ({'trained' if self.trained else 'random weights'}, content {self.content[:12]})"


@dataclass(frozen=True)
class Report:
    """The result of one benchmark.

    Attributes:
        kind: Which benchmark, such as "latency" or "engine_build".
        machine: What ``machine.describe`` says of the machine that it ran on.
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
            kind: As for the attribute.
            data: As for the attribute.
            bundle: What was measured, if it is one bundle.
        """
        from benchmarks.harness.machine import commit, describe

        created = datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")
        return cls(kind, describe(), created, commit(), None if bundle is None else BundleId.of(bundle), data)

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
        fields = _fields(value, where, ("schema", "schema_version", *cls.__dataclass_fields__))
        if (fields["schema"], fields["schema_version"]) != (SCHEMA, SCHEMA_VERSION):
            raise BenchmarkError(
                f"{where}: expected {SCHEMA} of version {SCHEMA_VERSION}, got {fields['schema']!r} of "
                f"{fields['schema_version']!r}; {_FIX}"
            )
        commit = _fields(fields["commit"], f"{where}, commit", Commit.__dataclass_fields__)
        bundle = fields["bundle"]
        if bundle is not None:
            bundle = _fields(bundle, f"{where}, bundle", BundleId.__dataclass_fields__)
            bundle = BundleId(*(_typed(bundle, key, kind, where) for key, kind in _BUNDLE_TYPES.items()))
        return cls(
            kind=_typed(fields, "kind", str, where),
            machine=_typed(fields, "machine", dict, where),
            created=_typed(fields, "created", str, where),
            commit=Commit(
                None if commit["hash"] is None else _typed(commit, "hash", str, where),
                _typed(commit, "dirty", bool, where),
            ),
            bundle=bundle,
            data=_typed(fields, "data", dict, where),
        )

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
        """Reads what ``write`` wrote.

        Raises:
            BenchmarkError: The file is missing, no JSON, or no report.
        """
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise BenchmarkError(f"{path}: expected the JSON of a benchmark, got {error}; {_FIX}") from error
        return cls.from_json(value, str(path))

    def provenance(self) -> str:
        """One line for people: bundle, machine, commit and time."""
        parts = [] if self.bundle is None else [str(self.bundle)]
        parts += [str(self.machine.get("summary", "unknown machine")), str(self.commit), self.created]
        return "; ".join(parts)


def save(report: Report, folder: Path, name: str, markdown: str) -> tuple[Path, Path]:
    """Writes ``folder/name.json`` and ``folder/name.md``.

    Args:
        report: What to write.
        folder: Where; made if missing.
        name: The files' stem.
        markdown: The tables of the report, below a title of their own; a line on the provenance is added.

    Returns:
        The two paths.

    Raises:
        BenchmarkError: A file cannot be written.
    """
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


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]], align: str | None = None) -> str:
    """A Markdown table; None becomes a dash.

    Args:
        header: Names of the columns.
        rows: One cell a column; texts and numbers that are formatted already.
        align: One letter a column, "l" or "r"; the first column left and the others right if None.

    Raises:
        ValueError: A row or ``align`` has another length than the header.
    """
    align = align or "l" + "r" * (len(header) - 1)
    if len(align) != len(header) or set(align) - {"l", "r"}:
        raise ValueError(f"expected {len(header)} letters of l and r, got {align!r}")

    def line(cells: Sequence[object]) -> str:
        if len(cells) != len(header):
            raise ValueError(f"expected {len(header)} cells, got {len(cells)}: {cells}")
        texts = ("–" if cell is None else str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
        return f"| {' | '.join(texts)} |"

    marks = ["---" if letter == "l" else "---:" for letter in align]
    return "\n".join([line(header), f"| {' | '.join(marks)} |", *map(line, rows)])


def significant(value: float | None, digits: int = 3) -> str | None:
    """A number with so many significant digits and no exponent: 0.0123, 1.23, 1234; None stays None."""
    if value is None or not math.isfinite(value):
        return None
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # after rounding: 9.999 has that of 10
    decimals = digits - 1 - exponent
    return f"{round(value, decimals):.{max(decimals, 0)}f}"


def load_text(load_average: Mapping[str, float | None]) -> str:
    """Load averages, in their order, for people: "0.52 and 1.38"; None, where the system tells none, is "unknown"."""
    return " and ".join("unknown" if value is None else f"{value:.2f}" for value in load_average.values())


_BUNDLE_TYPES: dict[str, type] = {"name": str, "content": str, "trained": bool}


def _fields(value: object, where: str, names: Iterable[str]) -> dict[str, Any]:
    expected = set(names)
    if not isinstance(value, dict) or value.keys() != expected:
        got = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise BenchmarkError(f"{where}: expected the fields {', '.join(sorted(expected))}, got {got}; {_FIX}")
    return value


def _typed(fields: Mapping[str, Any], key: str, kind: type[T], where: str) -> T:
    value = fields[key]
    if not isinstance(value, kind):
        raise BenchmarkError(f"{where}: expected {key} as {kind.__name__}, got {value!r}; {_FIX}")
    return value
