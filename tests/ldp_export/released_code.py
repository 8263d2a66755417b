"""A direct transcription of how the released code estimates the blur map, and pairs to try it on."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ldp_export.clip import LoadedClip, embed_texts


def preprocess(clip: LoadedClip, patch: NDArray[np.uint8], side: int) -> Tensor:
    """CLIP's preprocessing by Pillow: the shorter side to CLIP's size, bicubic, the center square, normalised."""
    h, w = patch.shape[:2]
    image = Image.fromarray(patch).resize((side * w // min(h, w), side * h // min(h, w)), Image.Resampling.BICUBIC)
    x, y = (image.width - side) // 2, (image.height - side) // 2
    array = np.asarray(image.crop((x, y, x + side, y + side)), np.float32).transpose(2, 0, 1) / 255
    return (torch.from_numpy(array) - torch.tensor(clip.mean)[:, None, None]) / torch.tensor(clip.std)[:, None, None]


def similarities(clip: LoadedClip, left: NDArray[np.uint8], right: NDArray[np.uint8], text: str) -> NDArray[np.float64]:
    """``100 cos`` of each patch of 40 px, patch by patch, as the released code has it; sides multiples of 40."""
    rows, columns = left.shape[0] // 40, left.shape[1] // 40
    found = np.zeros((rows, columns))
    with torch.inference_mode():
        embedding = embed_texts(clip, [text])[0]
        for i in range(rows):
            for j in range(columns):
                cut = np.s_[40 * i : 40 * i + 40, 40 * j : 40 * j + 40]
                patch = np.hstack([left[cut], np.fliplr(right[cut])])
                feature = clip.model.encode_image(preprocess(clip, patch, 32)[None])[0]  # type: ignore[operator]
                found[i, j] = 100 * float(F.normalize(feature, dim=0) @ embedding)
    return found


def released_map(values: NDArray[np.float64], a: float, b: float) -> NDArray[np.float64]:
    """The released map before it is upsampled: cut off, linear from 255 at B to 0 at A, then from 0 to 1."""
    levels = np.where(values > a, 0.0, np.where(values < b, 255.0, 255 * (a - values) / (a - b)))
    return (levels - levels.min()) / (levels.max() - levels.min())


def views(h: int, w: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Smooth random views, shifted against each other by an amount that grows to the right."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (h // 6 + 2, w // 6 + 2, 3)).astype(np.uint8))
    left = np.asarray(coarse.resize((w, h), Image.Resampling.BICUBIC))
    shifts = (np.arange(w) * 6 // w)[None, :]
    columns = np.clip(np.arange(w)[None, :] + shifts, 0, w - 1).repeat(h, 0)
    return left, left[np.arange(h)[:, None], columns]
