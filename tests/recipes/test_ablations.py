"""The configurations of Tables 5, 6 and 7, and the small ablation on the CPU."""

import dataclasses
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from benchmarks.harness.results import Report
from ldp_export.bundling.onnx_graphs import deblur_graph, save_graph
from ldp_export.checkpoint import Checkpoint
from ldp_export.clip import PROMPTS
from ldp_export.data import DataError, PairSample
from ldp_export.evaluation.metrics import psnr
from ldp_export.model import model_from_checkpoint
from ldp_export.network import CONFIGS
from ldp_export.simulation.simulate import SimulatedPair
from ldp_export.training import DataConfig, TrainConfig, read_config, train
from ldp_runtime.stages.blur_map import select_prompts
from models.recipes.ablations import run as ablations
from models.recipes.ablations.report import make_report, markdown, paired
from models.recipes.ablations.rows import DESIGNS, FOLDER, TABLE5, TABLE6, Options
from models.recipes.ablations.scoring import clip_estimator, restore, score_maps, score_photographs
from tests.ldp_export.tiny_checkpoint import make_tiny_checkpoint
from tests.ldp_export.tiny_models import TINY_CONFIG

pytestmark = pytest.mark.usefixtures("own_cache")

ROWS = sorted(path.stem for path in FOLDER.glob("table*.yaml"))
TABLE7 = {
    "table7-nafnet-char": ("no", "char"),
    "table7-nafnet-total": ("no", "total"),
    "table7-bpa-char": ("yes", "char"),
    "table7-bpa-char-bwl": ("yes", "char + bwl"),
    "table7-bpa-char-bal": ("yes", "char + bal"),
    "table7-bpa-total": ("yes", "total"),
}
"""Row -> its labels in the paper's table."""

SIDE = 64


def config_of(row: str) -> TrainConfig:
    return read_config(FOLDER / f"{row}.yaml")


def test_every_row_of_the_tables_has_its_file() -> None:
    rows = [f"table5-{f}-{n}" for f in ("blur-aware", "dp-aware") for n in ("1", "2", "3", "4", "ens1")]
    assert sorted([*rows, "table5-ens2", *TABLE6, *TABLE7]) == ROWS


@pytest.mark.parametrize("row", ROWS)
def test_a_row_changes_what_it_is_about_and_nothing_else(row: str) -> None:
    config, base = config_of(row), config_of("base")
    assert config.name == row
    network = config.network_config()
    assert network is not None
    assert dataclasses.replace(network, prior="bpa") == CONFIGS["small"]
    assert [(stage.steps, stage.lr, stage.final_lr) for stage in config.stages] == [
        (5_000_000, 2e-4, 1e-6),
        (1_000_000, 2e-4, 1e-6),
    ]
    assert config.stages[0] == base.stages[0]
    same = ("data", "validation", "clip", "init", "crop", "batch", "seed", "betas", "weight_decay", "ema")
    assert all(getattr(config, key) == getattr(base, key) for key in same)
    if not row.startswith("table5"):
        assert config.ensemble is None
    else:
        assert (network.prior, config.stages) == ("bpa", base.stages)


def test_priors_of_table_6() -> None:
    priors = {label: config_of(row).network_config().prior for row, label in TABLE6.items()}  # type: ignore[union-attr]
    assert priors == {"NAFNet": "none", "Concat": "concat", "SA": "sa", "Concat + SA": "concat+sa", "BPA block": "bpa"}


def test_prompts_of_table_5() -> None:
    def chosen(row: str) -> list[int]:
        ensemble = config_of(row).ensemble
        assert ensemble is not None
        return select_prompts(PROMPTS, ensemble)

    for k, prompt in enumerate(PROMPTS):
        assert chosen(f"table5-{prompt.format}-{k % 4 + 1}") == [k]
    assert chosen("table5-blur-aware-ens1") == [0, 1, 2, 3]
    assert chosen("table5-dp-aware-ens1") == [4, 5, 6, 7]
    assert chosen("table5-ens2") == list(range(8))


def test_losses_of_table_7() -> None:
    weights = {"char": (1.0, 0.0, 0.0), "char + bwl": (1.0, 0.0, 0.2), "char + bal": (1.0, 0.1, 0.0)}
    weights["total"] = (1.0, 0.1, 0.2)
    for row, (bpa, losses) in TABLE7.items():
        config = config_of(row)
        chosen = config.stages[1].losses
        assert (chosen.charbonnier, chosen.blur_aware, chosen.blur_weighting) == weights[losses]
        network = config.network_config()
        assert network is not None
        assert network.prior == ("bpa" if bpa == "yes" else "none")


def write_shards(folder: Path, scenes: int = 2) -> Path:
    """Three shards of scenes, two of them held out, whose views differ by a shift that grows to the right."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        target = np.repeat(np.repeat(rng.integers(0, 256, (scenes, 16, 16, 3)), 4, 1), 4, 2).astype(np.uint8)
        disparity = np.tile(np.linspace(0, 4, SIDE), (scenes, SIDE, 1)).astype(np.float16)
        columns = np.clip(np.arange(SIDE) + np.linspace(0, 4, SIDE).astype(int), 0, SIDE - 1)
        np.savez(
            folder / f"scenes-{number:04}.npz",
            left=target,
            right=target[:, :, columns],
            target=np.roll(target, 1, 2),
            coc=disparity,
            disparity=disparity,
        )
    return folder


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    folder = tmp_path_factory.mktemp("ablations")
    return Options(
        write_shards(folder / "scenes"),
        make_tiny_checkpoint(folder / "clip"),
        folder / "work",
        steps=2,
        design_steps=dict.fromkeys(DESIGNS, 1),
        crop=32,
        batch=2,
    )


def test_all_rows_start_from_the_checkpoint_without_its_attention(options: Options) -> None:
    pair, logits = torch.rand(1, 6, 32, 32), torch.randn(1, 1, 2, 2)
    given = Checkpoint.open(options.checkpoint).network()
    for block in given.bpa.values():
        torch.nn.init.zeros_(block.beta)
        torch.nn.init.zeros_(block.gamma)
    with torch.inference_mode():
        expected = given(pair, logits)
        assert (expected - (pair[:, :3] + pair[:, 3:]) / 2).abs().max() > 0.01, "the network does something"
        for prior in ("none", "concat", "bpa"):
            options.write_start(prior, 7)
            start = Checkpoint.open(options.start(prior, 7)).network()
            assert start.config.prior == prior
            torch.testing.assert_close(start(pair, logits), expected)


@pytest.mark.train
def test_the_small_ablation_runs_and_reports(options: Options) -> None:
    rows = ("table6-nafnet", "table6-bpa")
    runs = [ablations.run_row(options, row, 0) for row in rows]
    for run, row in zip(runs, rows, strict=True):
        folder = options.folder(row, 0)
        assert json.loads((folder / "result.json").read_text(encoding="utf-8")) == run
        assert Checkpoint.open(folder / "checkpoint").config().prior == run["config"]["network"]["prior"]
        assert all(5 < scores["psnr"] < 60 for scores in run["scenes"].values())
    assert runs[1]["parameters"] > runs[0]["parameters"]
    assert set(runs[0]["scenes"]) == {"center", "blank"}
    assert set(runs[1]["scenes"]) == {"center", "true", "clip", "blank"}

    state = options.folder("table6-bpa", 0) / "result.json"
    before = state.stat().st_mtime_ns
    assert ablations.run_row(options, "table6-bpa", 0) == runs[1]
    assert state.stat().st_mtime_ns == before, "a run that ended is not repeated"
    with pytest.raises(ablations.AblationError, match="holds a run with other settings"):
        ablations.run_row(dataclasses.replace(options, steps=4), "table6-bpa", 0)

    report = make_report(runs, [], options)
    text = markdown(Report.from_json(json.loads(json.dumps(report.to_json()))))
    difference = runs[1]["scenes"]["clip"]["psnr"] - runs[0]["scenes"]["blank"]["psnr"]
    gain = runs[1]["scenes"]["clip"]["psnr"] - runs[1]["scenes"]["center"]["psnr"]
    assert f"| BPA block | {runs[1]['parameters']:,} | 0 | {gain:+.3f} |" in text
    assert f"| {difference:+.3f} | {difference:+.3f} |" in text
    assert "trained on" not in json.dumps(report.data["options"])
    assert report.data["options"]["trained_on"] == 2
    assert str(options.work) not in json.dumps(report.to_json()) + text


def test_real_pairs_are_scored_with_and_without_the_blur_map(options: Options) -> None:
    rng = np.random.default_rng(0)
    views = [rng.integers(0, 65536, (40, 50, 3), dtype=np.uint16) for _ in range(3)]

    class One(ablations._Motorcycle):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> PairSample:
            return PairSample("one", *views)

        def names(self) -> tuple[str, ...]:
            return ("one",)

    checkpoint = Checkpoint.open(options.checkpoint)
    network, estimator = checkpoint.network(), clip_estimator(checkpoint, checkpoint.config().multiple)
    (scores,) = score_photographs(network, One(), estimator).values()
    blank = np.zeros(tuple(side // estimator.patch for side in estimator.padding.padded_size(40, 50)), np.float32)
    image = restore(network, One()[0], blank, estimator.padding)
    assert (image.dtype, image.shape) == (np.uint16, views[0].shape)
    assert scores["blank"]["psnr"] == pytest.approx(psnr(image, views[2], data_range=65535), abs=1e-3)
    assert scores["clip"]["psnr"] != scores["blank"]["psnr"]
    assert scores["center"]["matched_psnr"] != scores["center"]["psnr"]


def test_the_report_has_the_gains_on_real_pairs_by_seed(options: Options) -> None:
    scenes = {"center": 20.0, "true": 22.0, "clip": 22.0, "blank": 21.0}
    runs = [
        {
            "row": "table6-bpa",
            "seed": seed,
            "scenes": {what: {"psnr": db, "ssim": 0.5, "psnr_blurred": db} for what, db in scenes.items()},
            "parameters": 7,
            "seconds": 1.0,
            "cpu_seconds": None,
            "photographs": {
                "canon": {
                    what: {"psnr": db + seed, "matched_psnr": db + 1}
                    for what, db in (("center", 20.0 - seed), ("clip", 21.0), ("blank", 20.5))
                }
            },
        }
        for seed in (0, 2)
    ]
    text = markdown(make_report(runs, [], options))
    assert "| BPA block | canon | CLIP's | 0, 2 | +2.00 ± 1.41 | +2.00 ± 1.41 |" in text
    assert "| BPA block | canon | blank | 0, 2 | +1.50 ± 1.41 | +1.50 ± 1.41 |" in text
    assert "1 to 1 s beside other load" in text


@pytest.mark.train
def test_prompts_are_scored_without_training(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    views = [np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for seed in range(3)]
    coc = np.tile(np.linspace(-4, 4, SIDE, dtype=np.float32), (SIDE, 1))
    monkeypatch.setattr(ablations, "focus_setting", lambda focus: SimulatedPair(*views, coc))  # the sample's is slow
    rows = ablations.score_prompts(options)
    assert [row["label"] for row in rows] == list(TABLE5)
    assert len({row["scenes"]["rank_disagreement"] for row in rows}) == len(rows)
    assert "| Ens.2 |" in markdown(make_report([], rows, options))


def test_scores_of_blur_maps() -> None:
    disparity = np.zeros((4, 8), np.float32)
    disparity[:, 4:] = -3
    disparity[0, 0] = np.nan

    class One(ablations._Motorcycle):
        def __getitem__(self, index: int) -> PairSample:
            view = np.zeros((4, 8, 3), np.uint8)
            return PairSample("one", view, view, disparity=disparity)

    perfect = np.array([[-9, -9, 9, 9], [-9, -9, 9, 9]], np.float32)
    scores = score_maps(One(), [perfect], 2)
    assert scores["accuracy"] == scores["balanced_accuracy"] == 1
    assert scores["rank_disagreement"] < 0.2
    blurred = np.full((2, 4), 9, np.float32)
    blurred[0, 0] = 8
    scores = score_maps(One(), [blurred], 2)
    assert scores["accuracy"] == pytest.approx(16 / 31)
    assert scores["balanced_accuracy"] == 0.5


def test_paired_differences_against_students_t() -> None:
    found = paired([0.1, 0.2, 0.6])
    assert found["mean"] == pytest.approx(0.3)
    assert found["deviation"] == pytest.approx(0.2645751)
    assert found["half_width"] == pytest.approx(4.302653 * 0.2645751 / 3**0.5, rel=1e-5)
    assert paired([0.4]) == {"mean": 0.4, "deviation": None, "half_width": None}


@pytest.mark.slow
@pytest.mark.train
@pytest.mark.parametrize("row", ROWS)
def test_each_row_builds_trains_and_exports(row: str, options: Options, tmp_path: Path) -> None:
    config = config_of(row)
    network = config.network_config()
    assert network is not None
    small = msgspec.structs.replace(
        config,
        network=dataclasses.replace(TINY_CONFIG, prior=network.prior).to_dict(),
        clip=str(options.checkpoint),
        data=(DataConfig("simulated", str(options.scenes)),),
        validation=None,
        stages=tuple(msgspec.structs.replace(stage, steps=2) for stage in config.stages),
        crop=32,
        batch=2,
        device="cpu",
        workers=0,
        threads=1,
    )
    checkpoint = Checkpoint.open(train(small, tmp_path / "run"))
    model = model_from_checkpoint(checkpoint)
    assert model.network.config.prior == network.prior  # type: ignore[union-attr]
    assert model.network.config.ensemble == (network.ensemble if config.ensemble is None else config.ensemble)
    for half in (False, True):
        save_graph(deblur_graph(model.network, model.multiple, half=half), tmp_path / f"{half}.onnx")
    with torch.inference_mode():
        restored = model.network(torch.rand(1, 6, 32, 32), torch.zeros(1, 1, 2, 2))
    assert torch.isfinite(restored).all()


def test_without_scenes_the_ablation_says_so(options: Options, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        ablations.score_prompts(dataclasses.replace(options, scenes=tmp_path))
    assert ablations.main(["--scenes", str(tmp_path), "--work", str(tmp_path), "--output", str(tmp_path)]) == 2
