import csv
import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldp_export.cli import main
from ldp_export.data import PairSample, open_dataset
from ldp_export.evaluation.metrics import affine_invariant_mae, rank_disagreement
from ldp_export.evaluation.photographs import aligned_psnr, matched_psnr, register_target, sharpness, unit_range
from ldp_export.evaluation.report import BLUR, GAINS, summarise
from ldp_export.evaluation.score import score_dataset, score_pair
from ldp_export.evaluation.sheets import ROWS_A_SHEET, contact_row
from ldp_runtime.errors import ImageError
from ldp_runtime.images.photo import read_photo
from ldp_runtime.images.quality import center_view
from ldp_runtime.result import Result
from tests.ldp_export.data.miniatures import (
    make_dpd_disp,
    make_scenes,
    noise,
    write_image,
)

H, W = 32, 48


class FakeRestorer:
    """Adds one to the left view; its blur map is a ramp."""

    backend, precision = "fake", "fp32"

    def __call__(self, left: np.ndarray, right: np.ndarray) -> Result:
        h, w = left.shape[:2]
        blur_map = np.broadcast_to(np.linspace(0.1, 0.9, w, dtype=np.float32), (h, w))
        return Result(
            restored=left + np.asarray(1, left.dtype),
            blur_map=blur_map,
            blur_logits=np.zeros((1, 1), np.float32),
            timings={},
            backend="fake",
            precision="fp32",
        )


def make_sample(**fields: Any) -> PairSample:
    target = np.full((H, W, 3), 100, np.uint8)
    return PairSample("a", target - np.uint8(4), target - np.uint8(8), target, **fields)


def test_a_model_without_a_blur_map_gets_no_scores_of_it() -> None:
    class Blind(FakeRestorer):
        def __call__(self, left: np.ndarray, right: np.ndarray) -> Result:
            result = super().__call__(left, right)
            result._blur_map = None
            return result

    disparity = np.broadcast_to(np.linspace(0, 4, W, dtype=np.float32), (H, W))
    seen, blind = (score_pair(restorer(), make_sample(disparity=disparity)) for restorer in (FakeRestorer, Blind))
    assert blind[0].values.keys() == seen[0].values.keys() - set(BLUR) < seen[0].values.keys()
    rows = [contact_row(make_sample(), result, None, None) for _, result in (seen, blind)]
    assert rows[1].shape[1] < rows[0].shape[1]


def test_restoration_scores_by_hand() -> None:
    score, result = score_pair(FakeRestorer(), make_sample())
    assert (result.restored == 97).all()
    values = score.values
    assert values["psnr"] == pytest.approx(20 * math.log10(255 / 3))
    assert values["mae"] == values["mse_rel"] == pytest.approx(3 / 255)
    assert values["center_psnr"] == pytest.approx(20 * math.log10(255 / 6))
    assert values["center_mae"] == pytest.approx(6 / 255)
    assert values["ssim"] > values["center_ssim"]
    assert not set(BLUR) & set(values), "nothing is known of the blur"
    assert score.pixels == (0, 0, 0, 0)


def test_blur_scores_by_hand() -> None:
    """The ramp says blurred from column 24 on; in truth it is from column 36 on, and the last row is unknown."""
    disparity = np.where(np.arange(W) < 36, 0.5, -2.0).astype(np.float32) * np.ones((H, 1), np.float32)
    disparity[-1] = np.nan
    score, result = score_pair(FakeRestorer(), make_sample(disparity=disparity))
    rows = H - 1
    assert score.pixels == (12 * rows, 12 * rows, 24 * rows, 36 * rows)
    assert score.values["blur_map_accuracy"] == pytest.approx(36 / 48)
    logits = np.log(result.blur_map / (1 - result.blur_map))
    assert score.values["ai1"] == pytest.approx(affine_invariant_mae(logits, np.abs(disparity)), rel=1e-4)
    assert score.values["rank_disagreement"] == pytest.approx(rank_disagreement(logits, np.abs(disparity)), abs=1e-6)
    assert summarise([score])["blur_map_balanced_accuracy"] == pytest.approx((1 + 24 / 36) / 2)


def test_a_relative_map_has_no_threshold() -> None:
    relative = np.broadcast_to(np.linspace(1, 0, W, dtype=np.float32) ** 2, (H, W)).copy()
    score, _ = score_pair(FakeRestorer(), make_sample(relative_disparity=relative))
    assert score.values["rank_disagreement"] == pytest.approx(0), "the order counts, not its direction"
    assert 0 < score.values["ai1"] <= score.values["ai2"]
    assert "blur_map_accuracy" not in score.values


def test_a_truth_that_does_not_vary_is_not_ranked() -> None:
    score, _ = score_pair(FakeRestorer(), make_sample(disparity=np.zeros((H, W), np.float32)))
    assert "rank_disagreement" not in score.values and "ai1" not in score.values
    assert score.values["blur_map_accuracy"] == pytest.approx(0.5)


def test_16_bits_are_scored_at_16_bits() -> None:
    target = noise((H, W, 3), 1, np.uint16) // 2
    sample = PairSample("a", target + np.uint16(256), target + np.uint16(256), target)
    score, _ = score_pair(FakeRestorer(), sample)
    assert score.values["psnr"] == pytest.approx(20 * math.log10(65535 / 257))
    assert score.values["center_psnr"] == pytest.approx(20 * math.log10(65535 / 256))


def test_photographs_are_scored_in_other_light_and_without_a_target() -> None:
    target = noise((70, 80, 3), 0)
    sample = PairSample("a", target // 2 + np.uint8(8), target // 2 + np.uint8(4), target)
    score, result = score_pair(FakeRestorer(), sample, photographs=True)
    values = score.values
    picture, truth = (unit_range(image, 255.0) for image in (result.restored, target))
    assert values["matched_psnr"] == matched_psnr(picture, truth)
    assert values["aligned_psnr"] == aligned_psnr(picture, truth)
    registered = register_target(truth, picture)
    assert values["registered_psnr"] == registered.psnr(picture)
    center = unit_range(center_view(sample.left, sample.right), 255.0)
    assert values["center_registered_psnr"] == registered.psnr(center)
    assert values["sharpness"] == sharpness(picture)
    for gain in GAINS:
        name = gain.removesuffix("_gain")
        assert values[gain] == values[name] - values[f"center_{name}"] != 0
    assert set(score_pair(FakeRestorer(), sample)[0].values) == {
        name
        for name in values
        if not any(word in name for word in ("gain", "matched", "aligned", "registered", "sharpness"))
    }
    blind = score_pair(FakeRestorer(), PairSample("a", sample.left, sample.right), photographs=True)[0]
    assert blind.values == {name: values[name] for name in ("sharpness", "center_sharpness")}


def test_grey_photographs_are_scored_on_the_mean_of_the_channels() -> None:
    class Tinted(FakeRestorer):
        def __call__(self, left: np.ndarray, right: np.ndarray) -> Result:
            result = super().__call__(left, right)
            result.restored = np.broadcast_to(np.array([97, 100, 103], np.uint8), left.shape)
            return result

    assert score_pair(Tinted(), make_sample(), photographs=True)[0].values["psnr"] == math.inf
    assert score_pair(Tinted(), make_sample())[0].values["psnr"] == pytest.approx(20 * math.log10(255 / 6**0.5))


def test_the_command_scores_pairs_of_ones_own(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("in/left", "in/right", "in/target", "out/left", "out/right", "out/left-over")):
        write_image(tmp_path / f"photos/{name}.png", noise((24, 32, 3), seed))
    out = tmp_path / "scores"
    assert main(["evaluate", str(tiny_checkpoint), "--data", f"pairs={tmp_path / 'photos'}", "-o", str(out)]) == 0
    names = {f"pairs-test{end}" for end in (".csv", ".json", ".md", "-sheet-01.png")}
    assert {path.name for path in out.iterdir()} == names
    captured = capsys.readouterr()
    assert "ldp-export: warning: pairs: left out" in captured.err and "left-over.png" in captured.err
    assert "warning: pairs: 1 of 2 pairs without a target" in captured.err
    rows = list(csv.DictReader((out / "pairs-test.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["name"] for row in rows] == ["in", "out"]
    gain = float(rows[0]["psnr"]) - float(rows[0]["center_psnr"])
    assert float(rows[0]["psnr_gain"]) == pytest.approx(gain, abs=1e-4)
    assert rows[1]["psnr"] == "" and float(rows[1]["sharpness"]) > 0
    figures = json.loads((out / "pairs-test.json").read_text(encoding="utf-8"))["groups"]["all"]["figures"]
    assert figures["psnr_gain"] == pytest.approx(gain, abs=1e-4)
    assert f"| gain | {gain:+.2f} |" in captured.out and "blur map accuracy" not in captured.out


def test_an_error_names_the_pair(tmp_path: Path) -> None:
    for name in ("left", "right"):
        write_image(tmp_path / f"scene/{name}.png", noise((24, 32, 3), 0))

    class Refusing(FakeRestorer):
        def __call__(self, left: np.ndarray, right: np.ndarray) -> Result:
            raise ImageError("the views are one picture")

    with pytest.raises(ImageError, match="scene: the views are one picture"):
        score_dataset(Refusing(), open_dataset("pairs", tmp_path, "test"), "fake")


def test_contact_sheets_hold_so_many_rows(tmp_path: Path) -> None:
    folder = make_scenes(tmp_path, shards=2, scenes=ROWS_A_SHEET // 2 + 1, size=(10, 14))
    dataset = open_dataset("simulated", folder, "val")
    sheets: dict[int, np.ndarray] = {}
    score_dataset(FakeRestorer(), dataset, "fake", sheet=lambda number, image: sheets.update({number: image}))
    assert list(sheets) == [1, 2]
    assert sheets[1].shape[0] == ROWS_A_SHEET * sheets[2].shape[0] // 2


def test_the_command_scores_a_checkpoint(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = make_scenes(tmp_path / "scenes", scenes=2)
    disp = make_dpd_disp(tmp_path)
    out = tmp_path / "out"
    data = ["--data", f"simulated={scenes}", "--data", f"dpd-disp={disp}", "--threads", "1"]
    assert main(["evaluate", str(tiny_checkpoint), *data, "-o", str(out)]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {
        *(f"simulated-val.{suffix}" for suffix in ("csv", "md", "json")),
        *(f"dpd-disp-test.{suffix}" for suffix in ("csv", "md", "json")),
        "simulated-val-sheet-01.png",
        "dpd-disp-test-sheet-01.png",
    }
    written = (out / "simulated-val.md").read_text(encoding="utf-8")
    assert written in capsys.readouterr().out
    assert "# tiny on simulated, val" in written
    value = json.loads((out / "simulated-val.json").read_text(encoding="utf-8"))
    assert value["backend"].startswith("torch on ") and value["groups"]["all"]["images"] == 4
    assert value["groups"]["all"]["figures"]["center_psnr"] == pytest.approx(20 * math.log10(255 / 4), abs=0.2)
    assert "Section 4.3" in (out / "dpd-disp-test.md").read_text(encoding="utf-8")
    assert read_photo(out / "simulated-val-sheet-01.png").pixels.ndim == 3


@pytest.fixture
def fresh_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The exporter's modules are imported anew, without the packages of the extra ``train``."""

    def ours() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == "ldp_export"]

    for name in ours():
        monkeypatch.delitem(sys.modules, name)
    for name in ("lightning_fabric", "lightning", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    yield
    for name in ours():
        del sys.modules[name]


@pytest.mark.usefixtures("fresh_imports")
def test_scoring_a_checkpoint_needs_nothing_of_the_extra_train(tiny_checkpoint: Path, tmp_path: Path) -> None:
    scenes = make_scenes(tmp_path / "scenes", shards=1)
    fresh = importlib.import_module("ldp_export.cli")
    arguments = ["--data", f"simulated={scenes}", "-o", str(tmp_path / "out")]
    assert fresh.main(["evaluate", str(tiny_checkpoint), *arguments]) == 0
    assert (tmp_path / "out" / "simulated-val.csv").is_file()
    with pytest.raises(ImportError, match="lightning_fabric"):  # the block blocks
        importlib.import_module("ldp_export.training.parallel")


def test_options_that_do_not_fit(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = make_scenes(tmp_path / "scenes", shards=1)
    data = ["--data", f"simulated={scenes}"]
    out = ["-o", str(tmp_path / "out")]
    for arguments, message in (
        (data, "expected -o DIR with --data"),
        (out, "expected --data NAME=DIR with --output"),
        (["--check", "auto"], "expected --data NAME=DIR with --check"),
        (["--split", "val"], "expected --data NAME=DIR with --split"),
        ([*data, *out, "--store"], "expected --store without --data"),
        ([*data, *out, "--json", "a.json"], "expected --json without --data"),
        (["--data", str(scenes), *out], "expected --data NAME=DIR, got"),
        (["--data", f"nothing={scenes}", *out], "expected a data set, one of"),
        ([*data, *out, "--split", "train"], "no shards"),
        ([*data, *out, "--backend", "onnxruntime"], "expected --backend with a bundle"),
        ([*data, *out, "--scale", "1/2"], "expected --scale with a bundle"),
        (["--store"], "expected --store with a bundle"),
        ([*data, *out, "--threads", "0"], "a whole number of at least 1"),
    ):
        assert main(["evaluate", str(tiny_checkpoint), *arguments]) == 2, arguments
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
