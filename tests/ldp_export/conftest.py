"""What the tests of one session share."""

import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ldp_export.bundling import parity
from ldp_export.bundling.onnx_graphs import export_bundle
from ldp_export.model import ExportModel, random_model
from tests.ldp_export.tiny_checkpoint import make_tiny_checkpoint
from tests.ldp_export.tiny_models import TINY_CLIP, tiny_network
from tests.sample import near_sample

SEED = 3
WINDOW = 64


@pytest.fixture(scope="session")
def tiny_clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip model config."""
    path = tmp_path_factory.mktemp("clip") / "clip.json"
    path.write_text(json.dumps(TINY_CLIP))
    return path


@pytest.fixture(scope="session")
def exported_model(tiny_clip_file: Path) -> ExportModel:
    """The tiny CLIP and the tiny network whose residual stream is large, with random weights."""
    model = random_model("nano", str(tiny_clip_file), window=WINDOW, overlap=16, seed=SEED)
    return replace(model, network=tiny_network())


@pytest.fixture(scope="session")
def exported_bundle(tmp_path_factory: pytest.TempPathFactory, exported_model: ExportModel) -> Path:
    """``exported_model`` as a bundle. Exports take long, so tests share this one, those of all processes of a run."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path = folder / "exported" / "tiny-random"
    path.parent.mkdir(exist_ok=True)
    with open(folder / "exported.lock", "w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            patch.setattr(parity, "focus_setting", lambda focus: near_sample())
            export_bundle(exported_model, path, path.name)
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that tests only read."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")
