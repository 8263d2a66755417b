from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.figure1.score import score_bundles
from benchmarks.harness.results import BenchmarkError
from ldp_export.evaluation.metrics import psnr
from ldp_runtime import Deblurrer
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.images.photo import write_pixels


def write_scene(folder: Path, seed: int, names: tuple[str, ...]) -> list[np.ndarray]:
    folder.mkdir(parents=True)
    views = list(np.random.default_rng(seed).integers(0, 256, (3, 32, 48, 3)).astype(np.uint8))
    for name, view in zip(names, views, strict=False):
        write_pixels(folder / f"{name}.png", view)
    return views


def test_a_trained_bundle_is_scored_beside_the_center_view(bundle: Bundle, tmp_path: Path) -> None:
    scenes = [write_scene(tmp_path / str(seed), seed, ("left", "right", "target")) for seed in (0, 1)]
    found = score_bundles([bundle], tmp_path, 1)
    (score,) = found.values()
    deblurrer = Deblurrer(bundle, threads=1)
    after = [psnr(deblurrer(left, right).restored, target, data_range=255.0) for left, right, target in scenes]
    before = [psnr((left / 2 + right / 2), target, data_range=255.0) for left, right, target in scenes]
    assert score["pairs"] == 2
    assert score["psnr"] == pytest.approx(np.mean(after), abs=1e-6)
    assert score["center_psnr"] == pytest.approx(np.mean(before), abs=1e-6)


def test_pairs_without_targets_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    write_scene(tmp_path / "0", 0, ("left", "right"))
    with pytest.raises(BenchmarkError, match="expected pairs with targets"):
        score_bundles([bundle], tmp_path, 1)


def test_random_weights_are_not_scored(bundle: Bundle, tmp_path: Path) -> None:
    write_scene(tmp_path / "0", 0, ("left", "right", "target"))
    manifest = msgspec.structs.replace(bundle.manifest, training={"weights": "random"})
    assert score_bundles([replace(bundle, manifest=manifest)], tmp_path, 1) == {}
