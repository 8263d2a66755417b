import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness.sample import pair_files, write_pair
from benchmarks.latency import worker
from benchmarks.latency.worker import Block, Timing
from ldp_runtime import Deblurrer
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.images.photo import read_photo

SHAPE = (64, 96)


def timing(folder: Path, **changes: Any) -> Timing:
    write_pair(folder, SHAPE)
    left, right = map(str, pair_files(folder, SHAPE))
    restored = str(folder / "restored.npy")
    made = Timing("onnxruntime", "fp32", left, right, threads=1, seconds=1e6, most=3, spawned=time.time())
    return replace(made, restored=restored, **changes)


def test_a_block_has_every_run_and_stage(bundle: Bundle, tmp_path: Path) -> None:
    asked = timing(tmp_path)
    found = Block(**worker.answer({"timing": vars(asked), "bundle": str(bundle.path), "checkpoint": None}))
    assert len(found.seconds) == 3
    assert set(found.stages) == {"prepare", "clip", "blur_logits", "deblur", "finish"}
    assert {len(values) for values in found.stages.values()} == {3}
    assert set(found.files) == {"read", "write"}
    assert set(found.start_up) == {"process", "load", "first"}
    assert found.host_bytes > 2**20
    assert not found.gpu
    left, right = (read_photo(path).pixels for path in (asked.left, asked.right))
    assert left.shape == (*SHAPE, 3)
    expected = Deblurrer(bundle, backend="onnxruntime", precision="fp32", threads=1)(left, right).restored
    np.testing.assert_array_equal(np.load(tmp_path / "restored.npy"), expected)


@pytest.mark.parametrize(("lazy", "limit", "counted"), [(False, 0.0, 1), (False, 60.0, 0), (True, 0.0, 0)])
def test_a_long_first_run_of_torch_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lazy: bool, limit: float, counted: int
) -> None:
    calls: list[float] = []

    def run(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        calls.append(0.5 + len(calls))
        return left, {"deblur": calls[-1]}

    monkeypatch.setattr(worker, "FIRST_COUNTS", limit)
    opened = worker.Opened(run, "a CPU", gpu=False, events=False, lazy=lazy)
    got = worker.measure(timing(tmp_path, seconds=0.0, most=1), lambda: opened)
    assert len(got.seconds) == 1
    assert got.stages == {"deblur": [0.5 if counted else 1.5]}
    assert len(calls) == 2 - counted
