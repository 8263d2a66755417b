import pytest

from benchmarks.harness import machine
from benchmarks.harness.machine import Commit

CPUINFO = """\
processor\t: 0
model name\t: Some CPU @ 2 GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx2 avx512_bf16

processor\t: 1
model name\t: Some CPU @ 2 GHz
physical id\t: 0
core id\t\t: 0

processor\t: 2
physical id\t: 1
core id\t\t: 0
"""


def test_cpuinfo() -> None:
    assert machine.parse_cpuinfo(CPUINFO) == ("Some CPU @ 2 GHz", 2, {"fpu", "avx2", "avx512_bf16"})
    assert machine.parse_cpuinfo("") == (None, None, set())


def test_graphics_cards_come_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_run", lambda *_: "NVIDIA GeForce RTX 4090, 570.1, 24564, 8.9\n")
    machine.gpus.cache_clear()
    try:
        assert machine.gpus() == [
            {"name": "NVIDIA GeForce RTX 4090", "driver": "570.1", "memory_mib": 24564, "compute_capability": "8.9"}
        ]
        monkeypatch.setattr(machine, "_run", lambda *_: None)
        machine.gpus.cache_clear()
        assert machine.gpus() == []
        assert machine.gpu_memory_used() is None
    finally:
        machine.gpus.cache_clear()


def test_changed_reports_do_not_make_the_source_dirty(monkeypatch: pytest.MonkeyPatch) -> None:
    for status, dirty in (("", False), (" M benchmarks/reports/x.json\n", False), (" M README.md\n", True)):
        answers = {"rev-parse": "ab" * 20 + "\n", "status": status}
        monkeypatch.setattr(machine, "_run", lambda *command, answers=answers: answers[command[3]])
        machine.commit.cache_clear()
        assert machine.commit() == Commit("ab" * 20, dirty)
    monkeypatch.setattr(machine, "_run", lambda *_: None)
    machine.commit.cache_clear()
    assert str(machine.commit()) == "unknown commit"
    machine.commit.cache_clear()


def test_peak_memory_counts_what_this_process_took() -> None:
    import numpy as np

    before = machine.peak_memory()
    taken = np.ones(64 * 2**20, dtype=np.uint8)
    assert machine.peak_memory() >= max(before, taken.nbytes)
