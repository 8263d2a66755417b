from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldp_export.network import CONFIGS, LDPConfig, LDPNet
from ldp_export.network.config import PRIORS
from ldp_export.network.randomise import randomise

PATCH = 16
TINY = LDPConfig(
    "tiny",
    width=8,
    stem=2,
    encoder=(1,),
    middle=1,
    decoder=(1,),
    bpa=("middle",),
    head_dim=8,
    kernel=3,
    window=4,
    kernel_hidden=4,
    sca_cell=8,
)


def inputs(height: int, width: int, batch: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.rand(batch, 6, height, width, generator=generator)
    logits = 4 * torch.randn(batch, 1, height // PATCH, width // PATCH, generator=generator)
    return pair, logits


def center(pair: Tensor) -> Tensor:
    return (pair[:, :3] + pair[:, 3:]) * 0.5


def without_ending(net: LDPNet) -> LDPNet:
    nn.init.zeros_(net.ending.weight)
    nn.init.zeros_(net.ending.bias)
    return net


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("times", [(1, 1), (1, 3)])
@torch.no_grad()
def test_restored_has_the_pairs_size(name: str, times: tuple[int, int]) -> None:
    config = CONFIGS[name]
    height, width = (config.multiple * n for n in times)
    net = LDPNet(config).eval()
    pair, logits = inputs(height, width, batch=2)
    restored = net(pair, logits)
    assert restored.shape == (2, 3, height, width)
    assert restored.dtype == torch.float32
    assert torch.isfinite(restored).all()


@pytest.mark.parametrize(("name", "parameters"), [("nano", 4_318_589), ("small", 10_410_742), ("large", 41_281_654)])
def test_parameter_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        net = LDPNet(CONFIGS[name])
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


@pytest.mark.parametrize(("name", "width"), [("small", 32), ("large", 64)])
def test_backbone_is_what_the_design_says(name: str, width: int) -> None:
    with torch.device("meta"):
        net = LDPNet(CONFIGS[name])
    widths = [stage[0].conv1.in_channels for stage in [*net.encoders, net.middle, *net.decoders]]
    assert widths == [width * 2**level for level in (0, 1, 2, 3, 4, 3, 2, 1, 0)]
    assert [len(stage) for stage in [*net.encoders, net.middle, *net.decoders]] == [2] * 9
    assert {place: block.norm1.weight.numel() for place, block in net.bpa.items()} == {
        "encoder": 8 * width,
        "middle": 16 * width,
        "decoder": 8 * width,
    }


def test_bpa_blocks_stand_at_an_eighth_and_a_sixteenth() -> None:
    net = LDPNet(CONFIGS["small"]).eval()
    seen: dict[str, tuple[int, ...]] = {}
    for place, block in net.bpa.items():
        block.register_forward_hook(lambda _, args, __, place=place: seen.__setitem__(place, tuple(args[0].shape[2:])))
    with torch.no_grad():
        net(*inputs(64, 96))
    assert seen == {"encoder": (8, 12), "middle": (4, 6), "decoder": (8, 12)}


def test_blur_logits_may_come_on_any_grid() -> None:
    net = randomise(LDPNet(TINY)).eval()
    pair, _ = inputs(32, 64)
    with torch.no_grad():
        of_one, of_many = (net(pair, torch.full((1, 1, *grid), 3.0)) for grid in ((1, 1), (5, 9)))
    torch.testing.assert_close(of_one, of_many)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_the_skip_is_exact_in_single_precision_whatever_the_network_computes_in(dtype: torch.dtype) -> None:
    net = without_ending(randomise(LDPNet(CONFIGS["nano"]))).to(dtype).eval()
    pair, logits = inputs(32, 64)
    restored = net(pair, logits)
    assert restored.dtype == torch.float32
    assert torch.equal(restored, center(pair))
    # Through FP16 or bf16 it would not be: the check can fail.
    assert dtype == torch.float32 or not torch.equal(pair.to(dtype).float(), pair)


@torch.no_grad()
def test_a_fresh_network_ignores_the_blur_map_and_its_blocks() -> None:
    """All residual scales start at zero, which is why tests draw the parameters anew."""
    net = LDPNet(TINY).eval()
    pair, logits = inputs(32, 32)
    scales = [p for name, p in net.named_parameters() if name.endswith(("beta", "gamma"))]
    assert len(scales) == 2 * (3 + 1)
    assert all(not scale.any() for scale in scales)
    assert torch.equal(net(pair, logits), center(pair)), "the last convolution starts at zero"
    nn.init.normal_(net.ending.weight)
    restored = net(pair, logits)
    assert torch.equal(restored, net(pair, -logits))
    x = net.intro(nn.functional.pixel_unshuffle(pair, 2))
    expected = nn.functional.pixel_shuffle(net.ending(net.ups[0](net.downs[0](x)) + x), 2) + center(pair)
    torch.testing.assert_close(restored, expected)

    net = randomise(net)
    assert (net(pair, logits) - net(pair, -logits)).abs().max() > 1e-3


@torch.no_grad()
def test_both_views_and_the_blur_map_matter_at_every_pixel() -> None:
    net = randomise(LDPNet(TINY)).eval()
    pair, logits = inputs(32, 32)
    restored = net(pair, logits)
    swapped = net(torch.cat([pair[:, 3:], pair[:, :3]], dim=1), logits)
    sharper = net(pair, logits - 2)
    for other in (swapped, sharper):
        assert ((restored - other).abs().amax(1) > 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.06)])
@torch.no_grad()
def test_half_types_follow_single_precision(dtype: torch.dtype, tolerance: float) -> None:
    pair, logits = inputs(32, 64)
    expected = randomise(LDPNet(CONFIGS["nano"])).eval()(pair, logits)
    restored = randomise(LDPNet(CONFIGS["nano"])).to(dtype).eval()(pair, logits)
    assert float((restored - expected).abs().max()) < tolerance * float((expected - center(pair)).abs().max())


def test_gradients_reach_every_parameter_the_pair_and_the_blur_logits() -> None:
    net = randomise(LDPNet(TINY))
    pair, logits = (t.requires_grad_() for t in inputs(32, 32))
    net(pair, logits).square().mean().backward()
    for name, tensor in [("pair", pair), ("blur logits", logits), *net.named_parameters()]:
        assert tensor.grad is not None, name
        assert torch.isfinite(tensor.grad).all(), name
        assert tensor.grad.any(), name


# --- tiles: what a crop needs around itself -----------------------------------------------------------------


def support(config: LDPConfig, start: int, stop: int) -> tuple[int, int]:
    """The input columns that output columns ``start`` to ``stop`` can depend on, unclipped, from the definitions.

    SCA of a position reads the means of two cells on each side of its own; BPA reads its window and
    ``kernel // 2`` further. Both stand on grids, so crops must be aligned to the deepest scale's windows.
    """
    assert config.window is not None
    assert config.sca_cell is not None
    window, reach, sca_cell = config.window, config.kernel // 2, config.sca_cell
    Span = tuple[int, int]

    def conv3x3(span: Span) -> Span:
        return span[0] - 1, span[1] + 1

    def blocks(span: Span, count: int, stride: int) -> Span:
        cell = sca_cell // stride
        for _ in range(count):
            span = conv3x3(((span[0] // cell - 2) * cell, ((span[1] - 1) // cell + 3) * cell))
        return span

    def bpa(place: str, span: Span) -> Span:
        if place not in config.bpa:
            return span
        return span[0] // window * window - reach, ((span[1] - 1) // window + 1) * window + reach

    levels = len(config.encoder)
    span = conv3x3((start // config.stem, -(-stop // config.stem)))
    stride = config.stem
    skips = []
    for level in reversed(range(levels)):  # backwards through the decoder; its last level is the finest
        span = blocks(span, config.decoder[level], stride)
        if level == 0:
            span = bpa("decoder", span)
        skips.append(span)
        span, stride = (span[0] // 2, -(-span[1] // 2)), 2 * stride
    span = bpa("middle", blocks(span, config.middle, stride))
    for level in reversed(range(levels)):
        span, stride = (2 * span[0], 2 * span[1]), stride // 2
        skip = skips.pop()
        span = min(span[0], skip[0]), max(span[1], skip[1])
        if level == levels - 1:
            span = bpa("encoder", span)
        span = blocks(span, config.encoder[level], stride)
    span = conv3x3(span)
    return span[0] * config.stem, span[1] * config.stem


def alignment(config: LDPConfig) -> int:
    """Crops that start at multiples of this many px have their windows, cells and patches where the frame has."""
    assert config.window is not None
    return max(config.window * config.stride, config.multiple, PATCH)


def test_halos_of_the_configs() -> None:
    """How far, in px, a deployed config can see: the halo with which a tile equals the full frame exactly."""
    halos = {name: support(config, 0, 1)[1] for name, config in CONFIGS.items()}
    assert halos == {"nano": 1796, "small": 2178, "large": 2178, "fast": 1796, "fast-large": 1220}
    assert [alignment(config) for config in CONFIGS.values()] == [128, 256, 256, 128, 128]


@torch.no_grad()
def test_the_support_is_what_gradients_say() -> None:
    net = randomise(LDPNet(TINY)).double()
    pair, logits = (t.double() for t in inputs(16, 320))
    with torch.enable_grad():
        pair.requires_grad_()
        net(pair, logits)[..., 160:176].square().sum().backward()
    assert pair.grad is not None
    seen = pair.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    start, stop = support(TINY, 160, 176)
    assert 0 < start < stop < 320
    assert start <= int(seen.min())
    assert int(seen.max()) < stop
    assert int(seen.max() - seen.min()) > 0.7 * (stop - start)


@torch.no_grad()
def test_an_aligned_crop_equals_the_full_frame_beyond_the_halo() -> None:
    net = randomise(LDPNet(TINY)).eval()
    height, width, top, left, bottom, right = 256, 320, 16, 32, 240, 288
    pair, logits = inputs(height, width)
    full = net(pair, logits)[..., top:bottom, left:right]

    cut_logits = logits[..., top // PATCH : bottom // PATCH, left // PATCH : right // PATCH]
    error = (net(pair[..., top:bottom, left:right], cut_logits) - full).abs().amax((0, 1))

    def interior(start: int, stop: int) -> slice:
        spans = [support(TINY, place, place + 1) for place in range(start, stop)]
        inside = [i for i, span in enumerate(spans) if start <= span[0] and span[1] <= stop]
        assert len(inside) > 10
        return slice(inside[0], inside[-1] + 1)

    assert float(error[interior(top, bottom), interior(left, right)].max()) < 1e-5
    assert float(error.max()) > 1e-2  # near the cut the crop does differ


@torch.no_grad()
def test_a_crop_off_the_grid_of_windows_differs() -> None:
    config = LDPConfig(**{**TINY.to_dict(), "encoder": (1,), "decoder": (1,), "window": 8, "sca_cell": 8})
    net = randomise(LDPNet(config)).eval()
    assert alignment(config) == 32
    pair, logits = inputs(32, 512)
    full = net(pair, logits)
    for cut, equal in ((64, True), (48, False)):
        crop = net(pair[..., cut:], logits[..., cut // PATCH :])
        error = (crop - full[..., cut:])[..., 256:384].abs().max()
        assert (float(error) < 1e-5) == equal


VARIANT = replace(TINY, bpa=("middle", "decoder"))
READS_THE_MAP = {"none": False, "concat": True, "sa": False, "concat+sa": True, "bpa": True}
ATTENDS = {"none": False, "concat": False, "sa": True, "concat+sa": True, "bpa": True}


def variant_inputs(height: int, width: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height + width)
    pair = torch.rand(batch, 6, height, width, generator=generator)
    return pair, 3 * torch.randn(batch, 1, height // 8, width // 8, generator=generator)


def test_a_row_each() -> None:
    assert list(PRIORS) == list(READS_THE_MAP)


@pytest.mark.parametrize("prior", PRIORS)
@torch.no_grad()
def test_what_a_variant_holds_and_reads(prior: str) -> None:
    net = randomise(LDPNet(replace(VARIANT, prior=prior))).eval()
    pair, logits = variant_inputs(16, 32, batch=2)
    assert tuple(net.bpa) == (VARIANT.bpa if ATTENDS[prior] else ())
    assert any("kernels" in name for name in net.state_dict()) == (prior == "bpa")
    assert net.intro.in_channels == (28 if prior.startswith("concat") else 24)
    change = (net(pair, logits) - net(pair, -logits)).abs().max()
    assert (float(change) > 1e-3) == READS_THE_MAP[prior]
    swapped = net(torch.cat([pair[:, 3:], pair[:, :3]], dim=1), logits)
    assert (net(pair, logits) - swapped).abs().max() > 1e-3


def test_variants_differ_only_where_they_should() -> None:
    """Table 6 compares priors, so that all else must be the same: names and shapes of what is shared."""
    shapes = {
        prior: {key: value.shape for key, value in LDPNet(replace(VARIANT, prior=prior)).state_dict().items()}
        for prior in PRIORS
    }
    for prior, own in shapes.items():
        shared = {key: shape for key, shape in own.items() if key != "intro.weight"}
        assert shared.items() <= shapes["bpa"].items(), prior
    assert shapes["none"].items() <= shapes["sa"].items() <= shapes["bpa"].items()
    assert shapes["none"].keys() == shapes["concat"].keys()
    assert shapes["sa"].keys() == shapes["concat+sa"].keys()


@torch.no_grad()
def test_concat_appends_the_upsampled_probability() -> None:
    net = randomise(LDPNet(replace(VARIANT, prior="concat", stem=1, sca_cell=8))).eval()
    seen: list[Tensor] = []
    net.intro.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    pair, _ = variant_inputs(16, 32)
    net(pair, torch.tensor([[[[-2.0, 0.0, 3.0]]]]))
    assert torch.equal(seen[0][:, :6], pair)
    row = seen[0][0, 6, 0]
    expected = np.interp((np.arange(32) + 0.5) * 3 / 32 - 0.5, [0, 1, 2], 1 / (1 + np.exp(-np.array([-2.0, 0.0, 3.0]))))
    np.testing.assert_allclose(row.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("prior", PRIORS)
def test_gradients_reach_every_parameter(prior: str) -> None:
    net = randomise(LDPNet(replace(VARIANT, prior=prior)))
    pair, logits = variant_inputs(16, 32)
    logits.requires_grad_()
    net(pair, logits).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert (logits.grad is not None) == READS_THE_MAP[prior]


def test_no_places_of_attention_is_nafnet() -> None:
    none, empty = LDPNet(replace(VARIANT, prior="none")), LDPNet(replace(VARIANT, bpa=()))
    assert none.state_dict().keys() == empty.state_dict().keys()
