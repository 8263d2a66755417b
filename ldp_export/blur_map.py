"""Blur-map estimation in torch (paper, Section 3.1); differentiable. ``ldp_runtime.stages.blur_map`` is its twin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LOGIT_LIMIT = 10.0


def center_view(left: Tensor, right: Tensor) -> Tensor:
    """The mean of the views, which is what a regular sensor would have seen; any shape."""
    return (left + right) * 0.5


def stereo_canvas(left: Tensor, right: Tensor) -> Tensor:
    """eta(L, R^h) of the DP-aware format: ``(B, 3, H, W)`` twice to ``(B, 3, H, 2W)``, L beside the mirrored R.

    Column x of L mirrors to column 2W - 1 - x, where the same column x of R stands.
    """
    return torch.cat([left, right.flip(3)], dim=3)


def alpha(features: Tensor) -> Tensor:
    """Eq. 5: averages each position with its mirror image, ``(B, gh, ws, c)`` to ``(B, gh, ws // 2, c)``.

    ``alpha(F)[i, j] = (F[i, j] + F[i, ws - 1 - j]) / 2``, counted from 0, for ``j < ws // 2``.
    """
    half = features.shape[2] // 2
    return (features[:, :, :half] + features.flip(2)[:, :, :half]) * 0.5


def similarity(features: Tensor, text_embeddings: Tensor) -> Tensor:
    """Cosine similarity ``(..., k)`` of features ``(..., c)`` with unit-length text embeddings ``(k, c)``."""
    length = features.float().norm(dim=-1, keepdim=True)
    unit = features.float() / length.clamp_min(1e-12).masked_fill(length.isinf(), torch.nan)  # not silently zero
    return unit @ text_embeddings.float().T


def prompt_similarities(
    stereo_features: Tensor | None,
    center_features: Tensor | None,
    text_embeddings: Tensor,
    dp_aware: Sequence[bool],
) -> Tensor:
    """Cosine similarity ``(B, gh, gw, k)`` of each prompt with what it reads; arguments as of ``blur_logits``."""
    of_canvas = None if stereo_features is None else similarity(alpha(stereo_features), text_embeddings)
    of_center = None if center_features is None else similarity(center_features, text_embeddings)
    if of_canvas is None or of_center is None:
        found = of_center if of_canvas is None else of_canvas
        if found is None or any(aware != (of_center is None) for aware in dp_aware):
            raise ValueError("expected the features that each prompt reads, got None for some; give them")
        return found
    return torch.where(torch.tensor(list(dp_aware), device=of_center.device), of_canvas, of_center)


def prompt_logits(similarities: Tensor, offsets: Tensor, temperatures: Tensor) -> Tensor:
    """``sigma^-1`` of Eq. 4: ``z = (100 cos - offset) / temperature``, one of each per prompt (last axis)."""
    return (100 * similarities - offsets) / temperatures


def ensemble_logits(logits: Tensor) -> Tensor:
    """The logit of the mean probability of k prompts: ``(..., k)`` to ``(...)``, clipped to +-``LOGIT_LIMIT``.

    ``log sum sigmoid(z_k) - log sum sigmoid(-z_k)``, which loses no digits where all probabilities are near 0 or 1.
    """
    logits = logits.float()
    blurred = torch.logsumexp(F.logsigmoid(logits), dim=-1)
    sharp = torch.logsumexp(F.logsigmoid(-logits), dim=-1)
    return (blurred - sharp).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)


def blur_logits(
    stereo_features: Tensor | None,
    center_features: Tensor | None,
    text_embeddings: Tensor,
    dp_aware: Sequence[bool],
    offsets: Tensor,
    temperatures: Tensor,
) -> Tensor:
    """Unnormalised blur map of an ensemble of prompts (Eq. 4 to 6).

    Args:
        stereo_features: ``(B, gh, 2 gw, c)`` of the stereo canvas; None where no prompt is DP-aware.
        center_features: ``(B, gh, gw, c)`` of the center view; None where all are.
        text_embeddings: ``(k, c)``, unit length: the prompts to use. All eight of Table 4 are Ens.2; those of one
            format are Ens.1; one is that prompt alone.
        dp_aware: For each prompt, whether it is DP-aware (reads alpha of the canvas; true where sharp, so its logit
            changes sign, Eq. 6) or blur-aware (reads the center view).
        offsets: ``(k,)`` of Eq. 4's sigma.
        temperatures: ``(k,)`` of Eq. 4's sigma.

    Returns:
        ``(B, 1, gh, gw)`` float32 in +-10; its sigmoid is the blur map M_F.
    """
    z = prompt_logits(
        prompt_similarities(stereo_features, center_features, text_embeddings, dp_aware), offsets, temperatures
    )
    sign = torch.tensor([-1.0 if aware else 1.0 for aware in dp_aware], device=z.device)
    return ensemble_logits(sign * z)[:, None]


def upsample_map(logits: Tensor, patch: int) -> Tensor:
    """The blur map M: sigmoid of ``(B, 1, gh, gw)``, upsampled bilinearly to ``(B, 1, gh * patch, gw * patch)``."""
    return F.interpolate(torch.sigmoid(logits), scale_factor=patch, mode="bilinear", align_corners=False)
