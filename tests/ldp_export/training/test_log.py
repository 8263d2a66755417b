import json
from pathlib import Path

from ldp_export.training.log import RunLog


def test_a_line_of_the_log_that_a_full_disk_cut_short_is_dropped(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    (tmp_path / "train.log.jsonl").write_text("\n".join([*lines, '{"step": 2, "lo']))
    RunLog(tmp_path, 2).close()
    assert [
        json.loads(line)["step"] for line in (tmp_path / "train.log.jsonl").read_text(encoding="utf-8").splitlines()
    ] == [1, 2]
