"""Blur logits of whole frames from CLIP, computed once and kept on disk, keyed by content.

Training crops are cut from what CLIP saw of the full frame, window by window, exactly as the runtime does it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ldp_export.blur_map import blur_logits, center_view, stereo_canvas
from ldp_export.checkpoint import Windows
from ldp_export.clip import LoadedClip, WindowEncoder, embed_texts
from ldp_export.data import PairDataset, PairSample
from ldp_runtime.bundle.manifest import Prompt
from ldp_runtime.files import write_whole
from ldp_runtime.stages.blur_map import DP_AWARE, select_prompts
from ldp_runtime.stages.geometry import Padding, WindowGrid, pad_reflect

CHUNK = 64
"""So many pairs share a file of the cache."""

_BATCH = 64
_VERSION = 1


class BlurEstimator:
    """Blur logits of a pair from CLIP (Eq. 4 to 6), as ``ldp_runtime`` computes them."""

    def __init__(
        self,
        clip: LoadedClip,
        prompts: Sequence[Prompt],
        windows: Windows,
        multiple: int,
        ensemble: str | int = "ens2",
        device: torch.device | None = None,
    ) -> None:
        """Embeds the prompts.

        Args:
            clip: CLIP.
            prompts: The calibrated prompts of Table 4.
            windows: The windows that CLIP sees.
            multiple: What the runtime pads both sides of a pair to multiples of, in px: those of the network; those of
                CLIP's patch are taken in here.
            ensemble: A name of ``ldp_runtime.stages.blur_map.ENSEMBLES`` or the number of a prompt.
            device: Where CLIP runs; None is the CPU.
        """
        chosen = [prompts[k] for k in select_prompts(prompts, ensemble)]
        self.patch = clip.encoder.patch
        self._padding = Padding(math.lcm(self.patch, multiple))
        self._windows = windows
        self._device = device or torch.device("cpu")
        self._dp_aware = [prompt.format == DP_AWARE for prompt in chosen]
        self._mean, self._std = (np.asarray(v * 2, np.float32)[:, None, None] for v in (clip.mean, clip.std))
        with torch.inference_mode():
            self._texts = embed_texts(clip, [prompt.text for prompt in chosen]).to(self._device)
            self._encoder = WindowEncoder(clip.encoder, windows.window).eval().to(self._device)
        self._offsets = torch.tensor([prompt.offset for prompt in chosen], device=self._device)
        self._temperatures = torch.tensor([prompt.temperature for prompt in chosen], device=self._device)
        digest = hashlib.sha256(repr((_VERSION, self._padding, asdict(windows), [asdict(p) for p in chosen])).encode())
        for name, value in [*self._encoder.state_dict().items(), ("texts", self._texts)]:
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        self.key = digest.digest()

    def __call__(self, sample: PairSample) -> NDArray[np.float32]:
        """Blur logits ``(H / p, W / p)`` of a pair that is padded to ``(H, W)``."""
        p, s = self.patch, self._windows.window
        H, W = self._padding.padded_size(*sample.left.shape[:2])
        planes = np.concatenate([sample.left, sample.right], axis=2).transpose(2, 0, 1).astype(np.float32)
        planes /= np.float32(sample.peak)
        padded = pad_reflect(pad_reflect(planes, (H, W)), (max(H, s), max(W, s)))
        source = torch.from_numpy((padded - self._mean) / self._std)
        grid = WindowGrid.cover(H, W, window=s, overlap=self._windows.overlap, patch=p)
        corners = [(y * p, x * p) for y, x in grid.origins()]
        fields = []
        with torch.inference_mode():
            for first in range(0, len(corners), _BATCH):
                regions = torch.stack([source[:, y : y + s, x : x + s] for y, x in corners[first : first + _BATCH]]).to(
                    self._device
                )
                stereo, center = self._encoder(
                    stereo_canvas(regions[:, :3], regions[:, 3:]), center_view(regions[:, :3], regions[:, 3:])
                )
                z = blur_logits(stereo, center, self._texts, self._dp_aware, self._offsets, self._temperatures)
                fields.append(z[:, 0].cpu().numpy())
        blended = grid.blend(np.concatenate(fields))
        return np.ascontiguousarray(blended[: H // p, : W // p])


def chunks(count: int) -> list[range]:
    """The indices of ``count`` pairs by the file of the cache that holds them."""
    return [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def chunk_logits(
    dataset: PairDataset, chunk: range, estimator: BlurEstimator, cache: Path | None
) -> list[NDArray[np.float32]]:
    """Blur logits of some pairs, from the cache if it has them; if not they are computed and put there.

    Args:
        dataset: The pairs.
        chunk: Their indices.
        estimator: CLIP.
        cache: A folder, or None to keep nothing. A file that is damaged or cannot be written is done without.
    """
    digest = hashlib.sha256(estimator.key)
    for index in chunk:  # one at a time: a chunk of photographs is too large to hold
        sample = dataset[index]
        for view in (sample.left, sample.right):
            digest.update(f"{view.shape}{view.dtype}".encode())
            digest.update(np.ascontiguousarray(view).data)
    path = None if cache is None else cache / f"{digest.hexdigest()}.npz"
    if path is not None and path.is_file():
        try:
            with np.load(path) as file:
                return [file[f"{i}"] for i in range(len(chunk))]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass
    logits = [estimator(dataset[index]) for index in chunk]
    if path is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **{f"{i}": z for i, z in enumerate(logits)})  # type: ignore[arg-type]
        with contextlib.suppress(OSError):
            write_whole({path: buffer.getvalue()})
    return logits
