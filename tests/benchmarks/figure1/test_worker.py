import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.figure1 import worker
from benchmarks.figure1.worker import MethodSpec, check_memory, network_chain, restore
from benchmarks.harness.results import BenchmarkError
from benchmarks.harness.sample import pair_files, write_pair
from benchmarks.latency.worker import Block, Timing
from ldp_runtime.images.photo import read_photo
from tests.benchmarks.figure1.mean_graph import save_mean_graph

SIZE = (32, 48)


def answer(folder: Path, kind: str, name: str, path: str = "") -> tuple[Block, np.ndarray]:
    """The block and the restored image of one run."""
    write_pair(folder, SIZE)
    left, right = map(str, pair_files(folder, SIZE))
    kept = folder / "restored.npy"
    timing = Timing("onnxruntime", "fp32", left, right, 1, 0.0, 1, time.time(), restored=str(kept))
    fields = {"timing": vars(timing), "kind": kind, "name": name, "path": path}
    return Block(**worker.answer(fields)), np.load(kept)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_restore_pads_and_rounds_as_the_runtime_does(dtype: type[np.generic]) -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.integers(0, np.iinfo(dtype).max + 1, (5, 7, 3)).astype(dtype) for _ in range(2))
    seen = []

    def network(pair: np.ndarray) -> np.ndarray:
        seen.append(pair)
        return pair[:, 3:] * 2 - 0.5

    restored = restore(network_chain(network, 8), left, right)
    assert seen[0].shape == (1, 6, 8, 8)
    np.testing.assert_array_equal(seen[0][0, :, 5], seen[0][0, :, 3])  # reflect-101
    top = np.iinfo(dtype).max
    expected = np.clip(np.rint((right.astype(np.float32) / np.float32(top) * 2 - np.float32(0.5)) * top), 0, top)
    assert restored.dtype == dtype
    np.testing.assert_allclose(restored.astype(np.float64), expected, atol=1)


def test_a_graph_restores_the_pair_of_the_files(tmp_path: Path) -> None:
    block, restored = answer(tmp_path, "published", "nafnet", str(save_mean_graph(tmp_path / "mean.onnx")))
    left, right = (read_photo(path).pixels.astype(np.float64) for path in pair_files(tmp_path, SIZE))
    np.testing.assert_allclose(restored, (left + right) / 2, atol=0.51)
    assert len(block.seconds) == len(block.cpu_seconds) == 1
    assert block.seconds[0] > 0 and block.host_bytes > 2e7


def test_dmenet_is_timed_with_its_deconvolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def keep(image: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        seen.append((image, sigma))
        return 1 - image

    monkeypatch.setattr("benchmarks.classical.chains.deconvolve", keep)
    _, restored = answer(tmp_path, "published", "dmenet", str(save_mean_graph(tmp_path / "mean.onnx")))
    image, sigma = seen[0]
    np.testing.assert_allclose(sigma, np.maximum(0, (15 * image[..., 0] - 1) / 2), atol=1e-4)  # the graph's grey is red
    np.testing.assert_allclose(restored, 255 * (1 - image), atol=0.51)


def test_ebdb_needs_no_backend(tmp_path: Path) -> None:
    block, restored = answer(tmp_path, "classical", "ebdb")
    assert "NumPy" in block.device and restored.shape == (*SIZE, 3)


def test_what_would_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldp_runtime.stages.tiles.free_memory", lambda: 2.0**30)
    check_memory(1024, (1024, 1024))
    with pytest.raises(
        BenchmarkError, match=r"expected 2.0 GiB of free memory at 1024x2048 px, got 1.0; choose a small"
    ):
        check_memory(1024, (1024, 2048))


@pytest.mark.slow
def test_random_weights_of_ours_need_no_export_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.harness.bundles.CLIP_ARCHITECTURE", "ViT-B-32-quickgelu")
    timing = Timing("torch", "fp32", "", "", 1, 0.0, 1, time.time())
    opened = worker.open_method(MethodSpec(timing, "config", "nano", ""))
    views = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3)).astype(np.uint8)
    restored, timings = opened.run(*views)
    assert restored.shape == (*SIZE, 3) and {"clip", "deblur"} <= set(timings)
