"""The losses of the paper's Section 3.3: Charbonnier, blur-weighting and blur-aware (Eq. 11 to 14).

Images are ``(B, 3, H, W)`` float32 with full scale 1. Each loss is the mean over the image domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from msgspec import Meta, Struct
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.blur_map import center_view, ensemble_logits, prompt_logits, similarity, upsample_map
from ldp_export.checkpoint import Windows
from ldp_export.clip import LoadedClip, embed_texts
from ldp_runtime.bundle.manifest import Prompt
from ldp_runtime.errors import LDPError
from ldp_runtime.structs import one_of

EPSILON = 1e-4
"""The epsilon of Eq. 11."""

PSNR_FLOOR = 1e-4
"""Added to the mean squared error of each image: from 40 dB on, more PSNR counts for little."""

FLOOR = 1e-3
"""Default lower bound of the denominator of Eq. 12, which is zero where the pair is sharp."""

_Weight = Annotated[float, Meta(ge=0)]


class LossError(LDPError):
    """The losses cannot be computed with the crop or the prompts that were given."""


class LossConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What is minimised (Eq. 14).

    Attributes:
        charbonnier: Weight of the Charbonnier loss.
        psnr: Weight of NAFNet's loss; no part of the paper's. Where pairs differ much in blur, it does not spend the
            sharp ones on the blurred ones.
        blur_aware: Weight of the blur-aware loss, the paper's lambda_1 (0.1 in its second stage).
        blur_weighting: Weight of the blur-weighting loss, the paper's lambda_2 (0.2 in its second stage).
        denominator: What the center view is compared with in the denominator of Eq. 12: "target", as the paper's text
            says, or "restored", as its equation prints.
        floor: What that denominator is at least.
        deviation_window: Side in px, odd, of the square over which the denominator's deviation is averaged; 1 means
            each pixel's own, as in Eq. 12. See ``blur_weighting``.
        blur_aware_form: "softplus" of the unnormalised blur map, which is zero where nothing is blurred, as in Eq. 13,
            or "raw", the map itself, which has no lower bound.
    """

    charbonnier: _Weight = 1.0
    psnr: _Weight = 0.0
    blur_aware: _Weight = 0.0
    blur_weighting: _Weight = 0.0
    denominator: Annotated[str, one_of(("target", "restored"))] = "target"
    floor: Annotated[float, Meta(gt=0)] = FLOOR
    deviation_window: Annotated[int, Meta(ge=1)] = 1
    blur_aware_form: Annotated[str, one_of(("softplus", "raw"))] = "softplus"


def charbonnier(restored: Tensor, target: Tensor) -> Tensor:
    """Eq. 11, the norm being over the three channels of a pixel.

    Args:
        restored: ``(B, 3, H, W)``.
        target: The same shape.

    Returns:
        The mean over pixels, a scalar.
    """
    return torch.sqrt((restored - target).square().sum(1) + EPSILON**2).mean()


def psnr(restored: Tensor, target: Tensor) -> Tensor:
    """Minus the PSNR of each image, in units of 10 dB: the loss of NAFNet (Chen et al. 2022).

    Args:
        restored: ``(B, 3, H, W)``.
        target: The same shape.

    Returns:
        The mean over images, a scalar.
    """
    return torch.log10((restored - target).square().mean((1, 2, 3)) + PSNR_FLOOR).mean()


def blur_weighting(
    restored: Tensor,
    target: Tensor,
    center: Tensor,
    blur_map: Tensor,
    denominator: str = "target",
    floor: float = FLOOR,
    deviation_window: int = 1,
) -> Tensor:
    """Eq. 12: the restoration's squared error relative to the center view's, weighted by the blur map.

    Per pixel, the loss is largest where the target happens to equal the center view: in flat parts, and where the
    profile of a blurred edge crosses the sharp one. Such pixels have a weight of up to ``1 / floor`` and
    nothing to restore. A larger floor lowers the weight of both; a window, which averages the deviation over a
    pixel's neighbours, that of the crossings alone.

    Args:
        restored: ``(B, 3, H, W)``.
        target: The same shape.
        center: The center view, the same shape.
        blur_map: ``(B, 1, H, W)`` in [0, 1], larger where the pair is more blurred.
        denominator: Whose deviation from the center view divides, see ``LossConfig``.
        floor: What the deviation is at least.
        deviation_window: Side in px, odd, of the square that the deviation is averaged over; at borders over the
            part inside.

    Returns:
        The mean over pixels, a scalar.
    """
    error = (restored - target).square().sum(1)
    reference = target if denominator == "target" else restored
    deviation = (reference - center).square().sum(1)
    if deviation_window > 1:
        reach = deviation_window // 2
        deviation = F.avg_pool2d(deviation[:, None], deviation_window, 1, reach, count_include_pad=False)[:, 0]
    return (error / deviation.clamp_min(floor) * blur_map[:, 0]).mean()


def blur_aware(blur_logits: Tensor, form: str = "softplus") -> Tensor:
    """Eq. 13: how blurred CLIP finds the restoration.

    Args:
        blur_logits: Unnormalised blur-aware map of the restoration, any shape; see ``BlurAwareMap``.
        form: See ``LossConfig``.

    Returns:
        The mean over the map, a scalar.
    """
    return (F.softplus(blur_logits) if form == "softplus" else blur_logits).mean()


class BlurAwareMap(nn.Module):
    """The unnormalised map of the blur-aware format (Eq. 4) of an image, through CLIP's frozen image encoder.

    Gradients pass through the encoder to the image; its weights get none. The prompts of the format form an ensemble.
    """

    def __init__(
        self,
        clip: LoadedClip,
        prompts: Sequence[Prompt],
        windows: Windows,
        autocast: torch.dtype | None = None,
    ) -> None:
        """Freezes CLIP's weights.

        Args:
            clip: CLIP.
            prompts: The calibrated prompts; those of the blur-aware format are used.
            windows: The windows that CLIP was calibrated for. An image of at most that size is seen whole, a larger
                one in windows side by side.
            autocast: Type in which the encoder's matrices are multiplied; None is FP32. The cosine is FP32 anyway.

        Raises:
            LossError: There is no blur-aware prompt.
        """
        super().__init__()
        chosen = [prompt for prompt in prompts if prompt.format == "blur-aware"]
        if not chosen:
            raise LossError("expected blur-aware prompts for the blur-aware loss, got none; calibrate all of Table 4")
        self.encoder = clip.encoder.eval().requires_grad_(False)
        self.window = windows.window
        self.autocast = autocast
        with torch.no_grad():
            texts = embed_texts(clip, [prompt.text for prompt in chosen])
        self.texts: Tensor
        self.offsets: Tensor
        self.temperatures: Tensor
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("texts", texts.clone())
        self.register_buffer("offsets", torch.tensor([prompt.offset for prompt in chosen]))
        self.register_buffer("temperatures", torch.tensor([prompt.temperature for prompt in chosen]))
        self.register_buffer("mean", torch.tensor(clip.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(clip.std)[:, None, None])

    def check_size(self, side: int) -> None:
        """Raises a ``LossError`` if square images of ``side`` px do not divide into patches and windows."""
        unit = self.encoder.patch if side <= self.window else self.window
        if side % unit:
            what = "patch" if side <= self.window else "window"
            raise LossError(
                f"expected a crop that is a multiple of CLIP's {what}, {unit} px, got {side}; change `crop`"
            )

    def forward(self, image: Tensor) -> Tensor:
        """Blur logits of images.

        Args:
            image: ``(B, 3, H, W)``, full scale 1, with sides that ``check_size`` accepts.

        Returns:
            ``(B, 1, H / patch, W / patch)`` float32 in +-10, larger where it is more blurred.
        """
        normalised = (image - self.mean) / self.std
        height, width = image.shape[2:]
        s = self.window
        rows, columns = max(height // s, 1), max(width // s, 1)
        if rows * columns > 1:
            normalised = normalised.unflatten(2, (rows, -1)).unflatten(4, (columns, -1))
            normalised = normalised.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (B * rows * columns, 3, s, s)
        with torch.autocast(image.device.type, self.autocast, enabled=self.autocast is not None):
            features = self.encoder(normalised)
        z = prompt_logits(similarity(features, self.texts), self.offsets, self.temperatures)
        logits = ensemble_logits(z)  # (B * rows * columns, gh, gw)
        logits = logits.unflatten(0, (-1, rows, columns)).permute(0, 1, 3, 2, 4)
        return logits.flatten(3, 4).flatten(1, 2)[:, None]


def total_loss(
    config: LossConfig,
    restored: Tensor,
    target: Tensor,
    pair: Tensor,
    blur_logits: Tensor,
    blur_aware_map: nn.Module | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 14.

    Args:
        config: Weights and forms; a loss of weight zero is not computed.
        restored: ``(B, 3, H, W)``.
        target: The same shape.
        pair: ``(B, 6, H, W)``: left RGB, right RGB.
        blur_logits: ``(B, 1, gh, gw)`` of the pair, over the same field of view; detached here.
        blur_aware_map: A ``BlurAwareMap``, needed where the blur-aware loss has a weight.

    Returns:
        The weighted sum and each loss by name, unweighted and detached.

    Raises:
        LossError: The blur-aware loss has a weight and there is no map.
    """
    restored = restored.float()
    losses: dict[str, Tensor] = {}
    if config.charbonnier:
        losses["charbonnier"] = charbonnier(restored, target)
    if config.psnr:
        losses["psnr"] = psnr(restored, target)
    if config.blur_aware:
        if blur_aware_map is None:
            raise LossError("expected a CLIP for the blur-aware loss, got none; give `clip`")
        losses["blur_aware"] = blur_aware(blur_aware_map(restored), config.blur_aware_form)
    if config.blur_weighting:
        patch = restored.shape[2] // blur_logits.shape[2]
        blur_map = upsample_map(blur_logits.detach().float(), patch)
        center = center_view(pair[:, :3], pair[:, 3:])
        losses["blur_weighting"] = blur_weighting(
            restored, target, center, blur_map, config.denominator, config.floor, config.deviation_window
        )
    total = torch.stack([getattr(config, name) * loss for name, loss in losses.items()]).sum()
    return total, {name: loss.detach() for name, loss in losses.items()}
