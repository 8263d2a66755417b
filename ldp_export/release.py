"""The authors' released checkpoint, made ready for export: the network and its blur map.

The checkpoint is a pickled dictionary whose ``params`` holds the state dict of ``network.released.ReleasedNet``. It is
read with ``weights_only=True``, which runs no code of the file's.

The blur map that the network was trained with comes from patches of 40 px (``ldp_runtime.stages.patch_blur_map``) and
needs the weights of OpenAI's ViT-B/16. ``dense_release`` uses the paper's blur map instead, from any CLIP with a
calibration.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldp_export.checkpoint import Checkpoint, Windows
from ldp_export.clip import LoadedClip
from ldp_export.model import ExportModel
from ldp_export.network.released import ReleasedConfig, ReleasedNet, load_released_state, released_state
from ldp_runtime.bundle.manifest import BlurMapSpec, Prompt
from ldp_runtime.errors import LDPError

PARAMS = "params"
PATCH = 40
"""Side of a patch in px."""

SHARP, BLURRED = 29.0, 26.05
"""The released A and B: a patch is sharp from 100 cos = A on, and blurred up to B."""

PROMPT = Prompt("A symmetric image at pixel level", "dp-aware", BLURRED, SHARP - BLURRED)
ARCHITECTURE = "ViT-B-16-quickgelu"
"""open_clip's name of the CLIP that A and B belong to."""

WEIGHTS = "openai"

_SHOWN = 8
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_FIX = "give the model.pth that the authors of LDP published"


class ReleaseError(LDPError):
    """A file is not the released checkpoint."""


def read_release(path: Path, config: ReleasedConfig | None = None) -> ReleasedNet:
    """Reads a released checkpoint.

    Args:
        path: The file.
        config: The network that it holds; None is the released one, of 7.62 M parameters.

    Returns:
        The network, FP32, in evaluation mode.

    Raises:
        ReleaseError: The file cannot be read, holds more than weights, or its names and shapes are others; the message
            lists them.
    """
    network = ReleasedNet(config or ReleasedConfig())
    state = _read_params(path)
    _check(path, state, released_state(network))
    load_released_state(network, state)
    return network.eval()


def patch_release(network: ReleasedNet, clip: LoadedClip, prompt: Prompt = PROMPT) -> ExportModel:
    """The released network with its own blur map, from patches.

    Args:
        network: The network.
        clip: CLIP; the released constants are for ``ARCHITECTURE`` with ``WEIGHTS``.
        prompt: What patches are compared with; its offset is B, its temperature A - B.
    """
    spec = BlurMapSpec("patch", "map", PATCH)
    windows = Windows(int(clip.encoder.visual.image_size[0]), 0)
    training = _training("CLIP's pooled feature of patches of 40 px", clip)
    return ExportModel(network, clip, (prompt,), windows, True, training, _LICENCES, spec)


def dense_release(network: ReleasedNet, source: Checkpoint) -> ExportModel:
    """The released network with the paper's blur map, which is not the one that it was trained with.

    Args:
        network: The network.
        source: A checkpoint with CLIP and its calibration; its network is not used.

    Raises:
        LDPError: The checkpoint lacks one of them.
    """
    clip = source.clip()
    training = _training("CLIP's dense features, another blur map than in training", clip)
    licences = {**_LICENCES, "clip": source.training().get("licences", {})}
    spec = BlurMapSpec("dense", "map")
    windows = source.windows(clip.encoder.patch)
    return ExportModel(network, clip, source.prompts(), windows, True, training, licences, spec)


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


def _read_params(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ReleaseError(f"expected the released checkpoint, got {path}, which does not exist; {_FIX}") from None
    except Exception as error:  # torch raises what it likes, from zip and pickle errors to its own
        raise ReleaseError(f"{path}: expected a checkpoint of weights alone, got {_reason(error)}; {_FIX}") from error
    if not isinstance(content, dict) or PARAMS not in content:
        got = ", ".join(sorted(map(str, content))[:_SHOWN]) if isinstance(content, dict) else type(content).__name__
        raise ReleaseError(f"{path}: expected a state dict under {PARAMS!r}, got {got or 'nothing'}; {_FIX}")
    state = content[PARAMS]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ReleaseError(f"{path}: expected tensors by name under {PARAMS!r}, got something else; {_FIX}")
    return state


def _reason(error: Exception) -> str:
    """Why torch refuses a file, in plain words: its own text has several lines, advice and escape codes."""
    text = str(error)
    kinds = sorted(set(_GLOBAL.findall(text)))
    if kinds:
        return f"one that also holds {_listed(kinds)}, which unpickling would have to run"
    lines = [line for line in _ESCAPE.sub("", text).splitlines() if line.strip()]
    return f"a file that torch cannot read ({': '.join([type(error).__name__, *lines[:1]])})"


def _check(path: Path, state: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    """Compares names, shapes and types with those of the released network."""
    problems = []
    for what, names in (("missing", expected.keys() - state.keys()), ("unknown", state.keys() - expected.keys())):
        if names:
            problems.append(f"{len(names)} {what}: {_listed(sorted(names))}")
    shared = sorted(state.keys() & expected.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} in place of {expected[name]}"
        for name in shared
        if tuple(state[name].shape) != expected[name]
    ]
    if shapes:
        problems.append(f"{len(shapes)} of another shape: {_listed(shapes)}")
    unfit = [name for name in shared if not state[name].is_floating_point() or not state[name].isfinite().all()]
    if unfit:
        problems.append(f"{len(unfit)} not of finite numbers: {_listed(unfit)}")
    if problems:
        raise ReleaseError(f"{path}: expected the weights of the released network, got {'; '.join(problems)}; {_FIX}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
