from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldp_export.network.published import deeprft
from ldp_export.network.published.deeprft import DeepRFT
from tests.ldp_export.network.published.states import (
    State,
    check_graphs,
    random_pair,
    random_state,
    relative_error,
    say,
)

WINDOW = 32


def kernel(state: State, name: str) -> Tensor:
    """A kernel of DO-Conv tap by tap; one of 1x1 has no second factor."""
    w = state[f"{name}.W"]
    if f"{name}.D" not in state:
        return w[..., None]
    d = state[f"{name}.D"] + state[f"{name}.D_diag"]
    taps = [sum(d[:, mn, s] * w[:, :, s] for s in range(9)) for mn in range(9)]
    return torch.stack(taps, -1).unflatten(-1, (3, 3))


def restored_window(state: State, x: Tensor) -> Tensor:
    """The facts' list of layers for one window ``(1, 3, N, N)``, without the image that is added."""

    def conv(name: str, x: Tensor, stride: int = 1, relu: bool = True) -> Tensor:
        weight = kernel(state, f"{name}.main.0")
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        return F.relu(x) if relu else x

    def up(name: str, x: Tensor) -> Tensor:
        return F.relu(F.conv_transpose2d(x, state[f"{name}.main.0.weight"], stride=2, padding=1))

    def group(name: str, x: Tensor) -> Tensor:
        for i in range(len({key.split(".")[3] for key in state if key.startswith(f"{name}.layers.")})):
            block = f"{name}.layers.{i}"
            y = torch.fft.rfft2(x, norm="backward")
            y = conv(f"{block}.main_fft.0", torch.cat([y.real, y.imag], 1))
            real, imaginary = conv(f"{block}.main_fft.1", y, relu=False).chunk(2, 1)
            y = torch.fft.irfft2(torch.complex(real, imaginary), s=x.shape[2:], norm="backward")
            x = conv(f"{block}.main.1", conv(f"{block}.main.0", x), relu=False) + x + y
        return x

    def scm(name: str, x: Tensor) -> Tensor:
        y = x
        for i in range(4):
            y = conv(f"{name}.main.{i}", y)
        return conv(f"{name}.conv", torch.cat([x, y], 1), relu=False)

    def fam(name: str, a: Tensor, b: Tensor) -> Tensor:
        return a + conv(f"{name}.merge", a * b, relu=False)

    def aff(name: str, *maps: Tensor) -> Tensor:
        return conv(f"{name}.conv.1", conv(f"{name}.conv.0", torch.cat(maps, 1)), relu=False)

    def resize(x: Tensor, factor: float) -> Tensor:
        return F.interpolate(x, scale_factor=factor)

    z2, z4 = scm("SCM2", resize(x, 0.5)), scm("SCM1", resize(resize(x, 0.5), 0.5))
    res1 = group("Encoder.0", conv("feat_extract.0", x))
    res2 = group("Encoder.1", fam("FAM2", conv("feat_extract.1", res1, 2), z2))
    z = group("Encoder.2", fam("FAM1", conv("feat_extract.2", res2, 2), z4))
    aff2 = aff("AFFs.1", resize(res1, 0.5), res2, resize(z, 2))
    aff1 = aff("AFFs.0", res1, resize(res2, 2), resize(resize(z, 2), 2))
    z = up("feat_extract.3", group("Decoder.0", z))
    z = group("Decoder.1", conv("Convs.0", torch.cat([z, aff2], 1)))
    z = up("feat_extract.4", z)
    z = group("Decoder.2", conv("Convs.1", torch.cat([z, aff1], 1)))
    return conv("feat_extract.5", z, relu=False)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("WIDTH", 8), ("BLOCKS", 2), ("WINDOW", WINDOW)):
            patch.setattr(deeprft, name, value)
        yield


@pytest.fixture(scope="module")
def state(small: None) -> State:
    state = random_state(DeepRFT().published_state())
    for name in state:
        if name.endswith("D_diag"):
            state[name] = torch.eye(9).repeat(len(state[name]), 1, 1)
    return state


@pytest.fixture(scope="module")
def network(state: State) -> DeepRFT:
    network = DeepRFT()
    network.load_published_state(state)
    return network.eval()


def test_as_many_tensors_and_parameters_as_the_authors_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """438 tensors, 218 when folded, 9,551,088 parameters, with the two side outputs of training."""
    for name, value in (("WIDTH", 32), ("BLOCKS", 8), ("WINDOW", 512)):
        monkeypatch.setattr(deeprft, name, value)
    with torch.device("meta"):
        network = DeepRFT()
    side_outputs = (128 + 64) * 3 * 9
    assert sum(parameter.numel() for parameter in network.parameters()) == 9_551_088 - side_outputs
    shapes = network.published_state()
    assert (len(shapes), len(network.state_dict())) == (438 - 2 * 3, 218 - 2)
    assert shapes["Encoder.0.layers.0.main.0.main.0.W"] == (32, 32, 9)
    assert shapes["Encoder.0.layers.0.main.0.main.0.D"] == (32, 9, 9)
    assert shapes["Decoder.0.layers.7.main_fft.0.main.0.W"] == (256, 256, 1)
    assert shapes["feat_extract.3.main.0.weight"] == (128, 64, 4, 4)


@torch.no_grad()
def test_it_computes_what_the_facts_say_window_by_window(network: DeepRFT, state: State) -> None:
    """Windows as the authors cut them: the last ones flush with the border, pasted over nothing but their own part."""
    pair = random_pair(40, 76)
    image = (pair[:, :3] + pair[:, 3:]) / 2
    expected = torch.empty_like(image)
    for y, top in ((0, 0), (32, 8)):
        for x, left in ((0, 0), (32, 32), (64, 44)):
            window = image[:, :, top : top + 32, left : left + 32]
            found = restored_window(state, window) + window
            expected[:, :, y : y + 32, x : x + 32] = found[:, :, y - top :, x - left :]
    got = network(pair)
    assert relative_error(got, expected) < 1e-5, say(got, expected)
    assert relative_error(got - image, torch.zeros_like(image) + 1) > 0.1, "the network adds something"


@torch.no_grad()
def test_small_photos_are_continued_by_their_border(network: DeepRFT, state: State) -> None:
    pair = random_pair(20, 24)
    image = (pair[:, :3] + pair[:, 3:]) / 2
    window = F.pad(image, (0, 8, 0, 12), mode="replicate")
    expected = (restored_window(state, window) + window)[:, :, :20, :24]
    assert relative_error(network(pair), expected) < 1e-5


@pytest.mark.slow
def test_graphs_compute_what_torch_does(network: DeepRFT, tmp_path: Path) -> None:
    kinds = check_graphs(network, tmp_path, [(40, 76), (24, 100)], {"fp32": 1e-4, "fp16": 2e-2})
    assert all(not {"If", "Loop", "Einsum", "DFT"} & set(found) for found in kinds.values())
