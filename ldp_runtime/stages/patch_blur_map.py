"""The blur map of the authors' released code: one value per patch of the image, from CLIP's pooled feature.

Every patch of L beside the flipped same patch of R goes through CLIP; the less its feature is like the prompt, "A
symmetric image at pixel level", the more blurred the patch is. The similarity is cut off at both ends (a truncated
linear map in place of Eq. 6's sigma), and the map is stretched to reach from 0 to 1 over the image. Numpy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldp_runtime.stages.blur_map import LOGIT_LIMIT, PromptLike, prompt_logits
from ldp_runtime.stages.geometry import pad_reflect


def cut_patches(pair: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Cuts a pair into what CLIP sees.

    Args:
        pair: ``(6, h, w)`` in [0, 1]: L, then R; without padding.
        side: Side of a patch in px; the patches at the bottom and right reach over the edge (reflect-101).

    Returns:
        ``(rows, columns, 3, side, 2 side)``: each patch of L beside the flipped same patch of R.
    """
    rows, columns = (-(-size // side) for size in pair.shape[1:])
    source = pad_reflect(pair, (rows * side, columns * side))
    views = source.reshape(2, 3, rows, side, columns, side).transpose(0, 2, 4, 1, 3, 5)
    return np.concatenate([views[0], views[1, ..., ::-1]], axis=-1)


def patch_values(features: ArrayLike, text_embedding: ArrayLike, prompt: PromptLike) -> NDArray[np.float32]:
    """How blurred each patch is by itself: ``1 - min(max(z, 0), 1)`` with ``z = (100 cos - offset) / temperature``.

    The released constants A and B, at and over which a patch is sharp and at and under which it is blurred, are
    ``offset = B`` and ``temperature = A - B``.

    Args:
        features: ``(..., c)``, any float dtype; they are normalised here.
        text_embedding: ``(1, c)``.
        prompt: Its offset and temperature.

    Returns:
        ``(...)`` float32 in [0, 1].
    """
    z = prompt_logits(features, text_embedding, [prompt.offset], [prompt.temperature])[0]
    values: NDArray[np.float32] = np.float32(1) - np.clip(z, 0, 1)
    return values


def stretch(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shifts and scales the values of an image to reach from 0 to 1; values that are all equal stay as they are."""
    low, high = values.min(), values.max()
    return values if low == high else (values - low) / (high - low)


def map_logits(blur_map: NDArray[np.float32]) -> NDArray[np.float32]:
    """``log M - log(1 - M)``, clipped to +-10: what ``blur_map.sigmoid`` turns into the map again.

    Args:
        blur_map: Any shape, in [0, 1].

    Returns:
        The same shape, float32 in [-10, 10].
    """
    with np.errstate(divide="ignore"):
        logits: NDArray[np.float32] = np.log(blur_map) - np.log1p(-blur_map)
    return np.clip(logits, -LOGIT_LIMIT, LOGIT_LIMIT)
