from pathlib import Path

import pytest

from benchmarks.harness.results import Report
from ldp_export.checkpoint import Checkpoint
from models.recipes.paper import loss_gradients
from models.recipes.paper.loss_gradients import analyse, held_out_batch, main
from tests.ldp_export.data.miniatures import make_scenes
from tests.ldp_export.tiny_checkpoint import make_tiny_checkpoint


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loss_gradients, "CROP", 32)
    monkeypatch.setenv("LDP_CACHE", str(tmp_path / "cache"))


def test_gradients_are_compared_with_charbonniers(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_tiny_checkpoint(tmp_path / "tiny"))
    scenes = make_scenes(tmp_path / "scenes", shards=2, size=(32, 48))
    data = analyse(checkpoint, held_out_batch(checkpoint, scenes, 3))
    rows = {row["loss"]: row for row in data["rows"]}
    assert rows["Charbonnier"]["times_charbonnier"] == pytest.approx(1)
    assert rows["Charbonnier"]["cosine_to_charbonnier"] == pytest.approx(1, abs=1e-5)
    assert rows["squared error"]["cosine_to_squared_error"] == pytest.approx(1, abs=1e-5)
    # A larger floor makes the loss, and so its gradient, smaller.
    assert rows["blur-weighting, floor 0.1"]["value"] < rows["blur-weighting, floor 0.01"]["value"]
    assert rows["blur-weighting, floor 0.01"]["value"] < rows["blur-weighting"]["value"]
    assert all(0 <= row["densest_percent"] <= 1 for row in rows.values())
    assert data["blur_aware"]["target"] > 0
    small = data["small_deviation"]
    assert 0 <= small["blurred_share"] <= small["share"] <= 1


def test_the_command_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = make_tiny_checkpoint(tmp_path / "tiny")
    scenes = make_scenes(tmp_path / "scenes", shards=1, size=(32, 32))
    options = ["--checkpoint", str(checkpoint), "--crops", "2", "--output", str(tmp_path / "out")]
    assert main(["--scenes", str(scenes), *options]) == 0
    report = Report.read(tmp_path / "out" / "loss_gradients.json")
    assert report.kind == "loss_gradients" and report.data["checkpoint"] == "tiny"
    assert loss_gradients.markdown(report) in capsys.readouterr().out
    assert main(["--scenes", str(tmp_path / "nowhere"), *options]) == 2
    assert "error: simulated: val: no shards" in capsys.readouterr().err
