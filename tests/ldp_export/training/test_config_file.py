from pathlib import Path

import pytest

from ldp_export.network import CONFIGS
from ldp_export.training import TrainingError, read_config


def test_overrides(path: Path) -> None:
    config = read_config(path, ["stages.0.steps=20", "stages.1.losses.blur_weighting=0.2", "network=nano", "ema=0.9"])
    assert config.stages[0].steps == 20
    assert (config.stages[1].losses.blur_aware, config.stages[1].losses.blur_weighting) == (0.1, 0.2)
    assert config.network_config() == CONFIGS["nano"]
    validation = read_config(
        path, ["validation.data=[{dataset: simulated, folder: x}]", "validation.crops=3"]
    ).validation
    assert validation is not None
    assert validation.crops == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.1.folder=x", "--set data.1.folder: expected a number from 0 to 0, got '1'"),
        ("name.first=x", "--set name.first: expected keys or a list before first, got 'a'"),
        ("batch", "expected --set KEY=VALUE, got 'batch'"),
        ("batch=[", "--set batch: expected YAML, got while parsing a flow node"),
        ("name=2026-13-13", "--set name: expected YAML, got month must be in 1..12"),
        ("name=2026-12-12", 'name: expected a string, got "datetime.date(2026, 12, 12)"'),
        ("licences={1: x}", "licences: expected a string, got 1"),
        ("blur_range=0", "blur_range: expected"),
    ],
)
def test_overrides_that_do_not_fit(path: Path, override: str, message: str) -> None:
    with pytest.raises(TrainingError) as caught:
        read_config(path, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "rate"), [("2e-4", 2e-4), ("2.e-4", 2e-4), ("2.0E-4", 2e-4), ("0.1", 0.1)])
def test_numbers_are_those_of_yaml_1_2(path: Path, text: str, rate: float) -> None:
    assert read_config(path, [f"stages.0.lr={text}"]).stages[0].lr == rate


def test_a_file_extends_another(path: Path) -> None:
    (path.parent / "more.yaml").write_text("extends: run.yaml\nname: b\nstages: {1: {losses: {blur_aware: 0.2}}}\n")
    config = read_config(path.parent / "more.yaml")
    assert (config.name, config.stages[0].steps, config.stages[1].hours) == ("b", 10, 0.5)
    assert (config.stages[1].losses.charbonnier, config.stages[1].losses.blur_aware) == (1.0, 0.2)
    path.write_text("extends: more.yaml\n")
    with pytest.raises(TrainingError, match="which extends this one"):
        read_config(path)
    path.write_text("extends: [more.yaml]\n")
    with pytest.raises(TrainingError, match="expected the name of a file"):
        read_config(path)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "3"])
def test_what_is_no_configuration(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=r"run\.yaml: expected"):
        read_config(path)
    with pytest.raises(TrainingError, match="cannot be read"):
        read_config(tmp_path / "missing.yaml")
