from pathlib import Path

import pytest
import torch

from ldp_export.checkpoint import Checkpoint, choose_windows
from ldp_export.clip import load_clip
from ldp_export.model import ExportError, ExportModel, model_from_checkpoint, random_model
from ldp_export.network import CONFIGS, LDPNet
from ldp_runtime.errors import LDPError
from tests.ldp_export.tiny_models import TINY_CONFIG


def test_what_cannot_be_exported(tiny_clip_file: Path) -> None:
    with pytest.raises(ExportError, match="nano, small, large"):
        random_model("huge", str(tiny_clip_file))
    with pytest.raises(LDPError, match="multiple of CLIP's patch"):
        random_model("nano", str(tiny_clip_file), window=100)
    with pytest.raises(LDPError, match="unknown CLIP architecture"):
        random_model("nano", "no-such-clip")


def test_padding_suits_network_and_clip(tiny_clip_file: Path) -> None:
    assert TINY_CONFIG.multiple == 16
    clip = load_clip(str(tiny_clip_file))
    model = ExportModel(LDPNet(TINY_CONFIG), clip, (), choose_windows(16), trained=False)
    assert model.multiple == 16
    nano = ExportModel(LDPNet(CONFIGS["nano"]), clip, (), choose_windows(16), trained=False)
    assert nano.multiple == 32


def test_windows_of_a_checkpoint_can_be_replaced(tiny_checkpoint: Path) -> None:
    def chosen(window: int | None = None, overlap: int | None = None) -> tuple[int, int]:
        windows = model_from_checkpoint(Checkpoint.open(tiny_checkpoint), window, overlap).windows
        return windows.window, windows.overlap

    assert chosen() == (32, 16)
    assert chosen(overlap=0) == (32, 0)
    assert chosen(window=64) == (64, 0)
    assert chosen(window=64, overlap=16) == (64, 16)


def test_random_weights_are_seeded(tiny_clip_file: Path) -> None:
    first, again, other = (random_model("nano", str(tiny_clip_file), seed=seed) for seed in (3, 3, 4))
    for part in (lambda model: model.network, lambda model: model.clip.model):
        a, b, c = (torch.cat([p.flatten() for p in part(model).parameters()]) for model in (first, again, other))
        assert torch.equal(a, b) and not torch.equal(a, c)
    assert not first.trained and first.training["seed"] == 3
