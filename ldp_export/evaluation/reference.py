"""The whole chain in eager torch: the reference for exported graphs and latencies, and what scores checkpoints.

It shares no code with the runtime's NumPy form of the blur logits, so a parity check compares two implementations. On a
GPU everything between the upload of the views and the download of the restored image happens there.
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
from ldp_export.model import ExportModel
from ldp_runtime.bundle.manifest import Prompt
from ldp_runtime.errors import NumericsError
from ldp_runtime.result import Result
from ldp_runtime.stages.blur_map import DP_AWARE, select_canvases, select_prompts, upsample_map
from ldp_runtime.stages.geometry import Padding, WindowGrid, reflect_indices
from ldp_runtime.stages.pixels import FIX_NUMERICS, Image

LAYOUTS = {"torch": torch.contiguous_format, "torch-channels-last": torch.channels_last}
"""Name of a form of the chain -> memory layout of its weights and activations."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Name of a precision -> dtype of weights and activations; the modules keep their own FP32 islands."""

CLIP_BATCH = {"cpu": 8, "cuda": 64}
"""Type of device -> the most windows or patches that CLIP sees at once, as in the runtime."""

_KEY_VERSION = 1

_T = TypeVar("_T")
_Module = TypeVar("_Module", bound=nn.Module)


def default_device() -> str:
    """Where torch runs here: "cuda" where it has a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


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
        self.encoder = _moved(WindowEncoder(clip.encoder, windows.window, self._canvases), device, dtype, layout)
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
        batch = CLIP_BATCH[pair.device.type]
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
        self.encoder = _moved(PatchEncoder(clip, side), device, dtype)
        self._texts, self._offsets, self._temperatures = _prompt_tensors(clip, [prompt], device)

    def batches(self, pair: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, ...]]:
        """Patches ``(B, 3, side, 2 side)`` in [0, 1]: a patch of L beside the flipped same patch of R."""
        side, (rows, columns) = self.encoder.side, self._grid(size)
        source = _pad(pair[:, : size[0], : size[1]], (rows * side, columns * side))
        views = source.reshape(2, 3, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        for patches in stereo_canvas(*views).to(self._dtype).split(CLIP_BATCH[pair.device.type]):
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


class TorchDeblurrer:
    """Restores pairs in torch; called as ``ldp_runtime.Deblurrer`` is.

    Attributes:
        backend: "torch on" and the device.
        precision: A name of ``DTYPES``.
        padding: The size rule of the pair.
        estimator: Estimates the blur map; None where the network reads none.
        network: The network on the device.
    """

    def __init__(
        self, model: ExportModel, *, layout: str = "torch", precision: str = "fp32", device: str | None = None
    ) -> None:
        """Copies the modules to where they run.

        Args:
            model: The modules, as from ``model_from_checkpoint``; they stay as they are.
            layout: A name of ``LAYOUTS``.
            precision: A name of ``DTYPES``.
            device: "cpu" or "cuda"; None is the GPU where torch has one.

        Raises:
            ValueError: There is no such layout or precision.
        """
        if layout not in LAYOUTS or precision not in DTYPES:
            raise ValueError(
                f"expected a layout of {', '.join(LAYOUTS)} and a precision of {', '.join(DTYPES)}, got {layout!r} "
                f"and {precision!r}"
            )
        self._device = torch.device(device or default_device())
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
        self.backend, self.precision, self._layout = f"torch on {self._device.type}", precision, LAYOUTS[layout]
        place = self._device, DTYPES[precision], self._layout
        self._blur, self.padding = model.blur_map, model.padding
        self.estimator: Estimator | None = None
        if model.clip is not None and model.windows is not None:
            if (side := model.blur_map.patch) is not None:
                self.estimator = PatchBlurEstimator(model.clip, model.prompts[0], side, model.multiple, *place[:2])
            else:
                ensemble = model.network.config.ensemble
                self.estimator = BlurEstimator(
                    model.clip, model.prompts, model.windows, model.multiple, ensemble, *place
                )
            self._cell = model.blur_map.patch or model.clip.encoder.patch
        self.network = _moved(model.network, *place)

    def __call__(self, left: Image, right: Image) -> Result:
        """Restores a pair whose disparity runs along x.

        Args:
            left: Left view ``(h, w, 3)`` uint8 or uint16 RGB.
            right: Right view, the same shape and dtype.

        Returns:
            The result, with the seconds of ``prepare``, ``clip``, ``blur_logits``, ``deblur`` and ``finish``, on a GPU
            also of ``upload`` and ``download``. Without an estimator there are no blur map and no stages of it.

        Raises:
            DataError: The views are not such a pair.
            NumericsError: NaN or Inf appeared.
        """
        sample = PairSample("pair", left, right)
        h, w = left.shape[:2]
        on_gpu = self._device.type == "cuda"
        clock = StageClock(self._device)
        with torch.inference_mode():
            views = clock("upload" if on_gpu else "prepare", upload, (left, right), self._device)
            pair = clock("prepare", pad_pair, views, self.padding)
            logits = None if self.estimator is None else self.estimator.estimate(pair, (h, w), clock)
            restored = clock("deblur", self.restore, pair, logits)
            image, finite = clock("finish", self._finish, restored, (h, w), sample.peak, views[0].dtype)
            pixels = clock("download" if on_gpu else "finish", lambda: image.cpu().numpy())
            field = None if logits is None else logits.cpu().numpy()
        if field is not None and not np.isfinite(field).all():
            raise NumericsError("expected finite blur logits, got NaN or Inf; train CLIP again")
        if not finite:
            raise NumericsError(f"expected a restored image of finite numbers, got NaN or Inf; {FIX_NUMERICS}")
        return Result(
            restored=pixels,
            blur_map=None if field is None else lambda: upsample_map(field, (h, w), self._cell),
            blur_logits=field,
            timings=clock.seconds(),
            backend=self.backend,
            precision=self.precision,
        )

    def restore(self, pair: Tensor, logits: Tensor | None) -> Tensor:
        """The network on a pair ``(6, H, W)`` and blur logits ``(rows, columns)`` if it reads any: ``(1, 3, H, W)``."""
        inputs = self.network_inputs(pair, logits)
        inputs["pair"] = inputs["pair"].contiguous(memory_format=self._layout)
        restored: Tensor = self.network(*inputs.values())
        return restored

    def network_inputs(self, pair: Tensor, logits: Tensor | None) -> dict[str, Tensor]:
        """What the network reads, by the names of its graph.

        Args:
            pair: ``(6, H, W)`` float32.
            logits: ``(rows, columns)``; None where the network reads no blur map.

        Returns:
            ``pair (1, 6, H, W)`` and ``blur_logits (1, 1, rows, columns)`` or ``blur_map (1, 1, H, W)``.
        """
        if logits is None:
            return {"pair": pair[None]}
        if self._blur.network_input == "logits":
            return {"pair": pair[None], "blur_logits": logits[None, None]}
        blur_map = upsample_map(logits.cpu().numpy(), (pair.shape[1], pair.shape[2]), self._cell)
        return {"pair": pair[None], "blur_map": torch.from_numpy(blur_map)[None, None].to(pair.device)}

    @staticmethod
    def _finish(restored: Tensor, size: tuple[int, int], peak: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The image ``(h, w, 3)``, clamped and rounded half to even, and whether all was finite, the padding too."""
        h, w = size
        image = (restored[0, :, :h, :w].permute(1, 2, 0) * peak).round_().clamp_(0, peak)
        return image.to(dtype).contiguous(), restored.isfinite().all()


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


def _moved(
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
