import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.harness import bundles
from benchmarks.harness.results import BenchmarkError, Report
from benchmarks.windows import bench, worker
from benchmarks.windows.bench import choices, to_markdown
from ldp_export.bundling import onnx_graphs
from ldp_export.checkpoint import CheckpointError, Windows
from ldp_export.clip import load_clip
from ldp_export.network.randomise import randomise
from ldp_export.simulation import samples
from ldp_export.simulation.simulate import SimulatedPair
from ldp_runtime.bundle.bundle import Bundle, read_manifest
from tests.ldp_export.tiny_models import TINY_CLIP
from tests.ldp_runtime.tiny_bundle import EMBED_DIM, make_tiny_bundle


@pytest.fixture(autouse=True)
def reference(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An encoder with as many features as the bundle has text embeddings for; its checkpoint is in no file."""
    config = tmp_path_factory.mktemp("clip") / "clip.json"
    config.write_text(json.dumps({**TINY_CLIP, "embed_dim": EMBED_DIM}))
    clip = load_clip(str(config), seed=4)
    randomise(clip.encoder.visual, 4)
    monkeypatch.setattr(bundles, "reference_model", lambda bundle, checkpoint: SimpleNamespace(clip=clip))
    # The export of CLIP is slow, and tested with the exporter.
    made = {name: make_tiny_bundle(tmp_path_factory.mktemp(name), ensemble=name) for name in ("ens2", "dp-aware")}
    by_canvases = {read_manifest(path).canvases: path / "clip.onnx" for path in made.values()}
    monkeypatch.setattr(onnx_graphs, "clip_graph", lambda encoder, half: by_canvases[encoder.canvases])
    monkeypatch.setattr(onnx_graphs, "save_graph", shutil.copyfile)


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of noise in place of the sample, whose rendering is slow, and no process, which would not know of them."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (90, 144, 3), dtype=np.uint8) for _ in range(3)]
    coc = np.tile(np.linspace(-6, 6, 144, dtype=np.float32), (90, 1))
    monkeypatch.setattr(samples, "focus_setting", lambda focus: SimulatedPair(*images, coc))
    monkeypatch.setattr(bench, "run_spec", lambda module, spec, *_: worker.answer(dataclasses.asdict(spec)))


def test_the_choices_are_of_whole_patches_and_have_the_bundles_own() -> None:
    found = choices(448, 112, 32, None, None)
    assert Windows(448, 112) in found
    assert {Windows(448, 0), Windows(448, 32), Windows(448, 224), Windows(896, 96)} <= set(found)
    assert found == sorted(set(found), key=lambda choice: (choice.window, choice.overlap))
    assert all(c.window % 32 == c.overlap % 32 == 0 and c.overlap < c.window for c in {*found} - {Windows(448, 112)})
    assert choices(32, 16, 16, None, None)[0] == Windows(32, 0)
    assert choices(128, 16, 16, [64], [0, 48]) == [Windows(64, 0), Windows(64, 48), Windows(128, 16)]
    with pytest.raises(CheckpointError, match="multiple of CLIP's patch"):
        choices(128, 16, 16, [100], None)


def run(bundle: Bundle, output: Path, *options: str) -> None:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    given = ["--bundle", str(bundle.path), "--backend", "onnxruntime:fp32", "--threads", "1"]
    bench.run(parser.parse_args([*given, "-o", str(output), *options]))


@pytest.mark.usefixtures("small_sample")
def test_the_command_writes_a_report(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in bundle.path.iterdir()}
    given = ["--window", "64", "--overlap", "0", "--shape", "64x128", "--rounds", "2", "--ensemble", "dp-aware"]
    run(bundle, tmp_path, *given)
    report = Report.read(tmp_path / "windows-tiny.json")
    rows = {(row["ensemble"], row["window"], row["overlap"]): row for row in report.data["rows"]}
    counts = {("ens2", 64, 0): 2, ("dp-aware", 64, 0): 2, ("ens2", 64, 16): 3, ("dp-aware", 64, 16): 3}
    assert {place: row["windows"] for place, row in rows.items()} == counts
    # Of a window of 4 x 4 patches CLIP sees 32 for the canvas and 16 for the center view.
    a_patch = 2 * 3 * 16 * 16 * EMBED_DIM / 1e9
    for (ensemble, *_), row in rows.items():
        patches = (32 if ensemble == "dp-aware" else 48) * row["windows"]
        assert row["gflop"] == pytest.approx(patches * a_patch)
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows.values())
    assert {(row["backend"], row["precision"]) for row in rows.values()} == {("onnxruntime", "fp32")}
    for row in rows.values():
        assert set(row["quality"]) == {"near", "far"}
        assert all(0 <= of["balanced_accuracy"] <= 1 and abs(of["spearman"]) <= 1 for of in row["quality"].values())
    text = to_markdown(report)
    assert text in capsys.readouterr().out
    assert "| ens2 | 64, 16 (its own) | 1 | 3 |" in text
    assert "| dp-aware | 64, 16 | 1 | 3 |" in text
    assert before == {path: path.stat().st_mtime_ns for path in bundle.path.iterdir()}
    Bundle.load(bundle.path)


@pytest.mark.usefixtures("small_sample")
def test_clip_may_see_the_pair_reduced(bundle: Bundle, tmp_path: Path) -> None:
    run(bundle, tmp_path, "--window", "64", "--overlap", "0", "--shape", "128x256", "--rounds", "1", "--reduce", "2")
    report = Report.read(tmp_path / "windows-tiny.json")
    rows = {(row["overlap"], row["reduce"]): row for row in report.data["rows"]}
    assert {place: row["windows"] for place, row in rows.items()} == {(0, 1): 8, (0, 2): 2, (16, 1): 15, (16, 2): 3}
    assert rows[0, 1]["gflop"] == pytest.approx(4 * rows[0, 2]["gflop"])
    for (_, reduce), row in rows.items():
        assert all(("gain_db" in of) == (reduce == 1) for of in row["quality"].values())
    assert rows[0, 1]["quality"]["near"]["spearman"] != rows[0, 2]["quality"]["near"]["spearman"]
    lines = to_markdown(report).splitlines()
    assert sum("(its own)" in line for line in lines) == 1
    assert any(line.startswith("| ens2 | 64, 16 (its own) | 1 | 15 |") for line in lines)
    assert any(line.startswith("| ens2 | 64, 16 | 2 | 3 |") and line.endswith("| – |") for line in lines)


def test_rounds_and_processes_that_fail_are_said(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="--rounds above 0, got 0"):
        run(bundle, tmp_path, "--rounds", "0")
    with pytest.raises(BenchmarkError, match=r"windows of 48 px, got none: .*1 thread, got 0"):
        run(bundle, tmp_path, "--window", "48", "--threads", "0")
    assert not list(tmp_path.iterdir())
