"""The chain in torch, eager: what the runtime's backends are compared with, in time and in numbers.

It computes what ``ldp_runtime.deblurrer`` does, from the same views and with the weights that the bundle was exported
from, with ``ldp_export``'s modules as training uses them. On a GPU everything between the copy of the views to the
device and the copy of the restored image back happens there, so that the comparison does torch no injustice.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness.machine import BF16_FEATURES
from benchmarks.harness.results import BenchmarkError
from ldp_export.blur_map import blur_logits, center_view, stereo_canvas
from ldp_export.clip import WindowEncoder, embed_texts
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.stages.blur_map import DP_AWARE, select_prompts
from ldp_runtime.stages.geometry import WindowGrid, reflect_indices

if TYPE_CHECKING:
    from ldp_export.model import ExportModel

LAYOUTS = {"torch": torch.contiguous_format, "torch-channels-last": torch.channels_last}
"""Name of a form of the chain -> memory layout of its weights and activations."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

CLIP_BATCH = 8
"""Windows that CLIP sees at a time, at most: as many as in the runtime on a CPU."""


def device() -> str:
    """Where torch runs here: "cuda" where it has a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def precisions(features: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """The precisions that make sense for torch here, FP32 first.

    Args:
        features: Instruction sets of the CPU, as in ``machine.CPU_FEATURES``: bf16 without them is emulated.
    """
    if device() == "cuda":
        return ("fp32", "fp16", "bf16")
    return ("fp32", "bf16") if BF16_FEATURES & set(features) else ("fp32",)


@dataclass(frozen=True, eq=False)
class TorchResult:
    """What the chain returns.

    Attributes:
        restored: ``(h, w, 3)`` in the dtype of the views.
        blur_logits: ``(H / p, W / p)`` float32.
        timings: Seconds by stage, named as the runtime's; on a GPU also ``upload`` and ``download``.
    """

    restored: NDArray[Any]
    blur_logits: NDArray[np.float32]
    timings: dict[str, float]


class TorchChain:
    """The chain of one bundle in eager torch."""

    def __init__(
        self, bundle: Bundle, model: ExportModel, layout: str = "torch", precision: str = "fp32", device: str = "cpu"
    ) -> None:
        """Moves the modules to where they run.

        Args:
            bundle: For its padding rule and windows, prompts and ensemble.
            model: The modules with the bundle's weights; they stay as they are.
            layout: A name of ``LAYOUTS``.
            precision: A name of ``DTYPES``: of weights and activations; the modules keep their own FP32 islands.
            device: "cpu" or "cuda".
        """
        if layout not in LAYOUTS or precision not in DTYPES:
            raise BenchmarkError(
                f"expected a layout of {', '.join(LAYOUTS)} and a precision of {', '.join(DTYPES)}, got {layout!r} "
                f"and {precision!r}"
            )
        self._manifest = bundle.manifest
        self._device = torch.device(device)
        self._dtype, self._layout = DTYPES[precision], LAYOUTS[layout]
        if device == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
        window = WindowEncoder(model.clip.encoder, self._manifest.require_clip().window)
        self._clip, self._network = (
            copy.deepcopy(module).eval().to(self._device, self._dtype, memory_format=self._layout)  # type: ignore[call-overload]
            for module in (window, model.network)
        )
        prompts = self._manifest.prompts
        chosen = select_prompts(prompts, self._manifest.ensemble)
        with torch.inference_mode():
            texts = embed_texts(model.clip, [prompts[k].text for k in chosen])
        self._texts = texts.to(self._device)
        self._dp_aware = [prompts[k].format == DP_AWARE for k in chosen]
        self._offsets, self._temperatures = (
            torch.tensor([getattr(prompts[k], name) for k in chosen], device=self._device)
            for name in ("offset", "temperature")
        )
        self._mean, self._std = (
            torch.tensor(values, device=self._device)[:, None, None]
            for values in (self._manifest.require_clip().mean, self._manifest.require_clip().std)
        )

    def __call__(self, left: NDArray[Any], right: NDArray[Any]) -> TorchResult:
        """Restores a pair.

        Args:
            left: Left view ``(h, w, 3)`` uint8 or uint16.
            right: Right view, the same shape and dtype.
        """
        clock = _Clock(self._device)
        with torch.inference_mode():
            with clock("upload" if self._device.type == "cuda" else "prepare"):
                views = [torch.from_numpy(np.ascontiguousarray(view)).to(self._device) for view in (left, right)]
            pair, logits = self._blur_logits(views, float(np.iinfo(left.dtype).max), clock)
            with clock("deblur"):
                restored = self._network(pair.contiguous(memory_format=self._layout), logits[None, None])
            with clock("finish"):
                h, w = left.shape[:2]
                top = float(np.iinfo(left.dtype).max)
                image = (restored[0, :, :h, :w].permute(1, 2, 0) * top).round_().clamp_(0, top)
                image = image.to(views[0].dtype).contiguous()
            with clock("download" if self._device.type == "cuda" else "finish"):
                result = image.cpu().numpy()
        return TorchResult(result, logits.cpu().numpy(), clock.seconds())

    def _blur_logits(self, views: list[Tensor], top: float, clock: _Clock) -> tuple[Tensor, Tensor]:
        """The padded pair ``(1, 6, H, W)`` and its blur logits ``(H / p, W / p)``, window by window."""
        manifest = self._manifest
        p, s = manifest.require_clip().patch, manifest.require_clip().window
        with clock("prepare"):
            planes = torch.cat([view.permute(2, 0, 1) for view in views]).to(torch.float32) / top  # (6, h, w)
            pair = _pad(planes, manifest.padding.padded_size(*planes.shape[1:]))
            H, W = pair.shape[1:]
            grid = WindowGrid.cover(H, W, window=s, overlap=manifest.require_clip().overlap, patch=p)
            source = _pad(pair, (grid.rows.grid * p, grid.columns.grid * p))
            source = (source.reshape(2, 3, *source.shape[1:]) - self._mean) / self._std  # (2, 3, H, W)
        origins = grid.origins()
        fields = []
        for first in range(0, len(origins), CLIP_BATCH):
            with clock("prepare"):
                regions = torch.stack(
                    [source[..., y * p : y * p + s, x * p : x * p + s] for y, x in origins[first:][:CLIP_BATCH]], dim=1
                )  # (2, B, 3, s, s)
                stereo, center = (
                    canvas.to(self._dtype).contiguous(memory_format=self._layout)
                    for canvas in (stereo_canvas(regions[0], regions[1]), center_view(regions[0], regions[1]))
                )
            with clock("clip"):
                of_canvas, of_center = self._clip(stereo, center)
            with clock("blur_logits"):
                fields.append(
                    blur_logits(of_canvas, of_center, self._texts, self._dp_aware, self._offsets, self._temperatures)
                )
        with clock("blur_logits"):
            logits = _blend(grid, torch.cat(fields)[:, 0])[: H // p, : W // p].contiguous()
        return pair[None], logits


def _pad(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Pads ``(..., h, w)`` bottom and right to ``(..., H, W)`` by the runtime's rule, reflect-101."""
    for axis, (have, want) in enumerate(zip(planes.shape[-2:], size, strict=True), start=planes.ndim - 2):
        if have != want:
            planes = planes.index_select(axis, torch.from_numpy(reflect_indices(have, want)).to(planes.device))
    return planes


def _blend(grid: WindowGrid, fields: Tensor) -> Tensor:
    """``WindowGrid.blend`` where the fields ``(n, g, g)`` are; gives ``(rows, columns)``."""
    g = grid.rows.window
    rows, columns = (torch.from_numpy(axis.weights()).to(fields.device) for axis in (grid.rows, grid.columns))
    weights = (rows[:, None, :, None] * columns[None, :, None, :]).reshape(-1, g, g)
    blended = fields.new_zeros(grid.rows.grid, grid.columns.grid)
    for (y, x), field in zip(grid.origins(), weights * fields, strict=True):
        blended[y : y + g, x : x + g] += field
    return blended


class _Clock:
    """Seconds by stage: CUDA events on a GPU, so that nothing waits for the host in between; else the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self._cuda:
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            stop.record()
            self._events.append((stage, start, stop))
            return
        begin = time.perf_counter()
        yield
        self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - begin

    def seconds(self) -> dict[str, float]:
        """Seconds by stage; waits for the GPU."""
        if self._cuda:
            torch.cuda.synchronize()
            for stage, start, stop in self._events:
                self._seconds[stage] = self._seconds.get(stage, 0.0) + start.elapsed_time(stop) / 1000
        return self._seconds
