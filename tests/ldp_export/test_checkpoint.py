import json
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldp_export import checkpoint as checkpoint_module
from ldp_export.checkpoint import Checkpoint, CheckpointError, choose_windows, save_checkpoint
from ldp_export.clip import PROMPTS, load_clip
from ldp_export.network import LDPNet
from ldp_export.network.randomise import randomise
from ldp_runtime.bundle.manifest import Prompt
from ldp_runtime.errors import LDPError
from tests.ldp_export.tiny_models import TINY_CLIP, TINY_CONFIG

CALIBRATED = [Prompt(p.text, p.format, 20.0 + i, (-1) ** i * 0.5) for i, p in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_clip_file: Path) -> Path:
    path = tmp_path_factory.mktemp("saved") / "checkpoint"
    save_checkpoint(
        path,
        config=TINY_CONFIG,
        network=randomise(LDPNet(TINY_CONFIG)).state_dict(),
        clip_config={**TINY_CLIP, "window": 64, "overlap": 32},
        clip=load_clip(str(tiny_clip_file), seed=5).model.state_dict(),
        prompts=CALIBRATED,
        training={"seed": 1, "licences": {"weights": "Apache-2.0", "data": ["CC0-1.0"]}},
    )
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "checkpoint")


def test_what_is_saved_comes_back(folder: Path, tiny_clip_file: Path) -> None:
    opened = Checkpoint.open(folder)
    assert opened.config() == TINY_CONFIG
    expected = randomise(LDPNet(TINY_CONFIG)).state_dict()
    network = opened.network()
    assert not network.training
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())
    clip, other = opened.clip(), load_clip(str(tiny_clip_file), seed=6)
    weights = [c.encoder.visual.conv1.weight for c in (clip, load_clip(str(tiny_clip_file), seed=5), other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert opened.prompts() == tuple(CALIBRATED)
    assert opened.windows(16) == checkpoint_module.Windows(64, 32)
    assert opened.training()["seed"] == 1
    assert opened.blur_range() is None
    assert sorted(p.name for p in folder.iterdir()) == [
        "calibration.json", "clip.json", "clip.safetensors", "deblur.safetensors", "network.json", "training.json",
    ]  # fmt: skip
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_weights_that_do_not_fit_are_listed(folder: Path) -> None:
    state = load_file(folder / "deblur.safetensors")
    state["intro.extra"] = torch.zeros(1)
    del state["ending.bias"]
    state["intro.bias"] = torch.zeros(3)
    save_file(state, folder / "deblur.safetensors")
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder).network()
    for part in ("missing ending.bias", "unknown intro.extra", "of another shape intro.bias", "deblur.safetensors"):
        assert part in str(caught.value)


def test_saving_weights_that_do_not_fit_leaves_the_old_ones(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match="missing"):
        save_checkpoint(
            folder, config=TINY_CONFIG, network={}, clip_config=TINY_CLIP, clip=None, prompts=CALIBRATED, training={}
        )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "content", "call", "says"),
    [
        ("network.json", "{", "config", "expected JSON"),
        ("network.json", "[]", "config", "expected a JSON object"),
        ("network.json", '{"colour": 1}', "config", "colour"),
        ("deblur.safetensors", "nonsense", "network", "expected safetensors"),
        ("clip.safetensors", "nonsense", "clip", "clip.safetensors"),
        ("training.json", "1", "training", "expected a JSON object"),
        ("calibration.json", "[]", "prompts", "8 prompts"),
    ],
)
def test_damaged_parts(folder: Path, name: str, content: str, call: str, says: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(LDPError, match=says) as caught:
        getattr(Checkpoint.open(folder), call)()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "call", "says"),
    [
        ("network.json", "config", "network.json"),
        ("deblur.safetensors", "network", "deblur.safetensors"),
        ("calibration.json", "prompts", "ldp-export calibrate"),
        ("clip.safetensors", "clip", "pretrained tag"),
    ],
)
def test_missing_parts(folder: Path, name: str, call: str, says: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=says):
        getattr(Checkpoint.open(folder), call)()


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"clip\.json"):
        Checkpoint.open(tmp_path)


def test_a_folder_with_clip_alone_can_be_calibrated(folder: Path) -> None:
    for name in ("network.json", "deblur.safetensors", "calibration.json", "training.json"):
        (folder / name).unlink()
    opened = Checkpoint.open(folder)
    assert opened.clip().weights == "clip.safetensors"
    assert opened.training() == {}
    opened.write_prompts(CALIBRATED)
    assert opened.prompts() == tuple(CALIBRATED)


def test_clip_by_the_name_of_its_architecture(tmp_path: Path) -> None:
    (tmp_path / "clip.json").write_text('{"architecture": "no-such-clip", "weights": "openai"}')
    with pytest.raises(LDPError, match="unknown CLIP architecture no-such-clip"):
        Checkpoint.open(tmp_path).clip()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"text": "Something else."}, "expected the 8 prompts of Table 4 in its order"),
        ({"format": "dp-aware"}, "expected the 8 prompts of Table 4 in its order"),
        ({"offset": "1"}, r"prompts\[1\].offset: expected a number, got \"1\""),
        ({"temperature": 0.0}, "expected temperatures other than zero"),
        ({"temperature": float("nan")}, r"prompts\[1\].temperature: expected a number >= "),
        ({"more": 1}, r"prompts\[1\].more is unknown; expected text, format, offset, temperature"),
    ],
)
def test_a_calibration_must_be_that_of_table_4(folder: Path, change: dict[str, object], problem: str) -> None:
    values = [msgspec.structs.asdict(prompt) for prompt in CALIBRATED]
    values[1] |= change
    (folder / "calibration.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=problem):
        Checkpoint.open(folder).prompts()


def test_windows() -> None:
    assert choose_windows(32) == choose_windows(14) == checkpoint_module.Windows(224, 0)
    assert choose_windows(15).window == 210
    assert choose_windows(16, 128, 16) == checkpoint_module.Windows(128, 16)
    assert choose_windows(16, 16) == checkpoint_module.Windows(16, 0)
    assert choose_windows(16, 16, 0) == checkpoint_module.Windows(16, 0)
    for window, overlap in ((100, None), (0, None), (64, 64), (64, 49), (64, -1)):
        with pytest.raises(CheckpointError):
            choose_windows(16, window, overlap)


@pytest.mark.parametrize("value", [0, -3, "20", 2000])
def test_a_blur_range_that_is_none(folder: Path, value: object) -> None:
    path = folder / "training.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "blur_range": 20}))
    assert Checkpoint.open(folder).blur_range() == 20
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "blur_range": value}))
    with pytest.raises(CheckpointError, match=r"training\.json: blur_range: expected .*, got"):
        Checkpoint.open(folder).blur_range()
