"""The checkpoint: a folder with trained weights and all that an export needs to know of them.

========================  =======================================================================================
``network.json``          the network's configuration, ``LDPConfig.to_dict``
``deblur.safetensors``    the state dict of ``LDPNet``
``clip.json``             CLIP: an open_clip model config, or ``{"architecture": NAME}`` of one that open_clip lists,
                          with ``"weights": TAG`` if open_clip shall download them; also ``window`` and ``overlap``
``clip.safetensors``      the state dict of the whole open_clip model; takes the place of ``weights``
``calibration.json``      a list of ``{text, format, offset, temperature}``, the prompts of Table 4 in its order
``training.json``         provenance; its ``licences``, ``name`` and ``blur_range`` go into the bundle
========================  =======================================================================================

Parts are read when they are asked for: a folder with CLIP alone can be calibrated before any network is trained.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ldp_runtime.bundle.fields import BlurRange
from ldp_runtime.bundle.manifest import Prompt
from ldp_runtime.errors import LDPError, listed
from ldp_runtime.files import cannot_write, staged_folder, write_files
from ldp_runtime.structs import UnfitError, convert, shown

if TYPE_CHECKING:
    from torch import Tensor

    from ldp_export.clip import LoadedClip
    from ldp_export.network import LDPConfig, LDPNet

NETWORK_FILE = "network.json"
DEBLUR_FILE = "deblur.safetensors"
CLIP_FILE = "clip.json"
CLIP_WEIGHTS_FILE = "clip.safetensors"
CALIBRATION_FILE = "calibration.json"
TRAINING_FILE = "training.json"

DEFAULT_WINDOW = 224
"""Side in px of CLIP's windows where nothing else is said: what OpenAI trained ViT-B/32 at."""


class CheckpointError(LDPError):
    """A checkpoint lacks a part, or a part is not what it should be."""


@dataclass(frozen=True)
class Windows:
    """The windows that CLIP sees: their side and the px that neighbours share at least."""

    window: int
    overlap: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Opens a folder; its parts are read later.

        Raises:
            CheckpointError: There is no such folder, or it has no CLIP.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise CheckpointError(f"expected a checkpoint folder, got {folder}, which does not exist; check the name")
        if not (folder / CLIP_FILE).is_file():
            raise CheckpointError(
                f"expected a checkpoint folder with {CLIP_FILE}, got {folder} without it; check the name"
            )
        return cls(folder)

    @property
    def name(self) -> str:
        """The name that ``training.json`` gives it, or its folder's."""
        return str(self.training().get("name") or self.path.absolute().name)

    def config(self) -> LDPConfig:
        """The network's configuration.

        Raises:
            LDPError: It is missing or does not describe a network.
        """
        from ldp_export.network import LDPConfig

        return LDPConfig.from_dict(_object(self.path / NETWORK_FILE))

    def network(self) -> LDPNet:
        """The network with its weights, FP32, in evaluation mode, on the CPU.

        Raises:
            LDPError: The weights are missing, damaged or do not fit the configuration.
        """
        from ldp_export.network import LDPNet

        network = LDPNet(self.config())
        state = _load_weights(self.path / DEBLUR_FILE)
        _check_state(self.path / DEBLUR_FILE, state, network.state_dict())
        network.load_state_dict(state)
        return network.eval()

    def clip(self) -> LoadedClip:
        """CLIP with its weights.

        Raises:
            LDPError: The architecture or the weights are missing or do not fit.
        """
        from ldp_export.clip import load_clip

        config = self._clip_config()
        file = self.path / CLIP_WEIGHTS_FILE
        weights = str(file) if file.is_file() else config.get("weights")
        if weights is None:
            raise CheckpointError(
                f'{self.path}: expected {CLIP_WEIGHTS_FILE}, or "weights" with a pretrained tag in {CLIP_FILE}, got '
                "neither; add one of them"
            )
        return load_clip(config.get("architecture") or str(self.path / CLIP_FILE), str(weights))

    def windows(self, patch: int) -> Windows:
        """The windows that CLIP was trained for, or the default ones.

        Args:
            patch: Side of CLIP's patch in px.

        Raises:
            CheckpointError: The window is no multiple of the patch.
        """
        config = self._clip_config()
        return choose_windows(patch, config.get("window"), config.get("overlap"))

    def prompts(self) -> tuple[Prompt, ...]:
        """The calibrated prompts.

        Raises:
            CheckpointError: They are missing, or not the prompts of Table 4 in its order.
        """
        path = self.path / CALIBRATION_FILE
        if not path.is_file():
            raise CheckpointError(
                f"expected the calibration {path}, got none; make it with ldp-export calibrate {self.path}"
            )
        return parse_prompts(_json(path), str(path))

    def training(self) -> dict[str, Any]:
        """Provenance; empty where the folder has none.

        Raises:
            CheckpointError: The file is no JSON object.
        """
        path = self.path / TRAINING_FILE
        return _object(path) if path.is_file() else {}

    def blur_range(self) -> float | None:
        """Largest radius in px of a circle of confusion in training; None where it was not written down.

        Raises:
            CheckpointError: ``training.json`` has no such number.
        """
        value = self.training().get("blur_range")
        try:
            return None if value is None else convert(value, BlurRange)
        except UnfitError as unfit:
            raise CheckpointError(f"{self.path / TRAINING_FILE}: blur_range{unfit.problem}") from None

    def write_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Writes the calibration in one step.

        Raises:
            WriteError: The folder cannot be written.
        """
        fields = [msgspec.structs.asdict(prompt) for prompt in prompts]
        write_files({self.path / CALIBRATION_FILE: _dump(fields).encode()})

    def _clip_config(self) -> dict[str, Any]:
        return _object(self.path / CLIP_FILE)


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    config: LDPConfig,
    network: Mapping[str, Tensor],
    clip_config: Mapping[str, Any],
    clip: Mapping[str, Tensor] | None,
    prompts: Sequence[Prompt],
    training: Mapping[str, Any],
) -> Checkpoint:
    """Writes a checkpoint; a failure leaves what was there before.

    Args:
        path: The folder; files that are no part of a checkpoint stay in it.
        config: The network's configuration.
        network: State dict of ``LDPNet``.
        clip_config: What ``clip.json`` shall hold.
        clip: State dict of the whole open_clip model, or None where ``clip_config`` names weights to download.
        prompts: The calibrated prompts of Table 4, in its order.
        training: Provenance, plain JSON values.

    Raises:
        CheckpointError: The weights do not fit the configuration.
        WriteError: The folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from ldp_export.network import LDPNet

    folder = Path(path)
    _check_state(folder / DEBLUR_FILE, network, LDPNet(config).state_dict())
    parse_prompts([msgspec.structs.asdict(prompt) for prompt in prompts], CALIBRATION_FILE)
    with staged_folder(folder, last=NETWORK_FILE) as staged:
        (staged / CLIP_FILE).write_text(_dump(clip_config))
        (staged / CALIBRATION_FILE).write_text(_dump([msgspec.structs.asdict(prompt) for prompt in prompts]))
        (staged / TRAINING_FILE).write_text(_dump(training))
        for name, state in ((DEBLUR_FILE, network), (CLIP_WEIGHTS_FILE, clip)):
            if state is not None:
                tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
                try:
                    save_file(tensors, staged / name)
                except SafetensorError as error:  # the disk is full: it does not hand on the system's error
                    raise CheckpointError(cannot_write(folder, error)) from error
        (staged / NETWORK_FILE).write_text(_dump(config.to_dict()))
    return Checkpoint(folder)


def choose_windows(patch: int, window: int | None = None, overlap: int | None = None) -> Windows:
    """Checks the windows of CLIP and fills in what is None.

    Args:
        patch: Side of CLIP's patch in px.
        window: Side of a window in px; None is ``DEFAULT_WINDOW`` rounded down to patches.
        overlap: What neighbours share at least, in px; None is nothing: it costs and does the blur map little good
            (``benchmarks/reports/windows-ldp-nano.md``).

    Raises:
        CheckpointError: The window is no multiple of the patch, or the overlap leaves no patch of it.
    """
    chosen = max(DEFAULT_WINDOW // patch, 1) * patch if window is None else window
    shared = 0 if overlap is None else overlap
    if chosen < patch or chosen % patch:
        raise CheckpointError(f"expected a window that is a multiple of CLIP's patch, {patch} px, got {chosen}")
    if shared < 0 or math.ceil(shared / patch) * patch >= chosen:
        limit = max(chosen - patch, 0)
        raise CheckpointError(f"expected an overlap from 0 to {limit} px, a patch less than the window, got {shared}")
    return Windows(chosen, shared)


def parse_prompts(value: object, where: str) -> tuple[Prompt, ...]:
    """Checks a calibration.

    Args:
        value: The parsed JSON.
        where: Names it in errors.

    Raises:
        CheckpointError: It is not the list of Table 4's prompts with finite offsets and temperatures other than zero.
    """
    from ldp_export.clip.prompts import PROMPTS

    try:
        prompts = convert(value, tuple[Prompt, ...])
    except UnfitError as unfit:
        raise CheckpointError(f"{where}: prompts{unfit.field}{unfit.problem}; calibrate again") from None
    texts, expected = ([(prompt.text, prompt.format) for prompt in each] for each in (prompts, PROMPTS))
    if texts != expected:
        problem = f"expected the {len(PROMPTS)} prompts of Table 4 in its order, got {shown(texts)}"
        raise CheckpointError(f"{where}: {problem}; calibrate again")
    if not all(prompt.temperature for prompt in prompts):
        raise CheckpointError(f"{where}: expected temperatures other than zero; calibrate again")
    return prompts


# --- files ----------------------------------------------------------------------------------------------------


def _dump(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"expected {path.name} in {path.parent}, got none; give a whole checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected JSON, got {error}; write it again") from error


def _object(path: Path) -> dict[str, Any]:
    value = _json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}; write it again")
    return value


def _load_weights(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"expected {path.name} in {path.parent}, got none; give a whole checkpoint")
    try:
        return load_file(path)
    except Exception as error:  # safetensors has no public base of its own
        raise CheckpointError(f"{path}: expected safetensors, got {error}; write it again") from error


def _check_state(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compares names and shapes of weights with those of the network."""
    problems = []
    for what, names in (("missing", expected.keys() - state.keys()), ("unknown", state.keys() - expected.keys())):
        if names:
            problems.append(f"{what} {listed(sorted(names))}")
    misshapen = {key for key in state.keys() & expected.keys() if state[key].shape != expected[key].shape}
    if misshapen:
        problems.append(f"of another shape {listed(sorted(misshapen))}")
    if problems:
        raise CheckpointError(
            f"{path}: expected the weights that {NETWORK_FILE} describes, got {'; '.join(problems)}; "
            "give the configuration that was trained"
        )
