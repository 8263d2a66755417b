import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldp_export.network.bpa import (
    OUTSIDE,
    BlurKernels,
    BlurPriorAttention,
    BPABlock,
)
from ldp_export.network.layers import NAFBlock
from ldp_export.network.randomise import randomise
from tests.ldp_export.tensors import Array, array, noise, slow_pointwise

CHANNELS = 8
HEAD_DIM = 4


def attention(kernel: int, window: int | None, seed: int = 0) -> BlurPriorAttention:
    """Random attention whose two terms, Q K^T / beta and O, are both of a size that matters."""
    module = randomise(BlurPriorAttention(CHANNELS, HEAD_DIM, kernel, 6, window), seed)
    with torch.no_grad():
        module.qkv.weight *= 1.5
        module.kernels.conv2.weight *= 3
    return module


# --- slow transcriptions of Eq. 9 and 10, one image in float64 ----------------------------------------------


def slow_conv3x3(x: Array, conv: nn.Conv2d) -> Array:
    weight, bias = array(conv.weight), array(conv.bias)
    height, width = x.shape[1:]
    out = np.empty((weight.shape[0], height, width))
    for i, j in np.ndindex(height, width):
        total = bias.copy()
        for a, b in np.ndindex(3, 3):
            if 0 <= i + a - 1 < height and 0 <= j + b - 1 < width:
                total += weight[:, :, a, b] @ x[:, i + a - 1, j + b - 1]
        out[:, i, j] = total
    return out


def slow_resample(x: Array, size: tuple[int, int]) -> Array:
    """Bilinear, half-pixel centres, ``(h, w)`` to ``size``."""
    height, width = x.shape
    out = np.empty(size)
    for i, j in np.ndindex(size):
        y = min(max((i + 0.5) * height / size[0] - 0.5, 0), height - 1)
        z = min(max((j + 0.5) * width / size[1] - 0.5, 0), width - 1)
        top, left = int(y), int(z)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        upper = x[top, left] * (1 - z + left) + x[top, right] * (z - left)
        lower = x[bottom, left] * (1 - z + left) + x[bottom, right] * (z - left)
        out[i, j] = upper * (1 - y + top) + lower * (y - top)
    return out


def slow_kernels(module: BlurKernels, blur_logits: Array, size: tuple[int, int]) -> Array:
    """FFN_conv: ``(h, w)`` blur logits to ``(q * q, *size)``."""
    hidden = slow_conv3x3(slow_resample(blur_logits, size)[None], module.conv1)
    half = hidden.shape[0] // 2
    return slow_conv3x3(hidden[:half] * hidden[half:], module.conv2)


def slow_bias(kernels: Array, q: int, y: int, x: int, v: int, u: int) -> float:
    """O between the query at (y, x) and the key at (v, u): Pad's entry of the kernel, or zero outside."""
    a, b = v - y + q // 2, u - x + q // 2
    return float(kernels[a * q + b, y, x]) if 0 <= a < q and 0 <= b < q else 0.0


def slow_attention(module: BlurPriorAttention, features: Array, blur_logits: Array, window: int | None) -> Array:
    """Eq. 9 with explicit rows of the attention matrix; with a window, over the keys of its window."""
    channels, height, width = features.shape
    q, reach = module.kernel, module.kernel // 2
    qkv = slow_pointwise(features, module.qkv)
    query, key, value = qkv[:channels], qkv[channels : 2 * channels], qkv[2 * channels :]
    kernels = slow_kernels(module.kernels, blur_logits, (height, width))
    out = np.empty_like(features)
    for y, x in np.ndindex(height, width):
        rows, columns = range(height), range(width)
        if window is not None:
            top, left = y // window * window, x // window * window
            rows = range(max(top - reach, 0), min(top + window + reach, height))
            columns = range(max(left - reach, 0), min(left + window + reach, width))
        places = [(v, u) for v in rows for u in columns]
        bias = np.array([slow_bias(kernels, q, y, x, v, u) for v, u in places])
        for start in range(0, channels, HEAD_DIM):
            head = slice(start, start + HEAD_DIM)
            products = np.array([query[head, y, x] @ key[head, v, u] for v, u in places])
            logits = products / math.sqrt(HEAD_DIM) + bias
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            out[head, y, x] = sum(w * value[head, v, u] for w, (v, u) in zip(weights, places, strict=True))
    return slow_pointwise(out, module.project)


# --- Eq. 10 -------------------------------------------------------------------------------------------------


# --- Eq. 9 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "size", "grid"), [(3, (5, 7), (2, 3)), (7, (6, 4), (6, 4)), (5, (1, 6), (1, 1))])
def test_global_attention_is_equation_9(kernel: int, size: tuple[int, int], grid: tuple[int, int]) -> None:
    module = attention(kernel, None)
    x, blur_logits = noise(2, CHANNELS, *size), 3 * noise(2, 1, *grid, seed=1)
    expected = [slow_attention(module, array(x[n]), array(blur_logits[n, 0]), None) for n in range(2)]
    np.testing.assert_allclose(array(module(x, blur_logits)), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("kernel", "window", "size"),
    [(3, 4, (8, 12)), (3, 4, (7, 9)), (5, 4, (10, 5)), (5, 4, (3, 4)), (7, 6, (13, 6)), (3, 16, (18, 5))],
)
def test_windowed_attention_is_equation_9_over_each_windows_keys(
    kernel: int, window: int, size: tuple[int, int]
) -> None:
    module = attention(kernel, window)
    x, blur_logits = noise(2, CHANNELS, *size), 3 * noise(2, 1, 3, 2, seed=1)
    expected = [slow_attention(module, array(x[n]), array(blur_logits[n, 0]), window) for n in range(2)]
    np.testing.assert_allclose(array(module(x, blur_logits)), expected, atol=2e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_gradients_flow_to_the_blur_logits_and_every_parameter(window: int | None) -> None:
    module = attention(3, window)
    x, blur_logits = noise(1, CHANNELS, 6, 6), noise(1, 1, 3, 3).requires_grad_()
    module(x, blur_logits).square().mean().backward()
    assert blur_logits.grad is not None
    assert torch.isfinite(blur_logits.grad).all()
    assert (blur_logits.grad != 0).all()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 1e-7, name


def test_the_blur_map_moves_the_attention() -> None:
    module = attention(3, 4).requires_grad_(False)
    x = noise(1, CHANNELS, 8, 8)
    sharp, blurred = (module(x, torch.full((1, 1, 1, 1), z)) for z in (-10.0, 10.0))
    assert float((sharp - blurred).abs().max()) > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_mask_of_outside_keys_is_exact_and_hides_them_in_every_type(dtype: torch.dtype) -> None:
    assert float(torch.tensor(OUTSIDE, dtype=dtype)) == OUTSIDE
    assert float(torch.exp(torch.tensor(OUTSIDE / 2, dtype=dtype))) == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("window", [None, 4])
def test_attention_in_half_types_stays_near_single_precision(
    dtype: torch.dtype, tolerance: float, window: int | None
) -> None:
    module = attention(3, window).requires_grad_(False)
    x, blur_logits = noise(2, CHANNELS, 10, 7), 5 * noise(2, 1, 2, 3, seed=1)
    expected = module(x, blur_logits)
    out = attention(3, window).to(dtype)(x.to(dtype), blur_logits.to(dtype))
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    assert float((out.detach().float() - expected).abs().max()) < tolerance * float(expected.abs().max())


def test_bpa_block_is_attention_and_gated_layer_behind_norms() -> None:
    block = randomise(BPABlock(CHANNELS, HEAD_DIM, 3, 4, 4)).requires_grad_(False)
    x, blur_logits = noise(1, CHANNELS, 6, 6), noise(1, 1, 3, 3, seed=1)

    def normalised(t: Tensor, norm: nn.Module) -> Tensor:
        t = (t - t.mean(1, keepdim=True)) / (t.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
        return t * norm.weight[:, None, None] + norm.bias[:, None, None]

    y = x + block.beta * block.attention(normalised(x, block.norm1), blur_logits)
    first, second = block.conv1(normalised(y, block.norm2)).chunk(2, dim=1)
    expected = y + block.gamma * block.conv2(first * second)
    torch.testing.assert_close(block(x, blur_logits), expected, atol=1e-5, rtol=1e-5)


def test_a_fresh_bpa_block_is_the_identity() -> None:
    x = noise(1, CHANNELS, 4, 4)
    assert torch.equal(BPABlock(CHANNELS, HEAD_DIM, 3, 4, 4)(x, noise(1, 1, 2, 2)), x)


@pytest.mark.parametrize("window", [4, None])
@torch.no_grad()
def test_plain_attention_is_that_of_a_kernel_of_zeros(window: int | None) -> None:
    plain = randomise(BlurPriorAttention(8, 4, 3, None, window)).eval()
    biased = BlurPriorAttention(8, 4, 3, 4, window).eval()
    biased.load_state_dict(plain.state_dict(), strict=False)
    assert biased.kernels is not None
    torch.nn.init.zeros_(biased.kernels.conv2.weight)
    torch.nn.init.zeros_(biased.kernels.conv2.bias)
    x = torch.randn(2, 8, 6, 9, generator=torch.Generator().manual_seed(0))
    logits = torch.zeros(2, 1, 3, 3)
    torch.testing.assert_close(plain(x, logits), biased(x, logits))


@pytest.mark.parametrize(("window", "hidden"), [(4, 6), (None, 6), (4, None)])
def test_a_folded_bpa_block_computes_the_same(window: int | None, hidden: int | None) -> None:
    block = randomise(BPABlock(8, 4, 3, hidden, window))
    folded = copy.deepcopy(block)
    folded.fold()
    x, blur_logits = 3 * noise(2, 8, 7, 5), noise(2, 1, 3, 2, seed=1)
    torch.testing.assert_close(folded(x, blur_logits), block(x, blur_logits), atol=2e-5, rtol=2e-5)
    assert float((block(x, blur_logits) - x).detach().abs().max()) > 0.1
    folded.merge_norms()
    torch.testing.assert_close(folded(x, blur_logits), block(x, blur_logits), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_blocks_compute_the_same_in_the_form_for_export(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FP32 takes the form for CPUs: means by convolution, a pooling layer."""
    naf, bpa = randomise(NAFBlock(6, 2)), randomise(BPABlock(8, 4, 3, 6, 4))
    x, y, blur_logits = 3 * noise(2, 6, 8, 4) + 5, 3 * noise(2, 8, 7, 5) + 5, noise(2, 1, 3, 2, seed=1)
    eager = naf(x), bpa(y, blur_logits)
    naf.fold()
    bpa.fold()
    assert naf.norm1.averaging is not None
    assert not [name for name in naf.state_dict() if "averaging" in name]
    naf.split_gates()
    bpa.split_gates()
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    naf, bpa, x, y = naf.to(dtype), bpa.to(dtype), x.to(dtype), y.to(dtype)
    for exported, expected, source in zip((naf(x), bpa(y, blur_logits)), eager, (x, y), strict=True):
        # bf16 rounds to 1 in 256.
        tolerance = 2e-5 if dtype == torch.float32 else 0.05 * float((expected - source).detach().abs().max())
        torch.testing.assert_close(exported.float(), expected, atol=tolerance, rtol=tolerance)
