"""Blur logits of a pair in eager torch, by the windows or the patches that CLIP sees.

It shares no code with the runtime's NumPy form of the blur logits, so a parity check compares two implementations.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldp_export.blur_map import (
    LOGIT_LIMIT,
    blur_logits,
    center_view,
    prompt_logits,
    prompt_similarities,
    similarity,
    stereo_canvas,
)
from ldp_export.checkpoint import Windows
from ldp_export.clip import LoadedClip, PatchEncoder, WindowEncoder, embed_texts
from ldp_export.data.base import PairSample
from ldp_runtime.bundle.manifest import Prompt
from ldp_runtime.host import CLIP_BATCH
from ldp_runtime.stages.blur_map import DP_AWARE, select_canvases, select_prompts
from ldp_runtime.stages.geometry import ENGINE_CLIP_BATCH, Padding, WindowGrid, reflect_indices
from ldp_runtime.stages.pixels import Image

_BATCH = {"cpu": CLIP_BATCH, "cuda": ENGINE_CLIP_BATCH}
"""Type of device -> the most windows or patches that CLIP sees at once."""

_KEY_VERSION = 1

_T = TypeVar("_T")
_Module = TypeVar("_Module", bound=nn.Module)


class StageClock:
    """Seconds by stage: from CUDA events on a GPU, so that the host waits for nothing in between; else of the host."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, Any, Any]] = []

    def __call__(self, stage: str, function: Callable[..., _T], *arguments: Any) -> _T:
        """Calls a function; its time counts for the stage."""
        if self._cuda:
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            value = function(*arguments)
            stop.record()
            self._events.append((stage, start, stop))
            return value
        begin = time.perf_counter()
        value = function(*arguments)
        self._add(stage, time.perf_counter() - begin)
        return value

    def _add(self, stage: str, seconds: float) -> None:
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """Seconds by stage; waits for the GPU."""
        if self._events:
            torch.cuda.synchronize()
        for stage, start, stop in self._events:
            self._add(stage, start.elapsed_time(stop) / 1000)
        self._events.clear()
        return self._seconds


class Estimator(ABC):
    """Blur logits of a pair from CLIP.

    Attributes:
        encoder: CLIP on windows or patches.
        padding: The size rule of the pair.
    """

    encoder: nn.Module
    padding: Padding

    def __call__(self, sample: PairSample) -> NDArray[np.float32]:
        """Blur logits ``(H / p, W / p)`` float32 of a pair that is padded to ``(H, W)``."""
        with torch.inference_mode():
            pair = self.pair(sample)
            return self.estimate(pair, sample.left.shape[:2], StageClock(pair.device)).cpu().numpy()

    def pair(self, sample: PairSample) -> Tensor:
        """The padded pair ``(6, H, W)`` float32 in [0, 1] on CLIP's device."""
        device = next(self.encoder.parameters()).device
        return pad_pair(upload((sample.left, sample.right), device), self.padding)

    def estimate(self, pair: Tensor, size: tuple[int, int], clock: StageClock) -> Tensor:
        """Blur logits ``(rows, columns)`` of a padded pair.

        Args:
            pair: ``(6, H, W)`` float32 in [0, 1]: left RGB, right RGB.
            size: ``(h, w)`` of the pair without its padding, in px.
            clock: Takes the seconds of ``prepare``, ``clip`` and ``blur_logits``.
        """
        batches = self.batches(pair, size)
        values = []
        while (inputs := clock("prepare", next, batches, None)) is not None:
            features = clock("clip", self.features, *inputs)
            values.append(clock("blur_logits", self.values, *features))
        return clock("blur_logits", lambda: self.assemble(torch.cat(values), pair.shape[1:], size))

    def features(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What CLIP makes of a batch."""
        features = self.encoder(*inputs)
        return features if isinstance(features, tuple) else (features,)

    @abstractmethod
    def batches(self, pair: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, ...]]:
        """The encoder's inputs for a pair, as of ``estimate``, a batch at a time."""

    @abstractmethod
    def values(self, *features: Tensor) -> Tensor:
        """What the features of a batch say of the blur of each window or patch, ``(B, ...)`` float32."""

    @abstractmethod
    def assemble(self, values: Tensor, padded: Sequence[int], size: tuple[int, int]) -> Tensor:
        """The blur logits ``(rows, columns)`` from the values of all batches, of a pair as of ``estimate``."""


class BlurEstimator(Estimator):
    """Blur logits from CLIP's dense features of windows (Eq. 4 to 6)."""

    encoder: WindowEncoder

    def __init__(
        self,
        clip: LoadedClip,
        prompts: Sequence[Prompt],
        windows: Windows,
        multiple: int,
        ensemble: str | int = "ens2",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        """Embeds the prompts.

        Args:
            clip: CLIP; it stays as it is.
            prompts: The calibrated prompts of Table 4.
            windows: The windows that CLIP sees.
            multiple: Both sides of a pair are padded to multiples of this many px, and of CLIP's patch.
            ensemble: A name of ``ldp_runtime.stages.blur_map.ENSEMBLES`` or the number of a prompt.
            device: Where CLIP runs.
            dtype: Of CLIP's weights and activations.
            layout: Of CLIP's weights and inputs.
        """
        self._chosen = [prompts[k] for k in select_prompts(prompts, ensemble)]
        self.patch = clip.encoder.patch
        self.padding = Padding(math.lcm(self.patch, multiple))
        self._windows, self._dtype, self._layout = windows, dtype, layout
        self._canvases = select_canvases(prompts, ensemble)
        self._dp_aware = [prompt.format == DP_AWARE for prompt in self._chosen]
        self._mean, self._std = (torch.tensor(v * 2, device=device)[:, None, None] for v in (clip.mean, clip.std))
        self.encoder = move_copy(WindowEncoder(clip.encoder, windows.window, self._canvases), device, dtype, layout)
        self._texts, self._offsets, self._temperatures = _prompt_tensors(clip, self._chosen, device)

    @property
    def key(self) -> bytes:
        """A hash of all that the logits depend on besides the pair."""
        spec = (
            _KEY_VERSION,
            self.padding,
            asdict(self._windows),
            [msgspec.structs.asdict(prompt) for prompt in self._chosen],
        )
        digest = hashlib.sha256(repr(spec).encode())
        for name, value in [*self.encoder.state_dict().items(), ("texts", self._texts)]:
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.digest()

    def similarities(self, sample: PairSample) -> Tensor:
        """Cosine similarity ``(windows, g, g, k)`` of each prompt with the input that it reads, in ``grid``'s order."""
        with torch.inference_mode():
            cosines = []
            for inputs in self.batches(self.pair(sample), sample.left.shape[:2]):
                features = self._by_canvas(self.features(*inputs))
                cosines.append(prompt_similarities(*features, self._texts, self._dp_aware))
            return torch.cat(cosines)

    def grid(self, padded: Sequence[int]) -> WindowGrid:
        """The windows over a padded pair of ``(H, W)`` px."""
        windows = self._windows
        return WindowGrid.cover(*padded, window=windows.window, overlap=windows.overlap, patch=self.patch)

    def batches(self, pair: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, ...]]:
        """Stereo canvases ``(B, 3, s, 2s)``, center views ``(B, 3, s, s)`` or both, CLIP-normalised."""
        p, s = self.patch, self._windows.window
        grid = self.grid(pair.shape[1:])
        source = (_pad(pair, (grid.rows.grid * p, grid.columns.grid * p)) - self._mean) / self._std
        origins = grid.origins()
        batch = _BATCH[pair.device.type]
        make = {"stereo": stereo_canvas, "center": center_view}
        for first in range(0, len(origins), batch):
            regions = torch.stack(
                [source[:, y * p : y * p + s, x * p : x * p + s] for y, x in origins[first : first + batch]]
            )  # (B, 6, s, s)
            views = regions[:, :3], regions[:, 3:]
            yield tuple(
                canvas.to(self._dtype).contiguous(memory_format=self._layout)
                for canvas in (make[name](*views) for name in self._canvases)
            )

    def features(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Features of a batch, as of ``WindowEncoder``."""
        features: tuple[Tensor, ...] = self.encoder(**dict(zip(self._canvases, inputs, strict=True)))
        return features

    def values(self, *features: Tensor) -> Tensor:
        """Blur logits ``(B, g, g)`` of windows, from features as of ``WindowEncoder``."""
        seen = self._by_canvas(features)
        return blur_logits(*seen, self._texts, self._dp_aware, self._offsets, self._temperatures)[:, 0]

    def _by_canvas(self, features: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Features of the stereo canvases and of the center views; None for what CLIP does not see."""
        found = dict(zip(self._canvases, features, strict=True))
        return found.get("stereo"), found.get("center")

    def assemble(self, values: Tensor, padded: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Blends the windows: ``WindowGrid.blend`` on the device."""
        grid = self.grid(padded)
        g = grid.rows.window
        rows, columns = (torch.from_numpy(axis.weights()).to(values.device) for axis in (grid.rows, grid.columns))
        weights = (rows[:, None, :, None] * columns[None, :, None, :]).reshape(-1, g, g)
        blended = values.new_zeros(grid.rows.grid, grid.columns.grid)
        for (y, x), field in zip(grid.origins(), weights * values, strict=True):
            blended[y : y + g, x : x + g] += field
        return blended[: padded[0] // self.patch, : padded[1] // self.patch].contiguous()


class PatchBlurEstimator(Estimator):
    """Blur logits from CLIP's pooled feature of patches, as ``ldp_runtime.stages.patch_blur_map`` describes them."""

    encoder: PatchEncoder

    def __init__(
        self, clip: LoadedClip, prompt: Prompt, side: int, multiple: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        """Embeds the prompt.

        Args:
            clip: CLIP; it stays as it is.
            prompt: What patches are compared with.
            side: Side of a patch in px.
            multiple: Both sides of a pair are padded to multiples of this many px.
            device: Where CLIP runs.
            dtype: Of CLIP's weights and activations.
        """
        self.padding, self._dtype = Padding(multiple), dtype
        self.encoder = move_copy(PatchEncoder(clip, side), device, dtype)
        self._texts, self._offsets, self._temperatures = _prompt_tensors(clip, [prompt], device)

    def batches(self, pair: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, ...]]:
        """Patches ``(B, 3, side, 2 side)`` in [0, 1]: a patch of L beside the flipped same patch of R."""
        side, (rows, columns) = self.encoder.side, self._grid(size)
        source = _pad(pair[:, : size[0], : size[1]], (rows * side, columns * side))
        views = source.reshape(2, 3, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        for patches in stereo_canvas(*views).to(self._dtype).split(_BATCH[pair.device.type]):
            yield (patches,)

    def values(self, *features: Tensor) -> Tensor:
        """How blurred each patch is by itself, ``(B, 1)`` in [0, 1]."""
        z = prompt_logits(similarity(features[0], self._texts), self._offsets, self._temperatures)
        return 1 - z.clamp(0, 1)

    def assemble(self, values: Tensor, padded: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Stretches the values to reach from 0 to 1, if they are not all equal, and makes logits of them."""
        low, high = values.min(), values.max()
        stretched = torch.where(low == high, values, (values - low) / (high - low))
        return torch.logit(stretched).clamp(-LOGIT_LIMIT, LOGIT_LIMIT).reshape(self._grid(size))

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        side = self.encoder.side
        return -(-size[0] // side), -(-size[1] // side)


def upload(views: Sequence[Image], device: torch.device) -> list[Tensor]:
    """Views in memory as tensors on a device."""
    return [torch.from_numpy(np.require(view, requirements=["C", "W"])).to(device) for view in views]


def pad_pair(views: Sequence[Tensor], padding: Padding) -> Tensor:
    """The padded pair ``(6, H, W)`` float32 in [0, 1] of views ``(h, w, 3)`` uint8 or uint16."""
    planes = torch.cat([view.permute(2, 0, 1) for view in views]).to(torch.float32)  # (6, h, w)
    planes /= torch.tensor(float(torch.iinfo(views[0].dtype).max), device=planes.device)  # a number would be inverted
    return _pad(planes, padding.padded_size(*planes.shape[1:]))


def _pad(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Pads ``(..., h, w)`` bottom and right to ``(..., H, W)`` by the runtime's rule, reflect-101."""
    for axis, (length, padded) in enumerate(zip(planes.shape[-2:], size, strict=True), start=planes.ndim - 2):
        if length != padded:
            planes = planes.index_select(axis, torch.from_numpy(reflect_indices(length, padded)).to(planes.device))
    return planes


def move_copy(
    module: _Module,
    device: torch.device | str,
    dtype: torch.dtype,
    layout: torch.memory_format = torch.contiguous_format,
) -> _Module:
    """A copy of a module in evaluation mode."""
    moved: _Module = copy.deepcopy(module).eval().to(device, dtype, memory_format=layout)  # type: ignore[call-overload]
    return moved


def _prompt_tensors(
    clip: LoadedClip, prompts: Sequence[Prompt], device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """Text embeddings ``(k, c)``, offsets ``(k,)`` and temperatures ``(k,)``."""
    with torch.inference_mode():
        texts = embed_texts(clip, [prompt.text for prompt in prompts]).to(device)
    offsets, temperatures = (
        torch.tensor([getattr(prompt, name) for prompt in prompts], device=device) for name in ("offset", "temperature")
    )
    return texts, offsets, temperatures
