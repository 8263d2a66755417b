import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldp_export.network.published.dddnet import DDDNet, GramAttention, linear_matrix
from tests.ldp_export.network.published.states import (
    State,
    check_graphs,
    random_pair,
    random_state,
    relative_error,
    say,
)
from tests.ldp_export.network.published.test_stereo import norm_relu, shifted_volume, view_features


def disparity(state: State, left: Tensor, right: Tensor) -> Tensor:
    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        x = F.conv3d(x, state[f"estd.matching.{name}.conv.weight"], padding=1, **options)
        return norm_relu(state, f"estd.matching.{name}.bn", x)

    views = [view_features(state, "estd.feature.", view, (64, 16), 1) for view in (left, right)]
    x = shifted_volume(*views)
    x = conv("start.0", x)
    x = conv("start.1", x, stride=2)
    x = rem = conv("start.2", x)
    x = conv("conv1a.0", x, stride=2)
    x = conv("conv1a.1", x)
    x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)
    x = conv("deconv1a.conv1", x)
    x = conv("deconv1a.conv2", torch.cat([x, rem], 1))
    x = F.conv_transpose3d(x, state["estd.matching.end.0.conv.weight"], stride=2, padding=1)
    x = norm_relu(state, "estd.matching.end.0.bn", x)
    x = F.conv3d(x, state["estd.matching.end.1.conv.weight"], padding=1)
    x = F.interpolate(x, (12, *x.shape[3:]), mode="trilinear", align_corners=False)[:, 0]
    return sum(d * p for d, p in enumerate(torch.softmax(-x, 1).unbind(1)))


def restored(state: State, pair: Tensor) -> Tensor:
    def conv(name: str, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
        name = f"esti.{name}"
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=stride, padding=padding)

    def pairs(name: str, layers: tuple[int, int], x: Tensor) -> Tensor:
        for layer in layers:
            x = conv(f"{name}.layer{layer}.2", F.relu(conv(f"{name}.layer{layer}.0", x))) + x
        return x

    def encode(name: str, x: Tensor) -> Tensor:
        for first, stride in ((1, 1), (5, 2), (9, 2)):
            x = pairs(name, (first + 1, first + 2), conv(f"{name}.layer{first}", x, stride))
        return x

    def decode(name: str, x: Tensor) -> Tensor:
        for layer in (16, 20):
            x = pairs(name, (layer - 3, layer - 2), x)
            weight, bias = (state[f"esti.{name}.layer{layer}.{part}"] for part in ("weight", "bias"))
            x = F.conv_transpose2d(x, weight, bias, stride=2, padding=1)
        return conv(f"{name}.layer24", pairs(name, (21, 22), x))

    left, right = pair[:, :3], pair[:, 3:]
    d = disparity(state, left, right)[:, None]
    whole = torch.cat([left, right, d], 1)
    h, w = whole.shape[2] // 2, whole.shape[3] // 2
    top = torch.cat([encode("encoder3", whole[:, :, :h, :w]), encode("encoder3", whole[:, :, :h, w:])], 3)
    bottom = torch.cat([encode("encoder3", whole[:, :, h:, :w]), encode("encoder3", whole[:, :, h:, w:])], 3)
    above = encode("encoder2", whole[:, :, :h] + decode("decoder3", top))
    below = encode("encoder2", whole[:, :, h:] + decode("decoder3", bottom))
    f2 = torch.cat([above, below], 2) + torch.cat([top, bottom], 2)
    f1 = encode("encoder1", whole + decode("decoder2", f2)) + f2
    x = torch.sigmoid(conv("down.conv", torch.cat([left - right, d], 1), 4, 2))
    flat = x.flatten(2)
    gram = torch.bmm(flat, flat.transpose(1, 2))
    attention = torch.softmax(gram.max(-1, keepdim=True)[0] - gram, -1)
    x = state["esti.cam_attention.gamma"] * torch.bmm(attention, flat).view_as(x) + x
    return decode("decoder1", f1 + x)


@pytest.fixture(scope="module")
def state() -> State:
    shapes = DDDNet().published_state()
    state = random_state(shapes)
    state["esti.cam_attention.gamma"] = torch.tensor([0.7])
    for name in ("feature.end.1", "matching.end.1"):  # so that disparities differ from place to place
        state[f"estd.{name}.conv.weight"] *= 8
    return state


@pytest.fixture(scope="module")
def network(state: State) -> DDDNet:
    network = DDDNet()
    network.load_published_state(state)
    return network.eval()


def test_as_many_tensors_and_parameters_as_the_authors_files() -> None:
    """198 and 215 tensors, 10.96 M parameters, of which 6.52 M are live; the rest have names that are ignored."""
    network = DDDNet()
    shapes = network.published_state()
    assert sum(parameter.numel() for parameter in network.parameters()) == 6_516_714
    assert shapes["estd.feature.start.0.conv.weight"] == (32, 3, 3, 3)
    assert shapes["estd.matching.start.0.conv.weight"] == (32, 64, 3, 3, 3)
    assert shapes["estd.matching.end.0.conv.weight"] == (48, 24, 4, 4, 4)
    assert shapes["esti.encoder1.layer1.weight"] == (32, 7, 3, 3)
    assert shapes["esti.decoder1.layer16.weight"] == (128, 64, 4, 4)
    assert shapes["esti.down.conv.weight"] == (128, 4, 8, 8)
    assert shapes["esti.cam_attention.gamma"] == (1,)
    live = {part: sum(name.startswith(part) for name in shapes) for part in ("estd", "esti")}
    convolution, norm = 1, 5
    both = convolution + norm
    features = 5 * both + 2 * both + convolution
    unused = features + 2 * norm + norm + 8 * both  # the second extractor, norms after its kind of end, six 3D layers
    assert live == {"estd": 198 - unused, "esti": 215 - 30 - 2}  # depth's decoder: 15 convolutions; one more
    assert not any(name.startswith(DDDNet.ignored) for name in shapes)


@torch.no_grad()
def test_it_computes_what_the_facts_say(network: DDDNet, state: State) -> None:
    pair = random_pair(72, 88)
    expected = restored(state, pair)
    got = network(pair)
    assert relative_error(got, expected) < 1e-5, say(got, expected)
    swapped = network(torch.cat([pair[:, 3:], pair[:, :3]], 1))
    assert relative_error(swapped, expected) > 1e-2
    found = network.estd(pair[:, :3], pair[:, 3:])
    assert found.std() > 0.1, "disparities that are all alike test nothing"


@torch.no_grad()
def test_the_rim_of_zeros_and_the_order_of_shifts_matter(network: DDDNet, state: State) -> None:
    pair = random_pair(64, 64)
    left, right = pair[:, :3], pair[:, 3:]
    expected = disparity(state, left, right)
    got = network.estd(left, right)[:, 0]
    assert relative_error(got, expected) < 1e-5, say(got, expected)
    for branch in (network.estd.feature.branch1, network.estd.feature.branch3):
        branch[1][0].padding = (0, 0)
        assert relative_error(network.estd(left, right)[:, 0], expected) > 1e-4
        branch[1][0].padding = (1, 1)
    depths = network.estd.depths
    network.estd.depths = depths.flip(1)
    assert relative_error(network.estd(left, right)[:, 0], expected) > 1e-2
    network.estd.depths = depths


@pytest.mark.parametrize(("size", "samples"), [(4, 12), (5, 7), (8, 4)])
def test_linear_resizing_as_a_matrix(size: int, samples: int) -> None:
    row = torch.rand(1, 1, size)
    torch.testing.assert_close(
        linear_matrix(size, samples) @ row[0, 0], F.interpolate(row, samples, mode="linear", align_corners=False)[0, 0]
    )


@torch.no_grad()
def test_the_gram_matrix_survives_half_arithmetic() -> None:
    attention = GramAttention()
    attention.gamma.fill_(1.0)
    x = torch.rand(1, 4, 500, 600, generator=torch.Generator().manual_seed(0))
    flat = x.flatten(2)
    assert not torch.isfinite((flat @ flat.transpose(1, 2)).half()).all(), "the naive form would overflow here"
    got, expected = attention.half()(x.half()).float(), attention.float()(x)
    assert relative_error(got, expected) < 1e-2


@pytest.mark.slow
def test_graphs_compute_what_torch_does(network: DDDNet, tmp_path: Path) -> None:
    kinds = check_graphs(network, tmp_path, [(64, 72), (88, 64)], {"fp32": 1e-4, "fp16": 2e-2})
    assert all(not {"If", "Loop", "Einsum"} & set(found) for found in kinds.values())
    assert kinds["fp16"]["Softmax"] == kinds["fp32"]["Softmax"] == 2
    assert math.isclose(kinds["fp16"]["Conv"], kinds["fp32"]["Conv"])
