"""The whole chain in eager torch: the reference for exported graphs and latencies, and what scores checkpoints.

On a GPU everything between the upload of the views and the download of the restored image happens there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldp_export.data.base import PairSample
from ldp_export.evaluation.estimators import (
    BlurEstimator,
    Estimator,
    PatchBlurEstimator,
    StageClock,
    move_copy,
    pad_pair,
    upload,
)
from ldp_export.model import ExportModel
from ldp_runtime.errors import NumericsError
from ldp_runtime.result import Result
from ldp_runtime.stages.blur_map import upsample_map
from ldp_runtime.stages.pixels import FIX_NUMERICS, Image

LAYOUTS = {"torch": torch.contiguous_format, "torch-channels-last": torch.channels_last}
"""Name of a form of the chain -> memory layout of its weights and activations."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Name of a precision -> dtype of weights and activations; the modules keep their own FP32 islands."""


def default_device() -> str:
    """Where torch runs here: "cuda" where it has a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


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
        self.network = move_copy(model.network, *place)

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
