import pytest

from benchmarks import batch
from benchmarks.batch import Round, measure, to_markdown
from benchmarks.harness.machine import Commit
from benchmarks.harness.results import BenchmarkError, Report
from ldp_runtime.bundle.bundle import Bundle


def test_loop_and_batch_restore_all_pairs(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"threads": 1, "io_threads": 1, "pairs": 3, "shape": (40, 60), "rounds": 2}
    rounds, ran = measure(bundle, "onnxruntime", "fp32", **options)  # type: ignore[arg-type]
    assert ran == "onnxruntime fp32"
    assert len(rounds) == 2
    for value in rounds:
        assert value.batch > 0
        assert 0 < sum(value.stages.values()) <= value.loop
    monkeypatch.setattr(batch, "_loop", lambda *_: dict.fromkeys(batch.STAGES, 0.0))  # it writes nothing
    with pytest.raises(FileNotFoundError):
        measure(bundle, "onnxruntime", "fp32", **options)  # type: ignore[arg-type]


def test_a_pair_that_fails_ends_the_benchmark(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from ldp_runtime.errors import NumericsError
    from ldp_runtime.host import HostChain

    def fail(*_: object) -> None:
        raise NumericsError("NaN appeared")

    monkeypatch.setattr(HostChain, "_run", fail)
    with pytest.raises(BenchmarkError, match="NaN appeared"):
        measure(bundle, "onnxruntime", "fp32", threads=1, io_threads=1, pairs=1, shape=(40, 60), rounds=1)


def test_markdown() -> None:
    stages = {"read": 1.0, "restore": 6.0, "write": 3.0}
    rounds = [Round(10.0, 8.0, stages), Round(10.0, 5.0, stages), Round(10.0, 4.0, stages)]
    data = {
        "ran": "openvino bf16",
        "shape": [1000, 2000],
        "pairs": 10,
        "threads": None,
        "io_threads": 2,
        "load_average": {"before": 0.5, "after": None},
        "rounds": [vars(value) for value in rounds],
    }
    text = to_markdown(Report("batch", {}, "2026-01-01T00:00:00Z", Commit(None, False), None, data))
    assert "| ldp batch | 5.00 | 2.00 | 4.00 |" in text
    assert "| one after the other | 10.0 | 1.00 | 2.00 |" in text
    assert "|   the longest of them | 6.00 | 1.67 | 3.33 |" in text
    assert "2.00 times as fast" in text
