"""What is exported: a network, a CLIP and their texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldp_export.checkpoint import Checkpoint, Windows, choose_windows
from ldp_export.clip import PROMPTS, LoadedClip, PatchEncoder, WindowEncoder, load_clip
from ldp_export.network import CONFIGS, LDPNet
from ldp_export.network.published.base import PublishedConfig, PublishedNetwork
from ldp_export.network.randomise import randomise, randomise_network
from ldp_export.network.released import ReleasedNet
from ldp_runtime.bundle.manifest import BlurMapSpec, Origin, Prompt
from ldp_runtime.errors import LDPError
from ldp_runtime.stages.blur_map import select_canvases
from ldp_runtime.stages.geometry import Padding, padding_multiple

DeblurNetwork = LDPNet | ReleasedNet | PublishedNetwork


class ExportError(LDPError):
    """What was asked for cannot be exported."""


@dataclass(frozen=True)
class ExportModel:
    """What is exported.

    Attributes:
        network: The network, FP32, in evaluation mode.
        clip: CLIP; None where the network reads no blur map.
        prompts: The prompts of Table 4 with their calibration, or the one prompt of a blur map from patches; none
            without CLIP.
        windows: The windows that CLIP sees; None without CLIP.
        trained: The network's weights are trained, so PSNR to a target means something.
        training: Provenance for the manifest.
        licences: Licences of weights and data for the manifest.
        blur_map: How the blur map is estimated and given to the network.
        origin: Where imported weights come from; None where they were not imported.
        blur_range: Largest radius in px of a circle of confusion in training; None where it is not known.

    Raises:
        ExportError: Only one of CLIP and its windows is given, or the network reads a blur map and there is no CLIP.
    """

    network: DeblurNetwork
    clip: LoadedClip | None
    prompts: tuple[Prompt, ...]
    windows: Windows | None
    trained: bool
    training: Mapping[str, Any] = field(default_factory=dict)
    licences: Mapping[str, Any] = field(default_factory=dict)
    blur_map: BlurMapSpec = field(default_factory=BlurMapSpec)
    origin: Origin | None = None
    blur_range: float | None = None

    def __post_init__(self) -> None:
        if (self.clip is None) != (self.windows is None) or (self.clip is None and self.prompts):
            raise ExportError("expected CLIP with its windows and prompts, or none of them, got some of them")
        if self.clip is None and self.network.config.reads_blur_map:
            raise ExportError("expected CLIP for a network that reads a blur map, got none; give the checkpoint's")

    @property
    def multiple(self) -> int:
        """Height and width of the padded pair are multiples of this many px."""
        patch = self.clip.encoder.patch if self.clip is not None and self.blur_map.method == "dense" else 1
        return padding_multiple(self.network.config.multiple, patch)

    @property
    def padding(self) -> Padding:
        """The size rule of the pair."""
        config = self.network.config
        return Padding(self.multiple, least=config.least if isinstance(config, PublishedConfig) else 1)

    def clip_encoder(self) -> WindowEncoder | PatchEncoder | None:
        """The encoder that the bundle's CLIP graph holds, FP32, in evaluation mode; None without CLIP."""
        if self.clip is None or self.windows is None:
            return None
        if self.blur_map.patch is not None:
            return PatchEncoder(self.clip, self.blur_map.patch).eval()
        canvases = select_canvases(self.prompts, self.network.config.ensemble)
        return WindowEncoder(self.clip.encoder, self.windows.window, canvases).eval()


def model_from_checkpoint(checkpoint: Checkpoint, window: int | None = None, overlap: int | None = None) -> ExportModel:
    """Loads what a checkpoint holds.

    Args:
        checkpoint: The checkpoint.
        window: Side of CLIP's windows in px in place of the checkpoint's.
        overlap: What windows share at least in place of the checkpoint's.

    Raises:
        LDPError: A part is missing or does not fit.
    """
    clip = checkpoint.clip()
    patch = clip.encoder.patch
    windows = checkpoint.windows(patch)
    if window is not None or overlap is not None:
        own_overlap = windows.overlap if window is None else None
        windows = choose_windows(patch, window or windows.window, own_overlap if overlap is None else overlap)
    training = checkpoint.training()
    licences = training.pop("licences", {})
    training.pop("blur_range", None)
    return ExportModel(
        checkpoint.network(),
        clip,
        checkpoint.prompts(),
        windows,
        True,
        training,
        _mapping(licences, "licences"),
        blur_range=checkpoint.blur_range(),
    )


def random_model(
    config: str,
    architecture: str,
    weights: str | None = None,
    *,
    window: int | None = None,
    overlap: int | None = None,
    seed: int = 0,
) -> ExportModel:
    """A network with random weights, to check the chain of export, engines and runtime before any training.

    All parameters are drawn, those that start at zero too: a fresh network is nearly the identity, so that any graph
    would agree with it. CLIP is drawn too unless weights are given; its prompts are not calibrated.

    Args:
        config: A name of ``CONFIGS``.
        architecture: CLIP's architecture, as for ``load_clip``.
        weights: CLIP's weights, as for ``load_clip``; None draws them.
        window: Side of CLIP's windows in px; None is the default.
        overlap: What windows share at least, in px; None is the default.
        seed: Seed of the weights.

    Raises:
        LDPError: The config, the architecture, the weights or the windows are not usable.
    """
    if config not in CONFIGS:
        raise ExportError(f"expected a config, one of {', '.join(CONFIGS)}, got {config!r}")
    clip = load_clip(architecture, weights, seed=seed)
    if weights is None:
        randomise(clip.encoder.visual, seed)
    prompts = tuple(Prompt(prompt.text, prompt.format, 0.0, 1.0) for prompt in PROMPTS)
    return ExportModel(
        network=randomise_network(LDPNet(CONFIGS[config]), seed),
        clip=clip,
        prompts=prompts,
        windows=choose_windows(clip.encoder.patch, window, overlap),
        trained=False,
        training={
            "weights": "random",
            "clip_weights": clip.weights,
            "calibration": "none",
            "seed": seed,
            "note": "every parameter of the network is a random number: it checks the chain and restores nothing",
        },
        licences={"weights": "random numbers", "data": []},
    )


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ExportError(f"expected {what} of training.json as an object, got {value!r}")
    return value
