import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.network import layers
from ldp_export.network.layers import (
    Enlarge,
    Halves,
    LayerNorm2d,
    NAFBlock,
    NormalisedConv,
    SimpleGate,
    SimplifiedChannelAttention,
    fold_norm,
)
from ldp_export.network.randomise import randomise
from tests.ldp_export.tensors import Array, array, noise, slow_pointwise

# --- slow transcriptions, one image (C, H, W) in float64 ----------------------------------------------------


def slow_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    out = np.empty_like(x)
    for i, j in np.ndindex(x.shape[1:]):
        pixel = x[:, i, j]
        mean = sum(pixel) / len(pixel)
        variance = sum((value - mean) ** 2 for value in pixel) / len(pixel)
        out[:, i, j] = (pixel - mean) / math.sqrt(variance + eps) * weight + bias
    return out


def slow_depthwise(x: Array, conv: nn.Conv2d) -> Array:
    weight, bias = array(conv.weight), array(conv.bias)
    channels, height, width = x.shape
    out = np.empty_like(x)
    for c, i, j in np.ndindex(channels, height, width):
        total = bias[c]
        for a, b in np.ndindex(3, 3):
            if 0 <= i + a - 1 < height and 0 <= j + b - 1 < width:
                total += weight[c, 0, a, b] * x[c, i + a - 1, j + b - 1]
        out[c, i, j] = total
    return out


def slow_gate(x: Array) -> Array:
    half = x.shape[0] // 2
    return np.stack([x[c] * x[half + c] for c in range(half)])


def slow_sca(x: Array, conv: nn.Conv2d, cell: int | None) -> Array:
    """Cell means, their means over the 3 x 3 that exist, 1x1 convolution, bilinear interpolation."""
    channels, height, width = x.shape
    if cell is None:
        return x * slow_pointwise(x.mean((1, 2))[:, None, None], conv)
    rows, columns = height // cell, width // cell
    means = np.empty((channels, rows, columns))
    for i, j in np.ndindex(rows, columns):
        means[:, i, j] = x[:, i * cell : (i + 1) * cell, j * cell : (j + 1) * cell].mean((1, 2))
    pooled = np.empty_like(means)
    for i, j in np.ndindex(rows, columns):
        near = [
            means[:, i + a, j + b] for a in (-1, 0, 1) for b in (-1, 0, 1) if 0 <= i + a < rows and 0 <= j + b < columns
        ]
        pooled[:, i, j] = sum(near) / len(near)
    attention = slow_pointwise(pooled, conv)
    out = np.empty_like(x)
    for i, j in np.ndindex(height, width):
        y = min(max((i + 0.5) / cell - 0.5, 0), rows - 1)
        z = min(max((j + 0.5) / cell - 0.5, 0), columns - 1)
        top, left = int(y), int(z)
        bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
        upper = attention[:, top, left] * (1 - z + left) + attention[:, top, right] * (z - left)
        lower = attention[:, bottom, left] * (1 - z + left) + attention[:, bottom, right] * (z - left)
        out[:, i, j] = x[:, i, j] * (upper * (1 - y + top) + lower * (y - top))
    return out


@pytest.mark.parametrize("exporting", [False, True])
def test_layer_norm_is_the_formula_at_every_pixel(exporting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    norm = randomise(LayerNorm2d(6))
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    x = 3 * noise(2, 6, 4, 5) + 7
    x[1, :, 2, 3] = 0.25  # no variance: eps alone under the root
    expected = [slow_norm(array(image), array(norm.weight), array(norm.bias), norm.eps) for image in x]
    np.testing.assert_allclose(array(norm(x)), expected, atol=2e-5)


@pytest.mark.parametrize("exporting", [False, True])
def test_layer_norm_survives_true_half_arithmetic_at_the_size_of_a_naf_nets_residuals(
    exporting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = randomise(LayerNorm2d(64)).half()
    x = (200 * noise(1, 64, 8, 8)).half()
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    out = norm(x)
    assert out.dtype == torch.float16
    expected = slow_norm(array(x[0]), array(norm.weight), array(norm.bias), norm.eps)
    np.testing.assert_allclose(array(out[0]), expected, atol=5e-3, rtol=2e-3)

    # Negative control: the same formula kept in FP16 overflows on this very input and loses the image.
    centred = x - x.mean(1, keepdim=True)
    sum_of_squares = (centred * centred).sum(1, keepdim=True)
    assert sum_of_squares.dtype == torch.float16
    assert torch.isinf(sum_of_squares).all()
    naive = centred * torch.rsqrt(sum_of_squares / 64 + norm.eps)
    assert float(naive.nan_to_num().abs().max()) == 0


def test_both_forms_of_layer_norm_agree_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = randomise(LayerNorm2d(32)).bfloat16()
    x = (175 * noise(1, 32, 4, 4)).bfloat16()
    eager = norm(x)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    exported = norm(x)
    assert exported.dtype == eager.dtype == torch.bfloat16
    torch.testing.assert_close(exported, eager, atol=0.02, rtol=0.01)


def test_global_channel_attention_is_naf_nets() -> None:
    sca = randomise(SimplifiedChannelAttention(5, None))
    x = noise(2, 5, 7, 3)
    np.testing.assert_allclose(array(sca(x)), [slow_sca(array(i), sca.conv, None) for i in x], atol=1e-6)


@pytest.mark.parametrize("size", [(8, 12), (4, 4), (4, 16), (20, 20)])
def test_local_channel_attention_is_its_definition_with_borders(size: tuple[int, int]) -> None:
    sca = randomise(SimplifiedChannelAttention(3, 4))
    x = noise(2, 3, *size)
    np.testing.assert_allclose(array(sca(x)), [slow_sca(array(i), sca.conv, 4) for i in x], atol=1e-6)


def test_channel_attention_pools_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled: list[torch.dtype] = []
    pool = F.avg_pool2d

    def recording(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        pooled.append(x.dtype)
        return pool(x, *args, **kwargs)

    monkeypatch.setattr(F, "avg_pool2d", recording)
    out = randomise(SimplifiedChannelAttention(2, 4)).half()(noise(1, 2, 8, 8).half())
    assert out.dtype == torch.float16
    assert pooled[0] == torch.float32


@pytest.mark.parametrize("cell", [None, 2])
def test_naf_block_is_its_formula(cell: int | None) -> None:
    block = randomise(NAFBlock(4, cell))
    x = noise(2, 4, 6, 4)
    expected = []
    for image in array(x):
        y = slow_norm(image, array(block.norm1.weight), array(block.norm1.bias), 1e-6)
        y = slow_gate(slow_depthwise(slow_pointwise(y, block.conv1), block.conv2))
        y = slow_pointwise(slow_sca(y, block.sca.conv, cell), block.conv3)
        z = image + y * array(block.beta)[0]
        y = slow_norm(z, array(block.norm2.weight), array(block.norm2.bias), 1e-6)
        y = slow_pointwise(slow_gate(slow_pointwise(y, block.conv4)), block.conv5)
        expected.append(z + y * array(block.gamma)[0])
    np.testing.assert_allclose(array(block(x)), expected, atol=1e-5)
    assert np.abs(np.stack(expected) - array(x)).max() > 0.1  # the block does something


def test_a_fresh_naf_block_is_the_identity() -> None:
    x = noise(1, 4, 4, 4)
    assert torch.equal(NAFBlock(4, 2)(x), x)


def test_naf_block_in_half_precision_follows_single_precision_at_large_residuals() -> None:
    block = randomise(NAFBlock(16, 4))
    x = 175 * noise(1, 16, 8, 8)
    expected = block(x).detach()
    half = randomise(NAFBlock(16, 4)).half()(x.half())
    assert half.dtype == torch.float16
    error = (half.detach().float() - expected).abs().max()
    assert float(error) < 0.5  # of values up to about 600, where FP16 has steps of 0.25 to 0.5


@pytest.mark.parametrize("cell", [None, 1, 2])
def test_a_folded_naf_block_computes_the_same(cell: int | None) -> None:
    block = randomise(NAFBlock(6, cell)).double()
    folded = copy.deepcopy(block)
    folded.fold()
    assert folded.beta is folded.gamma is folded.norm1.weight is folded.norm1.bias is None
    x = 3 * noise(2, 6, 8, 4).double()
    torch.testing.assert_close(folded(x), block(x), atol=1e-5, rtol=1e-5)
    assert float((block(x) - x).detach().abs().max()) > 0.1, "the block does nothing: any form would agree"
    folded.fold()  # nothing is left to fold
    torch.testing.assert_close(folded(x), block(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channel_attention_pools_alike_for_export(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs for CPU runtimes are those in float32; whatever else is one for TensorRT."""
    sca, x = randomise(SimplifiedChannelAttention(3, 4)).to(dtype), 30 * noise(2, 3, 12, 20).to(dtype)
    eager = sca(x)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(sca(x), eager, atol=1e-5, rtol=1e-5)
    means = SimplifiedChannelAttention._pool((x + 60000).half(), 4)
    assert means.dtype == torch.float32
    assert bool(torch.isfinite(means).all()), "a sum of 16 such numbers is beyond FP16"


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, groups=8)],
    ids=["1x1", "3x3 without bias", "depthwise"],
)
def test_a_gate_of_halves_is_the_gate_of_the_whole(conv: nn.Conv2d) -> None:
    x = noise(2, conv.in_channels, 5, 4)
    source = tuple(x.chunk(2, dim=1)) if conv.groups > 1 else x
    gated, expected = SimpleGate()(Halves(conv)(source)), SimpleGate()(conv(x))
    assert gated.shape == (2, 4, 5, 4)
    torch.testing.assert_close(gated, expected, atol=1e-6, rtol=1e-6)


def normalised_conv(count: int = 1) -> tuple[nn.Sequential, NormalisedConv]:
    """A normalisation with its convolution, and both as one."""
    norm, conv = randomise(LayerNorm2d(6)), randomise(nn.Conv2d(6, 8, 1), seed=1)
    pair = nn.Sequential(copy.deepcopy(norm), copy.deepcopy(conv))
    fold_norm(norm, conv)
    return pair, NormalisedConv(norm, conv, count)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_normalised_convolution_is_the_convolution_of_the_normalised_map(
    count: int, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "WIDE", 6 if wide else 7)
    pair, merged = normalised_conv(count)
    assert all(isinstance(part, nn.ConvTranspose2d) == wide for part in merged.parts)
    x = 3 * noise(2, 6, 5, 4) + 5
    parts = merged(x)
    assert isinstance(parts, Tensor) if count == 1 else len(parts) == count
    torch.testing.assert_close(parts if count == 1 else torch.cat(parts, 1), pair(x), atol=1e-5, rtol=1e-5)


def test_a_normalised_convolution_in_half_precision_holds_the_residuals_of_a_naf_net() -> None:
    pair, merged = normalised_conv()
    x = (175 * noise(1, 6, 8, 8) + 100).half()
    restored = merged.half()(x)
    assert restored.dtype == torch.float16
    torch.testing.assert_close(restored.float(), pair(x.float()), atol=0.01, rtol=0.005)
    naive = (x * x).sum(1)
    assert bool(torch.isinf(naive).any()), "the sum of squares should need its FP32 island"


@pytest.mark.parametrize("wide", [False, True])
def test_a_naf_block_with_merged_normalisations_computes_the_same(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "WIDE", 6 if wide else 7)
    block = randomise(NAFBlock(6, 2)).double()
    merged = copy.deepcopy(block)
    merged.fold()
    merged.merge_norms()
    x = 3 * noise(2, 6, 8, 4).double()
    torch.testing.assert_close(merged(x), block(x), atol=1e-5, rtol=1e-5)
    assert float((block(x) - x).detach().abs().max()) > 0.1, "the block does nothing: any form would agree"


def test_one_transposed_convolution_enlarges_as_a_convolution_and_a_shuffle_do() -> None:
    enlarge = randomise(Enlarge(8)).double()
    merged = copy.deepcopy(enlarge)
    merged.merge_shuffle()
    assert [type(module) for module in merged] == [nn.ConvTranspose2d]
    x = noise(2, 8, 5, 3).double()
    assert merged(x).shape == (2, 4, 10, 6)
    torch.testing.assert_close(merged(x), enlarge(x))
