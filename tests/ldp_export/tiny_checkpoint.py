"""A checkpoint small enough for a test, all of its parameters random."""

import json
import tempfile
from pathlib import Path

from ldp_export.checkpoint import Checkpoint, save_checkpoint
from ldp_export.clip import PROMPTS, load_clip
from ldp_export.model import ExportModel
from ldp_export.network import LDPNet
from ldp_export.network.randomise import randomise, randomise_network
from ldp_runtime.bundle.manifest import Prompt
from tests.ldp_export.tiny_models import TINY_CLIP, TINY_CONFIG

CALIBRATED = tuple(Prompt(prompt.text, prompt.format, 2.0, -3.0) for prompt in PROMPTS)


def make_tiny_checkpoint(folder: Path, seed: int = 4) -> Path:
    """Writes the tiny network and the tiny CLIP, windows of 32 px, prompts that vote apart; returns the folder."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(TINY_CLIP, file)
        file.flush()
        clip = load_clip(file.name, seed=seed)
    randomise(clip.encoder.visual, seed)
    save_checkpoint(
        folder,
        config=TINY_CONFIG,
        network=randomise_network(LDPNet(TINY_CONFIG), seed).state_dict(),
        clip_config={**TINY_CLIP, "window": 32, "overlap": 16},
        clip=clip.model.state_dict(),
        prompts=[Prompt(p.text, p.format, float(k), 20.0 - 3 * k) for k, p in enumerate(PROMPTS)],
        training={"name": folder.name},
    )
    return folder


def save_trained(folder: Path, model: ExportModel, network: LDPNet | None = None) -> Checkpoint:
    """A checkpoint with a model's CLIP and windows and its network, or another one."""
    assert model.clip is not None and model.windows is not None
    return save_checkpoint(
        folder,
        config=TINY_CONFIG,
        network=(network or model.network).state_dict(),
        clip_config={**TINY_CLIP, "window": model.windows.window},
        clip=model.clip.model.state_dict(),
        prompts=CALIBRATED,
        training={"data": "none", "blur_range": 12, "licences": {"weights": "Apache-2.0", "data": []}},
    )
