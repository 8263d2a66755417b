from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from ldp_export.clip import LoadedClip, PatchEncoder, load_clip
from ldp_export.clip.patches import resize_matrix
from ldp_export.network.randomise import randomise
from tests.ldp_export.released_code import preprocess, views


@pytest.fixture(scope="module")
def clip(tiny_clip_file: Path) -> LoadedClip:
    """A tiny CLIP with random weights."""
    loaded = load_clip(str(tiny_clip_file), seed=2)
    randomise(loaded.model, 2)
    return loaded


@pytest.mark.parametrize(("size", "out"), [(40, 224), (80, 448), (40, 40), (7, 9)])
def test_enlargement_is_pillows(size: int, out: int) -> None:
    row = np.random.default_rng(size).random((1, size), np.float32)
    expected = np.asarray(Image.fromarray(row, mode="F").resize((out, 1), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(row @ resize_matrix(size, out).T, expected, atol=2e-6)


@torch.no_grad()
def test_the_patch_encoder_is_clips_preprocessing_and_pooled_feature(clip: LoadedClip) -> None:
    left, right = views(40, 40)
    patch = np.hstack([left, np.fliplr(right)])
    encoder = PatchEncoder(clip, 40).eval()
    assert encoder.image_size == 32
    found = encoder(torch.from_numpy(patch).permute(2, 0, 1)[None].float() / 255)
    expected = clip.model.encode_image(preprocess(clip, patch, 32)[None])  # type: ignore[operator]
    assert F.cosine_similarity(found, expected).item() > 1 - 1e-4  # Pillow rounds to 8 bits
