"""The prompts, laid out as the kernel ``blur_logits`` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldp_runtime.stages.blur_map import BLUR_AWARE, DP_AWARE, PromptLike, select_prompts

MAX_PROMPTS = 7
"""Prompts of one format that ``blur_logits`` takes at most (a warp sums them and one length in 8 slots)."""


@dataclass(frozen=True, eq=False)
class PromptTable:
    """The prompts that take part, as ``blur_logits`` reads them; ``array`` is to be copied to the device.

    Attributes:
        array: ``(k, stride)`` float32. A row is a text embedding of length one ``(c,)``, zeros up to a
            multiple of 4, then offset, temperature and two zeros. Blur-aware prompts come first.
        channels: c.
        blur_aware: Rows that query the center view.
        dp_aware: Rows that query the stereo canvas.
    """

    array: NDArray[np.float32]
    channels: int
    blur_aware: int
    dp_aware: int

    @classmethod
    def create(
        cls, text_embeddings: ArrayLike, prompts: Sequence[PromptLike], ensemble: str | int = "ens2"
    ) -> PromptTable:
        """Normalises the embeddings of the chosen prompts and lays them out; arguments as for ``blur_map.blur_logits``.

        Raises:
            ValueError: No such ensemble or prompt, or more than ``MAX_PROMPTS`` of a format.
        """
        embeddings = np.asarray(text_embeddings, dtype=np.float32)
        chosen = select_prompts(prompts, ensemble)
        rows = {name: [k for k in chosen if prompts[k].format == name] for name in (BLUR_AWARE, DP_AWARE)}
        for name, members in rows.items():
            if len(members) > MAX_PROMPTS:
                raise ValueError(f"expected at most {MAX_PROMPTS} {name} prompts, got {len(members)}")
        order = rows[BLUR_AWARE] + rows[DP_AWARE]
        c = embeddings.shape[1]
        padded = -(-c // 4) * 4
        array = np.zeros((len(order), padded + 4), dtype=np.float32)
        length = np.linalg.norm(embeddings[order], axis=1, keepdims=True)
        array[:, :c] = embeddings[order] / np.maximum(length, np.finfo(np.float32).tiny)
        array[:, padded] = [prompts[k].offset for k in order]
        array[:, padded + 1] = [prompts[k].temperature for k in order]
        return cls(array, c, len(rows[BLUR_AWARE]), len(rows[DP_AWARE]))
