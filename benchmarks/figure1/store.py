"""What is measured already, so that a run that was killed goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from benchmarks.harness.bundles import sources_key
from benchmarks.harness.machine import describe
from benchmarks.harness.results import BenchmarkError, write_text
from benchmarks.latency.worker import Block
from ldp_runtime.cache import cache_folder


@dataclass(frozen=True)
class Record:
    """What a method did in one round.

    Attributes:
        block: Its block; None where it failed.
        error: Why there is none.
        load: Load averages before and after, None where the system does not say.
    """

    block: Block | None
    error: str | None
    load: list[float | None]


@dataclass
class Store:
    """Records by method and round, kept in a file of LDP's cache after each.

    Attributes:
        path: The file.
        records: Name of the method -> round -> record.
    """

    path: Path
    records: dict[str, dict[int, Record]] = field(default_factory=dict)

    @classmethod
    def open(cls, settings: dict[str, Any], *, anew: bool = False) -> Store:
        """The store of this machine, these sources and settings; a file that cannot be read counts as none.

        Args:
            settings: What else a time depends on: size, backend and so on.
            anew: Forget what is there.

        Raises:
            BenchmarkError: There is no cache.
        """
        folder = cache_folder("benchmarks", "figure1")
        if folder is None:
            raise BenchmarkError("expected a cache folder for what is measured, got none; set LDP_CACHE to one")
        known = {"machine": describe()["summary"], "sources": sources_key(_sources()), **settings}
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
        store = cls(folder / f"{digest}.json")
        if not anew:
            try:
                for who, rounds in json.loads(store.path.read_bytes()).items():
                    store.records[who] = {int(number): _record(fields) for number, fields in rounds.items()}
            except (OSError, ValueError, TypeError, KeyError, AttributeError):
                store.records.clear()
        return store

    def add(self, who: str, number: int, record: Record) -> None:
        """Keeps a record.

        Raises:
            BenchmarkError: The file cannot be written.
        """
        self.records.setdefault(who, {})[number] = record
        rounds = {name: {n: asdict(each) for n, each in own.items()} for name, own in self.records.items()}
        write_text(self.path, json.dumps(rounds))

    def done(self, who: str, number: int) -> bool:
        """Whether a method need not run in a round: it has, or it failed in any."""
        return number in self.records.get(who, {}) or self.error(who) is not None

    def blocks(self, who: str) -> list[Block]:
        """The blocks of a method by round."""
        return [record.block for _, record in sorted(self.records.get(who, {}).items()) if record.block is not None]

    def error(self, who: str) -> str | None:
        """Why a method failed; None if it did not."""
        return next((record.error for record in self.records.get(who, {}).values() if record.error is not None), None)


def _record(fields: dict[str, Any]) -> Record:
    block = fields["block"]
    return Record(None if block is None else Block(**block), fields["error"], fields["load"])


def _sources() -> Iterator[Path]:
    """All sources that a time depends on."""
    for folder in ("ldp_runtime", "ldp_export/network", "ldp_export/clip", "benchmarks/classical"):
        yield from (ROOT / folder).rglob("*.py")
    yield from (ROOT / "benchmarks" / name for name in ("figure1/worker.py", "latency/worker.py"))
