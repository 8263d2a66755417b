import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from ldp_export.checkpoint import Checkpoint, save_checkpoint
from ldp_export.clip import PROMPTS, load_clip
from ldp_export.evaluation.estimators import BlurEstimator
from ldp_export.network import LDPNet
from ldp_export.network.randomise import randomise_network
from ldp_export.training import (
    DataConfig,
    StageConfig,
    TrainConfig,
    TrainingError,
    ValidationConfig,
    loop,
    optimisation,
    saving,
    train,
)
from ldp_export.training.losses import LossConfig
from ldp_export.training.optimisation import Learner
from ldp_runtime.bundle.manifest import Prompt
from ldp_runtime.errors import LDPError
from tests.ldp_export.tiny_models import TINY_CLIP, TINY_CONFIG

pytestmark = [pytest.mark.train, pytest.mark.usefixtures("own_cache")]

PROCESSES = 2
STEPS = (4, 3)
SAME = 5e-5
"""Weights that were computed in another order of sums differ by less; training moves them much further."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_clip_file: Path) -> TrainConfig:
    """Seven steps of both stages on two shards of tiny scenes, from random weights."""
    folder = tmp_path_factory.mktemp("training")
    save_checkpoint(
        folder / "start",
        config=TINY_CONFIG,
        network=randomise_network(LDPNet(TINY_CONFIG), 1).state_dict(),
        clip_config={**TINY_CLIP, "window": 64, "overlap": 16},
        clip=load_clip(str(tiny_clip_file), seed=5).model.state_dict(),
        prompts=[Prompt(p.text, p.format, 0.0, 5.0) for p in PROMPTS],
        training={
            "name": "start",
            "blur_range": 7.5,
            "licences": {"weights": "Apache-2.0", "data": ["CC0-1.0"]},
            "clip": {"seed": 5},
        },
    )
    rng = np.random.default_rng(0)
    for shard in range(4):  # the first two are held out
        target = np.kron(rng.integers(0, 256, (3, 12, 12, 3)), np.ones((1, 4, 4, 1))).astype(np.uint8)
        views = {"left": np.roll(target, -1, 2), "right": np.roll(target, 1, 2), "target": target}
        fields = {name: np.ones((3, 48, 48), np.float16) for name in ("coc", "disparity")}
        np.savez(folder / f"scenes-{shard:04d}.npz", **views, **fields)
    total = LossConfig(blur_aware=0.1, blur_weighting=0.2)
    return TrainConfig(
        name="tiny",
        init=str(folder / "start"),
        data=(DataConfig("simulated", str(folder)),),
        validation=ValidationConfig((DataConfig("simulated", str(folder), "val"),), every=3, crops=5, images=2),
        stages=(StageConfig(steps=STEPS[0], lr=1e-3, warmup=2), StageConfig(steps=STEPS[1], lr=1e-3, losses=total)),
        crop=32,
        batch=4,
        precision="fp32",
        weight_decay=1e-3,
        clip_gradient=0.3,
        permute_channels=True,
        device="cpu",
        threads=1,
        log_every=1,
        save_every=2,
    )


@pytest.fixture(scope="module")
def finished(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(config, folder) == folder / "checkpoint"
    return folder


def _state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "train.state.pt", weights_only=True)
    return state


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.log.jsonl").read_text(encoding="utf-8").splitlines()]


def _furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


def test_a_run_leaves_a_checkpoint_with_provenance(config: TrainConfig, finished: Path) -> None:
    opened = Checkpoint.open(finished / "checkpoint")
    start = Checkpoint.open(str(config.init))
    average, net = load_file(finished / "checkpoint" / "deblur.safetensors"), _state(finished)["net"]
    assert _furthest(dict(opened.network().state_dict()), average) == 0
    assert _furthest(average, net) > 0
    assert _furthest(average, dict(start.network().state_dict())) > 20 * SAME
    assert opened.prompts() == start.prompts()
    assert opened.windows(16) == start.windows(16)
    training = opened.training()
    assert training["name"] == "tiny"
    assert training["licences"]["weights"] == "Apache-2.0"
    assert training["clip"] == {"seed": 5}
    assert training["blur_range"] == 7.5, "that of the start, where the run names none"
    assert training["init"]["name"] == "start"
    deblur = training["deblur"]
    assert (deblur["complete"], deblur["steps"], deblur["changes"]) == (True, 7, [])
    assert deblur["data"] == [{"dataset": "simulated", "split": "train", "pairs": 6}]
    assert [stage["steps"] for stage in deblur["stages"]] == [4, 3]
    assert deblur["stages"][1]["losses"] == {"charbonnier": 1.0, "blur_aware": 0.1, "blur_weighting": 0.2}
    assert deblur["config"]["seed"] == config.seed
    assert deblur["validation"]["data"][0]["pairs"] == 6


def test_each_stage_and_the_best_are_kept(finished: Path) -> None:
    folders = [finished / name for name in ("stages/1", "stages/2", "best", "checkpoint")]
    first, second, best, last = (Checkpoint.open(folder) for folder in folders)
    assert [(c.training()["deblur"]["steps"], c.training()["deblur"]["complete"]) for c in (first, second, last)] == [
        (4, False),
        (7, True),
        (7, True),
    ]
    weights = {c.path.name: dict(c.network().state_dict()) for c in (first, second, best, last)}
    assert _furthest(weights["2"], weights["checkpoint"]) == 0
    assert _furthest(weights["1"], weights["2"]) > 0
    validated = {record["step"]: record["restored_db"] for record in _records(finished) if "restored_db" in record}
    step = best.training()["deblur"]["steps"]
    assert validated[step] == max(validated.values()) == best.training()["deblur"]["validation"]["restored_db"]


def test_the_log_has_every_step_and_the_pictures(finished: Path) -> None:
    records = _records(finished)
    steps = [record["step"] for record in records if "loss" in record]
    assert steps == [1, 2, 3, 4, 5, 6, 7]
    assert [record["stage"] for record in records if "loss" in record] == [1, 1, 1, 1, 2, 2, 2]
    assert {"charbonnier", "blur_aware", "blur_weighting", "gradient_norm", "lr", "patches_s"} <= records[-2].keys()
    assert [record["step"] for record in records if "restored_db" in record] == [3, 4, 6, 7]
    scores = EventAccumulator(str(finished)).Reload()
    assert [event.step for event in scores.Scalars("training/loss")] == [1, 2, 3, 4, 5, 6, 7]
    assert scores.Tags()["images"] == [f"crop {i}: center, restored, target, blur map" for i in range(2)]
    picture = scores.Images("crop 0: center, restored, target, blur map")[-1]
    assert (picture.width, picture.height, picture.step) == (4 * 32, 32, 7)


def test_a_finished_run_stays_as_it_is(config: TrainConfig, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    train(config, tmp_path / "run")
    assert _records(tmp_path / "run") == _records(finished)
    assert _furthest(_state(tmp_path / "run")["net"], _state(finished)["net"]) == 0


@pytest.mark.parametrize(("step", "how"), [(1, "killed"), (5, "killed"), (3, "terminated")])
def test_a_stopped_run_ends_with_the_same_weights(
    step: int, how: str, config: TrainConfig, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def stop(learner: Learner, *arguments: Any) -> dict[str, Tensor]:
        done = next(steps)
        if done == step and how == "killed":
            raise KilledError
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return learner_step(learner, *arguments)

    learner_step, steps = Learner.step, itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", stop)
        with pytest.raises(KilledError if how == "killed" else KeyboardInterrupt):
            train(config, tmp_path)
    if how == "terminated":
        assert _state(tmp_path)["step"] == step + 1
    else:
        assert (tmp_path / "train.state.pt").exists() == (step >= 2)
    train(config, tmp_path)
    whole, resumed = _state(finished), _state(tmp_path)
    for name in ("net", "ema"):
        assert _furthest(resumed[name], whole[name]) == 0, name
    assert resumed["best_db"] == whole["best_db"]
    for name in ("best", "stages/1", "stages/2"):
        weights = [load_file(folder / name / "deblur.safetensors") for folder in (tmp_path, finished)]
        assert _furthest(*weights) == 0, name
    assert [r["loss"] for r in _records(tmp_path) if "loss" in r] == [
        r["loss"] for r in _records(finished) if "loss" in r
    ]


def test_a_disk_that_is_full_ends_a_run_that_goes_on_later(
    config: TrainConfig, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(contents: dict[Path, bytes]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "train.state.pt")

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_whole", full)
        with pytest.raises(TrainingError, match="cannot be written: No space left on device; free some"):
            train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    assert _furthest(_state(tmp_path / "run")["net"], _state(finished)["net"]) == 0


def test_what_changes_in_a_run_is_recorded(
    config: TrainConfig, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    longer = msgspec.structs.replace(config, stages=(*config.stages, StageConfig(steps=1, lr=1e-4)))
    train(longer, tmp_path / "run")
    assert "from step 7 on stages.2.steps is 1, it was None" in capsys.readouterr().err
    deblur = Checkpoint.open(tmp_path / "run" / "checkpoint").training()["deblur"]
    assert {"step": 7, "key": "stages.2.lr", "from": None, "to": 1e-4} in deblur["changes"]
    assert deblur["steps"] == 8
    with pytest.raises(TrainingError, match="a run with another network; expected the same"):
        train(msgspec.structs.replace(longer, network=TINY_CONFIG.to_dict()), tmp_path / "run")
    (tmp_path / "run" / "train.state.pt").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match="expected the state of a run"):
        train(config, tmp_path / "run")


# --- what should make no difference, and what should --------------------------------------------------------------


def test_accumulation_changes_nothing(config: TrainConfig, finished: Path, tmp_path: Path) -> None:
    train(msgspec.structs.replace(config, accumulate=2), tmp_path)
    assert _furthest(_state(tmp_path)["net"], _state(finished)["net"]) < SAME


def test_with_the_true_blur_clip_does_not_run(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlurEstimator, "estimate", None)
    one = msgspec.structs.replace(config, stages=(StageConfig(steps=2, lr=1e-3),), blur_logits="disparity")
    train(one, tmp_path / "true")
    assert _records(tmp_path / "true")[-1]["restored_db"] > 0
    with pytest.raises(TypeError, match="not callable"):
        train(msgspec.structs.replace(one, blur_logits="clip", ensemble=3), tmp_path / "clip")


def test_the_prompts_are_those_of_the_network_unless_the_run_names_others(config: TrainConfig, tmp_path: Path) -> None:
    network = {**TINY_CONFIG.to_dict(), "ensemble": "dp-aware"}
    one = msgspec.structs.replace(
        config, network=network, stages=(StageConfig(steps=1),), validation=None, blur_logits="disparity"
    )
    assert Checkpoint.open(train(one, tmp_path / "own")).config().ensemble == "dp-aware"
    other = msgspec.structs.replace(one, ensemble=3)
    assert Checkpoint.open(train(other, tmp_path / "other")).config().ensemble == 3


def test_hours_end_a_stage(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second by a clock that goes on by 30 ms whenever it is read, however slow the machine is."""
    clock = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 0.03 * next(clock)))
    config = msgspec.structs.replace(config, validation=None, precision="bf16").with_hours(1 / 3600)
    train(config, tmp_path)
    deblur = Checkpoint.open(tmp_path / "checkpoint").training()["deblur"]
    assert deblur["complete"]
    for done, stage in zip(deblur["stages"], config.stages, strict=True):
        assert stage.hours is not None
        assert done["seconds"] > 0.9 * 3600 * stage.hours - 0.1
    rates = [record["lr"] for record in _records(tmp_path) if record["stage"] == 1]
    assert len(rates) > 3
    assert rates[-1] < 0.5 * max(rates)


def test_a_loss_that_is_not_finite_ends_the_run(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(settings: LossConfig, restored: Tensor, *_: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return restored.sum() * float("nan"), {}

    monkeypatch.setattr(optimisation, "total_loss", diverging)
    with pytest.raises(TrainingError, match=r"finite loss, got nan by step 1; nothing was saved: make stages\.0\.lr"):
        train(config, tmp_path)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"accumulate": 3}, "batch: expected a multiple of 3"),
        ({"crop": 40}, "crop: expected a multiple of 16 px"),
        ({"ensemble": 8}, "ensemble must be .* or a prompt from 0 to 7"),
        ({"network": "nano"}, "init: expected weights of the network that is trained, got those of another, tiny"),
        ({"init": "nowhere"}, "expected a checkpoint folder, got nowhere"),
    ],
)
def test_what_does_not_fit_is_refused(
    changed: dict[str, Any], message: str, config: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(LDPError, match=message):
        train(msgspec.structs.replace(config, **changed), tmp_path)


def test_what_is_missing_is_said_before_clip_is_downloaded(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(_: Checkpoint) -> None:
        raise AssertionError("CLIP was opened")

    monkeypatch.setattr(Checkpoint, "clip", download)
    data = (msgspec.structs.replace(config.data[0], folder="nowhere"),)
    with pytest.raises(LDPError, match="nowhere"):
        train(msgspec.structs.replace(config, data=data), tmp_path / "run")
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "clip.json").write_text("{}")
    with pytest.raises(LDPError, match=r"calibration\.json, got none; make it with ldp-export calibrate"):
        train(msgspec.structs.replace(config, clip=str(tmp_path / "clip")), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one(strategy: str, config: TrainConfig, finished: Path, tmp_path: Path) -> None:
    # JSON is YAML; the log says nothing of the number of processes, the provenance does.
    values = msgspec.structs.replace(config, strategy=strategy).to_dict()
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    command += ["-m", "ldp_export", "train", str(tmp_path / "run.yaml"), "-o", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    one, two = _state(finished), _state(tmp_path / "run")
    for name in ("net", "ema"):
        assert _furthest(two[name], one[name]) < SAME
    assert Checkpoint.open(tmp_path / "run" / "checkpoint").training()["deblur"]["processes"] == PROCESSES
    for ours, theirs in zip(_records(tmp_path / "run"), _records(finished), strict=True):
        for name in ours.keys() - {"patches_s", "seconds"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=2e-3)
    # One process goes on with what two have saved.
    train(msgspec.structs.replace(config, stages=(*config.stages, StageConfig(steps=1))), tmp_path / "run")
    assert _state(tmp_path / "run")["step"] == sum(STEPS) + 1
