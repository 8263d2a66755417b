from pathlib import Path

import pytest

from ldp_runtime.batch.jobs import Job
from ldp_runtime.batch.journal import JOURNAL_FILE, FileFacts, Journal, Record


@pytest.mark.parametrize("name", ["a.png", "\udcff.png"])  # the second is no Unicode, which Linux allows
def test_lines_that_are_no_records_are_ignored(tmp_path: Path, name: str) -> None:
    left, output = tmp_path / "left", tmp_path / name
    left.touch()
    output.touch()
    job = Job(left, left, output, None, name)
    facts = FileFacts.from_file(left)
    record = Record(name, "settings", facts, facts, {name: FileFacts.from_file(output)}, {"pixels": 1})
    with Journal(tmp_path) as journal:
        journal.claim([job])
        journal.add(record)
    lines = [b"[1]", b"\xff", b"", b'{"done":{"name":1}}', b'{"ours":[1]}', b'{"done":']
    path = tmp_path / JOURNAL_FILE
    path.write_bytes(b"\n".join([*lines, path.read_bytes(), *lines]))
    journal = Journal(tmp_path)
    assert journal.is_done(job, "settings")
    assert not journal.is_done(job, "other settings")
    assert journal.foreign([job]) == []
    output.write_bytes(b"changed")
    assert not journal.is_done(job, "settings")
