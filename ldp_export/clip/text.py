"""Text embeddings of prompts (Eq. 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ldp_export.clip.load import LoadedClip


def embed_texts(clip: LoadedClip, texts: Sequence[str]) -> Tensor:
    """Unit-length text embeddings ``(len(texts), c)`` float32; differentiable in the text tower's weights."""
    device = next(clip.model.parameters()).device
    tokens: Tensor = torch.as_tensor(clip.tokenizer(list(texts))).to(device)
    encode: Callable[[Tensor], Tensor] = clip.model.encode_text  # type: ignore[assignment]
    return F.normalize(encode(tokens).float(), dim=-1)
