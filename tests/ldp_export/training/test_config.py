import dataclasses
from pathlib import Path

import pytest

from ldp_export.cli import main
from ldp_export.network import CONFIGS
from ldp_export.training import TrainingError, read_config
from ldp_export.training.config import changes

RECIPES = Path(__file__).parents[3] / "models" / "recipes"


def test_a_configuration_is_read_and_goes_round(path: Path) -> None:
    config = read_config(path)
    assert config.network_config() == dataclasses.replace(CONFIGS["small"], name="other", bpa=())
    assert config.stages[0].lr == 2e-4  # which YAML 1.1 reads as text
    assert (config.stages[0].steps, config.stages[1].hours) == (10, 0.5)
    assert config.stages[1].losses.blur_aware == 0.1
    assert config.betas == (0.9, 0.95)
    assert config.data[0].split == "train"
    assert config.to_dict()["stages"][1]["losses"]["denominator"] == "target"


def test_what_differs_is_listed_by_key(path: Path) -> None:
    before, after = (read_config(path, [f"stages.0.steps={steps}"]).to_dict() for steps in (10, 20))
    assert changes(before, after) == {"stages.0.steps": (10, 20)}


def test_hours_are_shared_as_the_stages_share_theirs(path: Path) -> None:
    config = read_config(path, ["stages.1.hours=null", "stages.1.steps=30"]).with_hours(2)
    assert [(stage.steps, stage.hours) for stage in config.stages] == [(None, 0.5), (None, 1.5)]
    with pytest.raises(TrainingError, match="got both"):
        read_config(path).with_hours(2)
    with pytest.raises(TrainingError, match="more than 0 hours"):
        config.with_hours(0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.rate=1", "stages.0.rate is unknown; expected steps, hours, lr"),
        ("stages.0.lr=fast", 'stages.0.lr: expected a number, got "fast"'),
        ("stages.0.lr=-1", "stages.0.lr: expected a number > 0.0, got -1"),
        ("stages.0.final_lr=0.1", "stages.0.lr: expected final_lr <= lr < 1, got 0.0002"),
        ("stages.0.hours=.inf", "stages.0.hours: expected a finite number, got Infinity"),
        ("ema=.nan", "ema: expected a number >= 0.0, got NaN"),
        ("stages.0.steps=1.5", "stages.0.steps: expected an integer or null, got 1.5"),
        ("stages.0.hours=1", 'stages.0.steps: expected either steps or hours, got "both"'),
        ("stages.0.losses.charbonnier=0", "stages.0.losses: expected a weight above 0"),
        ("stages.0.losses.floor=0", "stages.0.losses.floor: expected a number > 0.0, got 0"),
        ("stages.1.losses.deviation_window=4", "losses.deviation_window: expected an odd number of px, got 4"),
        ("stages.1.losses.blur_aware_form=hard", 'blur_aware_form: expected one of softplus, raw, got "hard"'),
        ("stages=[]", "stages: expected a non-empty list, got []"),
        ("data.0={dataset: simulated}", "data.0.folder is missing"),
        ("network.base=huge", 'network.base: expected one of nano, small, large, fast, fast-large, got "huge"'),
        ("network.wide=3", "network: unknown keys in the network configuration: wide"),
        ("network=null", "network: expected a network, or `init`, got null"),
        ("precision=int8", 'precision: expected one of fp32, bf16, fp16, got "int8"'),
        ("betas=[0.9]", "betas: expected a list of length 2, got [0.9]"),
        ("flip=1", "flip: expected true or false, got 1"),
        ("ensemble=ens3", "ensemble: expected one of ens2,"),
        ("ema=1", "ema: expected a number < 1.0, got 1"),
        ("batch=0", "batch: expected an integer >= 1, got 0"),
        ("seed=true", "seed: expected an integer, got true"),
        ("name=3", "name: expected a string, got 3"),
    ],
)
def test_errors_name_the_key(
    path: Path, override: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", str(path), "-o", str(tmp_path / "run"), "--set", override]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_is_valid(path: Path) -> None:
    config = read_config(path)
    assert config.validation is not None
    assert config.network is not None or config.init is not None


def test_the_paper_s_recipes_follow_the_paper() -> None:
    for name in ("small", "large"):
        config = read_config(RECIPES / "paper" / f"{name}.yaml")
        assert config.network_config() == CONFIGS[name]
        assert [stage.steps for stage in config.stages] == [5_000_000, 1_000_000]
        assert {(stage.lr, stage.final_lr) for stage in config.stages} == {(2e-4, 1e-6)}
        first, second = (stage.losses for stage in config.stages)
        assert (first.charbonnier, first.blur_aware, first.blur_weighting) == (1, 0, 0)
        assert (second.charbonnier, second.blur_aware, second.blur_weighting) == (1, 0.1, 0.2)
        assert (config.weight_decay, config.betas) == (0.0, (0.9, 0.999))  # Adam
