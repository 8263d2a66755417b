"""What the tests of one session share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldp_export.cli import main
from tests.ldp_export.tiny_models import TINY_CLIP

SEED = 3
WINDOW = 64


@pytest.fixture(scope="session")
def tiny_clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip model config."""
    path = tmp_path_factory.mktemp("clip") / "clip.json"
    path.write_text(json.dumps(TINY_CLIP))
    return path


@pytest.fixture(scope="session")
def nano_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_clip_file: Path) -> Path:
    """The nano network with random weights of seed 3 and the tiny CLIP, exported by the command line."""
    path = tmp_path_factory.mktemp("bundles") / "nano-random"
    arguments = ["onnx", "--config", "nano", "--clip", str(tiny_clip_file), "--seed", str(SEED)]
    assert main([*arguments, "--window", str(WINDOW), "--overlap", "16", "-o", str(path)]) == 0
    return path
