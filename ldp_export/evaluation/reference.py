"""A checkpoint run in torch behind the runtime's interface, to score it without exporting a bundle first."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from numpy.typing import NDArray

from ldp_export.checkpoint import Checkpoint
from ldp_export.data.base import PairSample
from ldp_export.frame_logits import BlurEstimator
from ldp_runtime.errors import NumericsError
from ldp_runtime.result import Result
from ldp_runtime.stages.blur_map import upsample_map
from ldp_runtime.stages.geometry import Padding, pad_reflect
from ldp_runtime.stages.pixels import Image, check_finite

_RUNTIME_MULTIPLE = 16


class TorchDeblurrer:
    """Restores pairs with a checkpoint in FP32, on the GPU where torch has one; called as ``Deblurrer`` is.

    Attributes:
        name: The checkpoint's name.
        backend: "torch on" and the device.
        precision: "fp32".
    """

    def __init__(self, checkpoint: Checkpoint, threads: int | None = None) -> None:
        """Loads the network, CLIP and the calibration.

        Args:
            checkpoint: The checkpoint.
            threads: CPU threads; None leaves it to torch.

        Raises:
            LDPError: A part is missing or does not fit.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.name = str(checkpoint.training().get("name") or checkpoint.path.absolute().name)
        self.backend, self.precision = f"torch on {self._device.type}", "fp32"
        self._network = checkpoint.network().to(self._device)
        clip = checkpoint.clip()
        config = self._network.config
        self._padding = Padding(math.lcm(_RUNTIME_MULTIPLE, config.multiple, clip.encoder.patch))
        windows = checkpoint.windows(clip.encoder.patch)
        self._estimator = BlurEstimator(
            clip, checkpoint.prompts(), windows, config.multiple, config.ensemble, self._device
        )

    def __call__(self, left: Image, right: Image) -> Result:
        """Restores a pair whose disparity runs along x.

        Args:
            left: ``(h, w, 3)`` uint8 or uint16 RGB.
            right: The other view, of the same shape and dtype.

        Raises:
            DataError: The views are not such a pair.
            NumericsError: NaN or Inf appeared.
        """
        seconds = {}
        start = time.perf_counter()
        size = self._padding.padded_size(*left.shape[:2])
        views = (
            np.ascontiguousarray(pad_reflect(v.transpose(2, 0, 1), size).transpose(1, 2, 0)) for v in (left, right)
        )
        padded = PairSample("pair", *views)
        logits = self._estimator(padded)
        if not np.isfinite(logits).all():
            raise NumericsError("expected finite blur logits, got NaN or Inf; train CLIP again")
        seconds["clip"] = time.perf_counter() - start
        planes = np.concatenate([padded.left, padded.right], axis=2).transpose(2, 0, 1).astype(np.float32)
        pair = torch.from_numpy(planes / np.float32(padded.peak))[None].to(self._device)
        with torch.inference_mode():
            restored = self._network(pair, torch.from_numpy(logits)[None, None].to(self._device))[0]
        planes = restored.float().cpu().numpy()
        seconds["deblur"] = time.perf_counter() - start - seconds["clip"]
        check_finite(planes)  # the padding too: what is wrong there is wrong elsewhere for another photo
        h, w = left.shape[:2]
        image = planes[:, :h, :w].transpose(1, 2, 0)
        return Result(
            restored=_quantise(image, padded.left.dtype),
            blur_map=upsample_map(logits, (h, w), self._estimator.patch),
            blur_logits=logits,
            timings=seconds,
            backend=self.backend,
            precision=self.precision,
        )


def _quantise(image: NDArray[np.float32], dtype: np.dtype[np.generic]) -> Image:
    """Clamps to [0, 1] and rounds half to even to the dtype's range."""
    top = np.float32(np.iinfo(dtype).max)  # type: ignore[type-var]  # uint8 or uint16
    return np.clip(np.rint(image * top), 0, top).astype(dtype)
