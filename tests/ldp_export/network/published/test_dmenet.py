import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldp_export.network.published.dmenet import DMENet, blur_sigma
from tests.ldp_export.network.published.states import (
    State,
    check_graphs,
    random_pair,
    random_state,
    relative_error,
    say,
)


def defocus(state: State, image: Tensor) -> Tensor:
    """The facts' list of layers: one RGB image to the map."""

    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}/kernel:0"].permute(3, 2, 0, 1)
        if weight.shape[2] == 3:  # symmetric padding by one
            x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
            x = torch.cat([x[..., :1], x, x[..., -1:]], 3)
        return F.conv2d(x, weight, state[f"{name}/bias:0"])

    def norm(name: str, x: Tensor) -> Tensor:
        mean, variance, beta = (
            state[f"decoder/{name}/{part}:0"][:, None, None] for part in ("moving_mean", "moving_variance", "beta")
        )
        return F.leaky_relu((x - mean) / torch.sqrt(variance + 1e-5) + beta, 0.2)

    def layer(place: str, number: str, x: Tensor) -> Tensor:
        return norm(f"{place}/b{number}", conv(f"decoder/{place}/c{number}", x))

    def up(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    red, green, blue = (255 * image).unbind(1)
    x = torch.stack([blue - 103.939, green - 116.779, red - 123.68], 1)
    d = []
    for group, count in enumerate((2, 2, 4, 4, 4), 1):
        for i in range(1, count + 1):
            x = F.relu(conv(f"encoder/conv{group}_{i}", x))
        d.append(x)
        x = F.max_pool2d(x, 2)
    n = d[4]
    for place, skip in (("u3", d[3]), ("u2", d[2]), ("u1", d[1])):
        n = torch.cat([up(n), skip], 1)
        for number in ("1", "2", "3"):
            n = layer(place, number, n)
    n = layer("u0", "_init", torch.cat([up(n), d[0]], 1))
    for i in range(7):
        n = layer("u0", f"{i}_2", layer("u0", f"{i}_1", n)) + layer("u0", f"_res{i}", n)
    n = layer("uf", "2", layer("uf", "1", n))
    return torch.sigmoid(conv("decoder/uf/c3", n))


@pytest.fixture(scope="module")
def state() -> State:
    state = random_state(DMENet().published_state())
    for name in state:
        if name.endswith("kernel:0"):  # random_state takes the last axes for the inputs
            state[name] *= (2 / state[name][..., 0].numel()) ** 0.5 / state[name].std()
    state["encoder/conv1_1/kernel:0"] /= 100
    state["decoder/uf/c3/kernel:0"] *= 0.3
    return state


@pytest.fixture(scope="module")
def network(state: State) -> DMENet:
    network = DMENet().double()
    network.load_published_state(state)
    return network.eval()


def test_as_many_parameters_as_the_authors_layers() -> None:
    """25.35 M of the authors' are live; folded, a normalisation's shift is part of the bias."""
    with torch.device("meta"):
        network = DMENet()
    shapes = network.published_state()
    live = sum(torch.Size(shape).numel() for name, shape in shapes.items() if "moving" not in name)
    assert round(live / 1e6, 2) == 25.35
    shifts = sum(torch.Size(shape).numel() for name, shape in shapes.items() if name.endswith("beta:0"))
    assert sum(parameter.numel() for parameter in network.parameters()) == live - shifts
    assert shapes["encoder/conv1_1/kernel:0"] == (3, 3, 3, 64)
    assert shapes["decoder/u3/c1/kernel:0"] == (3, 3, 1024, 256)
    assert shapes["decoder/u0/c_res6/kernel:0"] == (1, 1, 64, 64)
    assert shapes["decoder/u0/b_init/moving_variance:0"] == (64,)
    assert "decoder/uf/b3/beta:0" not in shapes


@torch.no_grad()
def test_it_computes_what_the_facts_say(network: DMENet, state: State) -> None:
    """In double precision: this many layers with random weights amplify what FP32 rounds."""
    pair = random_pair(32, 48).double()
    wide = {name: tensor.double() for name, tensor in state.items()}
    expected = defocus(wide, (pair[:, :3] + pair[:, 3:]) / 2)
    assert expected.std() > 0.02, "a map that is flat tests nothing"
    got = network.restore(pair)
    assert got.shape == (1, 3, 32, 48)
    assert relative_error(got, expected) < 1e-9, say(got, expected)
    flipped = network.restore(pair.unflatten(1, (2, 3)).flip(2).flatten(1, 2))
    assert relative_error(flipped, expected) > 1e-3


def test_sigma_of_a_map() -> None:
    found = blur_sigma(torch.tensor([0.0, 1 / 15, 0.2, 1.0]))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 1.0, 7.0]))


@pytest.mark.slow
def test_graphs_compute_what_torch_does(network: DMENet, tmp_path: Path) -> None:
    check_graphs(copy.deepcopy(network).float(), tmp_path, [(32, 48)], {"fp32": 1e-4, "fp16": 2e-2})
