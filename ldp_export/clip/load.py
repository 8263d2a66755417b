"""Loading CLIP models through open_clip: by architecture name or config file, with local, hub or random weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from ldp_export.clip.encoder import DenseCLIP
from ldp_runtime.errors import LDPError, one_line


class ClipError(LDPError):
    """A CLIP model cannot be built or its weights cannot be loaded."""


@dataclass(frozen=True)
class LoadedClip:
    """An open_clip model with its matching preprocessing.

    Attributes:
        model: The open_clip model, both towers.
        tokenizer: Texts to token ids ``(n, context)``.
        architecture: open_clip's name of the architecture, or the config file's stem.
        weights: Where the weights came from: a file's name, a pretrained tag, or "random".
        mean: Per-channel mean that images are normalised with, RGB in [0, 1].
        std: Per-channel standard deviation.
        quick_gelu: Whether the image tower uses QuickGELU; OpenAI's weights need it.
    """

    model: nn.Module
    tokenizer: Callable[[Sequence[str]], Tensor]
    architecture: str
    weights: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    quick_gelu: bool

    @property
    def encoder(self) -> DenseCLIP:
        """The dense image encoder; shares its weights with ``model``."""
        return DenseCLIP(self.model.visual)


def load_clip(architecture: str, weights: str | None = None, *, seed: int = 0) -> LoadedClip:
    """Builds a CLIP model with a vision transformer.

    Args:
        architecture: A name that open_clip lists ("ViT-B-32-quickgelu" is what the paper's weights need) or the path of
            an open_clip model config in JSON.
        weights: A local file (.safetensors, .pt, .bin), a pretrained tag that open_clip downloads ("openai"), or None
            for random weights drawn with ``seed``.
        seed: Seed of random weights.

    Raises:
        ClipError: Unknown architecture, one that is not a plain vision transformer beside CLIP's own text
            transformer, a file that is not there or does not fit, or pretrained weights that need QuickGELU
            (OpenAI's do) with an architecture without it, which would fail silently.
    """
    config = _config(architecture)
    tag = weights if weights in _pretrained_tags(architecture) else None
    pretrained = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    if pretrained.get("quick_gelu") and not config.get("quick_gelu"):
        raise ClipError(
            f"the {tag} weights need QuickGELU, which {architecture} lacks; use {architecture}-quickgelu instead"
        )
    file = Path(weights) if weights is not None and tag is None else None
    if file is not None and not file.is_file():
        known = ", ".join(_pretrained_tags(architecture)) or "none"
        raise ClipError(f"{weights} is neither a weights file nor a pretrained tag of {architecture} (known: {known})")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(architecture, config) if tag is None else _download(architecture, tag)
    if file is not None:
        try:
            open_clip.load_checkpoint(model, str(file), strict=True)
        except Exception as error:
            raise ClipError(f"{file} does not hold weights of {architecture}: {one_line(error)}") from error
    mean = pretrained.get("mean") or open_clip.OPENAI_DATASET_MEAN
    std = pretrained.get("std") or open_clip.OPENAI_DATASET_STD
    model.eval()
    visual: nn.Module = model.visual  # type: ignore[assignment]
    return LoadedClip(
        model=model,
        tokenizer=open_clip.SimpleTokenizer(context_length=config["text_cfg"].get("context_length", 77)),
        architecture=Path(architecture).stem if architecture.endswith(".json") else architecture,
        weights=file.name if file else tag or "random",
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        quick_gelu=any(isinstance(module, QuickGELU) for module in visual.modules()),
    )


def _config(architecture: str) -> dict[str, Any]:
    if architecture.endswith(".json"):
        try:
            config = json.loads(Path(architecture).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ClipError(f"cannot read the CLIP config {architecture}: {error}") from error
        if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
            raise ClipError(f"the CLIP config {architecture} must hold embed_dim, vision_cfg and text_cfg")
    else:
        config = open_clip.get_model_config(architecture)
    if config is None:
        raise ClipError(
            f"unknown CLIP architecture {architecture}; `python -c 'import open_clip; print(open_clip.list_models())'` "
            "lists the names, the paper's is ViT-B-32-quickgelu"
        )
    vision, text = config["vision_cfg"], config["text_cfg"]
    resnet = isinstance(vision.get("layers"), (list, tuple))
    if resnet or "timm_model_name" in vision or vision.get("attentional_pool"):
        raise ClipError(f"{architecture} has no plain vision transformer; use a ViT such as ViT-B-32-quickgelu")
    if "multimodal_cfg" in config or "hf_model_name" in text or "hf_tokenizer_name" in text:
        raise ClipError(f"{architecture} has not CLIP's own text transformer; use a ViT such as ViT-B-32-quickgelu")
    return dict(config)


def _pretrained_tags(architecture: str) -> list[str]:
    return [] if architecture.endswith(".json") else list(open_clip.list_pretrained_tags_by_model(architecture))


def _build(architecture: str, config: dict[str, Any]) -> nn.Module:
    keys = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias")
    try:
        return open_clip.CLIP(**{key: config[key] for key in keys if key in config})
    except (TypeError, ValueError) as error:
        raise ClipError(f"cannot build the CLIP model {architecture}: {one_line(error)}") from error


def _download(architecture: str, tag: str) -> nn.Module:
    try:
        return open_clip.create_model(architecture, pretrained=tag)
    except Exception as error:
        raise ClipError(
            f"cannot download the {tag} weights of {architecture}: {one_line(error)}; "
            "fetch them elsewhere and pass the file"
        ) from error
