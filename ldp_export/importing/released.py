"""The authors' released checkpoint, made ready for export: the network and its blur map.

The checkpoint is a pickled dictionary whose ``params`` holds the state dict of ``network.released.ReleasedNet``.

The blur map that the network was trained with comes from patches of 40 px (``ldp_runtime.stages.patch_blur_map``) and
needs the weights of OpenAI's ViT-B/16. ``dense_release`` uses the paper's blur map instead, from any CLIP with a
calibration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldp_export.checkpoint import Checkpoint, Windows
from ldp_export.clip import LoadedClip
from ldp_export.importing.state import check_state, file_hash, read_torch
from ldp_export.model import ExportModel
from ldp_export.network.published import FORBIDDEN
from ldp_export.network.released import ReleasedConfig, ReleasedNet, load_released_state, released_state
from ldp_runtime.bundle.manifest import BlurMapSpec, Origin, Prompt, SourceFile

PATCH = 40
"""Side of a patch in px."""

SHARP, BLURRED = 29.0, 26.05
"""The released A and B: a patch is sharp from 100 cos = A on, and blurred up to B."""

PROMPT = Prompt("A symmetric image at pixel level", "dp-aware", BLURRED, SHARP - BLURRED)
ARCHITECTURE = "ViT-B-16-quickgelu"
"""open_clip's name of the CLIP that A and B belong to."""

WEIGHTS = "openai"

LICENCE = "no licence stated"
CITE = (
    "Hao Yang, Liyuan Pan, Yan Yang, Richard Hartley and Miaomiao Liu, LDP: Language-driven Dual-Pixel Image Defocus "
    "Deblurring Network, CVPR 2024"
)

_FIX = "give the model.pth that the authors of LDP published"


def read_release(path: Path) -> tuple[ReleasedNet, Origin]:
    """Reads a released checkpoint.

    Args:
        path: The file.

    Returns:
        The network, FP32, in evaluation mode, and where it comes from.

    Raises:
        WeightsError: The file cannot be read, holds more than weights, or its names and shapes are others; the message
            lists them.
    """
    network = ReleasedNet(ReleasedConfig())
    source = SourceFile(path.name, file_hash(path, _FIX))
    state = read_torch(path, _FIX)
    check_state(str(path), state, released_state(network), "the released network", _FIX)
    load_released_state(network, state)
    return network.eval(), Origin("released", (source,), LICENCE, FORBIDDEN, CITE)


def patch_release(
    network: ReleasedNet, clip: LoadedClip, prompt: Prompt = PROMPT, origin: Origin | None = None
) -> ExportModel:
    """The released network with its own blur map, from patches.

    Args:
        network: The network.
        clip: CLIP; the released constants are for ``ARCHITECTURE`` with ``WEIGHTS``.
        prompt: What patches are compared with; its offset is B, its temperature A - B.
        origin: Where the network comes from.
    """
    spec = BlurMapSpec("patch", "map", PATCH)
    windows = Windows(int(clip.encoder.visual.image_size[0]), 0)
    training = _training("CLIP's pooled feature of patches of 40 px", clip)
    return ExportModel(network, clip, (prompt,), windows, True, training, _LICENCES, spec, origin)


def dense_release(network: ReleasedNet, source: Checkpoint, origin: Origin | None = None) -> ExportModel:
    """The released network with the paper's blur map, which is not the one that it was trained with.

    Args:
        network: The network.
        source: A checkpoint with CLIP and its calibration; its network is not used.
        origin: Where the network comes from.

    Raises:
        LDPError: The checkpoint lacks one of them.
    """
    clip = source.clip()
    training = _training("CLIP's dense features, another blur map than in training", clip)
    licences = {**_LICENCES, "clip": source.training().get("licences", {})}
    spec = BlurMapSpec("dense", "map")
    windows = source.windows(clip.encoder.patch)
    return ExportModel(network, clip, source.prompts(), windows, True, training, licences, spec, origin)


_LICENCES: dict[str, Any] = {
    "weights": "published by the authors of LDP, whose repository states no licence",
    "data": ["not stated with the weights; the paper trains on DPD-blur"],
}


def _training(blur_map: str, clip: LoadedClip) -> dict[str, Any]:
    return {
        "weights": "released by the authors of LDP (CVPR 2024)",
        "blur_map": blur_map,
        "clip_weights": clip.weights,
        "note": "channel attention and channel statistics see the whole image: tiles differ from the full frame",
    }
