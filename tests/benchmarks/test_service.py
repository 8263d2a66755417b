import random
from pathlib import Path

import pytest

from benchmarks import service
from benchmarks.__main__ import main
from benchmarks.harness.results import Report
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.service.settings import Settings


def test_mutations_differ_from_the_form_and_are_repeatable() -> None:
    _, body = service.make_request(b"left", b"right")
    forms = list(service.mutations(body, 50, random.Random(1)))
    assert forms == list(service.mutations(body, 50, random.Random(1)))
    assert sum(form != body for form in forms) > 45
    assert len(set(forms)) > 40


def test_quantiles() -> None:
    assert service.quantiles([]) is None
    assert service.quantiles([float(i) for i in range(101)]) == {"median": 50, "p95": 95, "max": 100}


@pytest.mark.slow
def test_the_whole_load_on_a_tiny_bundle(bundle: Bundle, tmp_path: Path) -> None:
    arguments = ["--bundle", str(bundle.path), "--backend", "onnxruntime", "--seconds", "1", "--mutations", "40"]
    assert main(["service", *arguments, "--concurrency", "1", "2", "-o", str(tmp_path)]) == 0
    report = Report.read(tmp_path / "service.json")
    parts = report.data["parts"]
    for name in ("slow heads", "half-open"):
        assert parts[name]["good"]["status"] == 200, name
        assert parts[name]["ended"] == {"closed": service.CONNECTIONS}, name
    uploads = Settings().uploads  # as many are read, the others are refused at once
    assert parts["slow bodies"]["ended"] == {"408": uploads, "429": service.CONNECTIONS - uploads}
    for name, part in parts.items():
        if "statuses" in part and name != "malformed":
            assert part["statuses"].keys() <= {"200", "429"}, name
            assert part["statuses"]["200"] > 0, name
    assert parts["overload"]["statuses"]["429"] > 0
    assert report.data["exit_code"] == 0
    assert "| sustained, 2 at a time |" in (tmp_path / "service.md").read_text(encoding="utf-8")
