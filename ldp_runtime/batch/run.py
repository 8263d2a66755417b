"""A run over many pairs: finished ones are skipped, outcomes go into the journal, the tally and the log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldp_runtime.batch.jobs import Job, Settings
from ldp_runtime.batch.journal import Journal, OutputError
from ldp_runtime.batch.report import Progress
from ldp_runtime.batch.work import Done, Outcome
from ldp_runtime.errors import BackendError, WriteError, listed
from ldp_runtime.files import write_files

LOG_FILE = "ldp-batch.json"
GIVE_UP_AFTER = 3
"""After so many backend failures in a row the run ends: the next pair would fail too."""


@dataclass(frozen=True)
class Plan:
    """The work of a run.

    Attributes:
        jobs: Every pair.
        todo: The unfinished ones.
        settings: The settings that all share.
        journal: The journal of the output folder.
    """

    jobs: Sequence[Job]
    todo: Sequence[Job]
    settings: Settings
    journal: Journal

    @classmethod
    def make(
        cls, jobs: Sequence[Job], settings: Settings, folder: Path, *, overwrite: bool = False, verify: bool = False
    ) -> Plan:
        """Finds the unfinished pairs; nothing is written.

        Args:
            jobs: Every pair.
            settings: The settings that all share.
            folder: The output folder.
            overwrite: Restore every pair again, and replace files that no run wrote.
            verify: As for ``Journal.is_done``.

        Raises:
            OutputError: The journal cannot be read, or an output exists that no run wrote.
        """
        journal = Journal(folder)
        if overwrite:
            return cls(jobs, jobs, settings, journal)
        foreign = journal.foreign(jobs)
        if foreign:
            raise OutputError(
                f"expected only outputs of ldp batch, got other files at {listed(foreign)}; "
                "choose another output folder, or replace them with --overwrite"
            )
        key = settings.key()
        return cls(jobs, [job for job in jobs if not journal.is_done(job, key, verify=verify)], settings, journal)


def follow(plan: Plan, outcomes: Iterable[Outcome], progress: Progress) -> None:
    """Records outcomes in the journal and the tally as they arrive.

    Raises:
        BackendError: The backend failed on ``GIVE_UP_AFTER`` pairs in a row.
        OutputError: The journal cannot be written.
    """
    in_a_row = 0
    for outcome in outcomes:
        if isinstance(outcome, Done):
            plan.journal.add(outcome.record)
            in_a_row = 0
        else:
            in_a_row = in_a_row + 1 if outcome.whole else in_a_row
        progress.add(outcome)
        if not isinstance(outcome, Done) and in_a_row == GIVE_UP_AFTER:
            raise BackendError(f"the backend failed on {in_a_row} pairs in a row, so the run ends: {outcome.error}")


def write_log(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes the log of a run as JSON, in one step.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        write_files({path: (json.dumps(fields, indent=2, allow_nan=False) + "\n").encode()})
    except WriteError as error:
        raise OutputError(f"the log {error}; name another place for it with --log") from error
