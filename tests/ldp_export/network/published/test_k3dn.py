from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldp_export.network.published import k3dn
from ldp_export.network.published.k3dn import K3DN, correlate, depthwise_kernel, nearest_means
from tests.ldp_export.network.published.states import (
    State,
    check_graphs,
    random_pair,
    random_state,
    relative_error,
    say,
)
from tests.ldp_export.network.published.test_stereo import norm_relu, shifted_volume, view_features

SIZE = (288, 448)
"""The smallest working size: two windows down, four across."""


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def group(state: State, name: str, x: Tensor) -> Tensor:
    for i in range(sum(key.startswith(f"{name}.layers.") for key in state) // 2):
        block = f"{name}.layers.{i}.main"
        y = leaky(F.conv2d(x, state[f"{block}.0.main.0.weight"], padding=1))
        x = F.conv2d(y, state[f"{block}.1.main.0.weight"], padding=1) + x
    return x


def styles(state: State, left: Tensor, right: Tensor) -> Tensor:
    """One style for each window of each picture, row by row."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        x = F.conv3d(x, state[f"disp.matching.{name}.conv.weight"], padding=1, stride=stride)
        return norm_relu(state, f"disp.matching.{name}.bn", x)

    height, width = left.shape[2:]
    views = [view_features(state, "disp.feature.", F.avg_pool2d(view, 4), (32, 16), 2) for view in (left, right)]
    x = conv("start.2", conv("start.1", conv("start.0", shifted_volume(*views)), 2))
    x = conv("conv1a.1", conv("conv1a.0", x, 2))[:, :, 0]
    x = F.interpolate(x, (height // 288 + x.shape[2], width // 224 + x.shape[3]))
    x = F.avg_pool2d(x, (5, 4))
    rows = [x[b, :, i, j] for b in range(len(x)) for i in range(x.shape[2]) for j in range(x.shape[3])]
    return leaky(F.linear(torch.stack(rows), state["disp.fc.0.weight"], state["disp.fc.0.bias"]))


def psf_block(state: State, name: str, x: Tensor, style: Tensor) -> Tensor:
    channels = x.shape[1]
    spectrum = state[f"{name}.conv1.weight"]
    kernel = torch.fft.irfft2(torch.complex(spectrum[..., 0], spectrum[..., 1]))[0, :, 0]
    kernel = torch.stack([kernel[:, :9, column] for column in (0, 1, 2, 3, 4, 3, 2, 1, 0)], -1)
    kernel = torch.stack([k / torch.sqrt((k**2).sum() + 1e-8) for k in kernel])
    w = torch.stack([(state[f"{name}.inter.to_w"][0, c, 0] * kernel[c, :, :5]).sum() for c in range(channels)])
    r = F.linear(style, state[f"{name}.inter.to_r.weight"], state[f"{name}.inter.to_r.bias"]) * w
    style = style + leaky(F.linear(r, state[f"{name}.inter.out.weight"], state[f"{name}.inter.out.bias"]))
    modulation = state[f"{name}.conv2.modulation.weight"] / 16
    scale = torch.softmax(F.linear(style, modulation, state[f"{name}.conv2.modulation.bias"]), 1)
    lower, upper = torch.eye(channels), torch.zeros(channels, channels)
    for i in range(channels):
        lower[i, :i] = state[f"{name}.conv2.lower"][i, :i]
        upper[i, i] = state[f"{name}.conv2.sign_s"][i] * torch.exp(state[f"{name}.conv2.log_s"][i])
        upper[i, i + 1 :] = state[f"{name}.conv2.upper"][i, i + 1 :]
    matrix = state[f"{name}.conv2.p"] @ lower @ upper
    y = leaky(F.conv2d(x, kernel[:, None], padding=4, groups=channels))
    return leaky(F.conv2d(y * scale[:, :, None, None], matrix[:, :, None, None])) + x


def slow_correlation(query: Tensor, key: Tensor) -> Tensor:
    height, width = query.shape[2:]
    found = torch.zeros(len(query), 81, height, width)
    for dy in range(-4, 5):
        for dx in range(-4, 5):
            for y in range(max(0, -dy), min(height, height - dy)):
                xs = torch.arange(max(0, -dx), min(width, width - dx))
                products = query[:, :, y, xs] * key[:, :, y + dy, xs + dx]
                found[:, (dy + 4) * 9 + dx + 4, y, xs] = products.mean(1)
    return found


def gate(state: State, name: str, old: Tensor, new: Tensor) -> Tensor:
    def conv(part: str, x: Tensor) -> Tensor:
        return F.conv2d(x, state[f"{name}.{part}.weight"], state[f"{name}.{part}.bias"], padding=1)

    x = torch.cat([old, new], 1)
    v = conv("conv_v", slow_correlation(conv("conv_q", x), conv("conv_k", x)))
    return x + conv("conv_o.2", group(state, f"{name}.conv_o.1", conv("conv_o.0", x * v)))


def restored(state: State, pair: Tensor) -> Tensor:
    """The facts' list of layers at the working size: pair in [-0.5, 0.5] to the clipped output."""

    def down(i: int, x: Tensor) -> Tensor:
        return leaky(F.conv2d(x, state[f"feat_extract.{i}.main.0.weight"], stride=2, padding=1))

    def up(i: int, x: Tensor) -> Tensor:
        return leaky(F.conv_transpose2d(x, state[f"feat_extract.{i}.main.0.weight"], stride=2, padding=1))

    style = styles(state, pair[:, :3], pair[:, 3:])
    res1 = group(state, "Encoder.0", down(0, pair))
    res2 = group(state, "Encoder.1", down(1, res1))
    res3 = group(state, "Encoder.2", down(2, res2))
    rows, columns = res3.shape[2] // 18, res3.shape[3] // 14
    spots = [(slice(18 * i, 18 * i + 18), slice(14 * j, 14 * j + 14)) for i in range(rows) for j in range(columns)]
    for n, (across, along) in enumerate(spots):
        window = res3[:, :, across, along].clone()
        for block in range(len({key.split(".")[1] for key in state if key.startswith("deblur.")})):
            window = psf_block(state, f"deblur.{block}", window, style[n : n + 1])
        res3[:, :, across, along] = window
    z = group(state, "Decoder.0", gate(state, "srp.0", res2, up(3, res3)))
    z = group(state, "Decoder.1", gate(state, "srp.1", res1, up(4, z)))
    z = group(state, "Decoder.2", gate(state, "srp.2", pair, up(5, z)))
    return F.conv2d(z, state["out.main.0.weight"], padding=1).clip(-1, 1)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """A narrow network of few blocks: transcriptions read the widths from the tensors' shapes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("WIDTH", 6), ("BLOCKS", 2), ("WINDOW_BLOCKS", 2)):
            patch.setattr(k3dn, name, value)
        yield


@pytest.fixture(scope="module")
def state(small: None) -> State:
    state = random_state(K3DN(SIZE).published_state())
    for name in state:
        if name.endswith("conv2.p"):  # a permutation
            state[name] = torch.eye(len(state[name]))[torch.randperm(len(state[name]))]
        elif name.endswith("sign_s"):
            state[name] = state[name].sign()
        elif name.endswith("to_w"):
            state[name] *= 8
    state["out.main.0.weight"] *= 0.3  # else most of the output is clipped
    return state


@pytest.fixture(scope="module")
def network(state: State) -> K3DN:
    network = K3DN(SIZE)
    network.load_published_state(state)
    return network.eval()


def test_as_many_tensors_and_parameters_as_the_published_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """288 tensors, of which 16,099,350 numbers are parameters."""
    for name, value in (("WIDTH", 48), ("BLOCKS", 4), ("WINDOW_BLOCKS", 8)):
        monkeypatch.setattr(k3dn, name, value)
    with torch.device("meta"):
        shapes = K3DN().published_state()
    assert len(shapes) == 288
    buffers = ("running_mean", "running_var", "num_batches_tracked", "conv2.p", "conv2.sign_s")
    assert sum(torch.Size(shape).numel() for name, shape in shapes.items() if not name.endswith(buffers)) == 16_099_350
    assert shapes["Encoder.0.layers.0.main.0.main.0.weight"] == (48, 48, 3, 3)
    assert shapes["deblur.7.conv1.weight"] == (1, 192, 1, 10, 6, 2)
    assert shapes["deblur.0.inter.to_w"] == (1, 192, 1, 9, 5)
    assert shapes["disp.fc.0.weight"] == (256, 64)
    assert shapes["out.main.0.weight"] == (3, 54, 3, 3)


@torch.no_grad()
def test_it_computes_what_the_facts_say(network: K3DN, state: State) -> None:
    """At the working size nothing is resized: only the shift by half is left of what is around the layers."""
    pair = random_pair(*SIZE)
    expected = restored(state, pair - 0.5) + 0.5
    assert (expected - 0.5).abs().mean() < 0.9, "an output that is clipped everywhere tests nothing"
    got = network(pair)
    assert relative_error(got, expected) < 1e-5, say(got, expected)
    swapped = network(torch.cat([pair[:, 3:], pair[:, :3]], 1))
    assert relative_error(swapped, expected) > 1e-3
    expected = styles(state, pair[:, :3] - 0.5, pair[:, 3:] - 0.5)
    got = network.disp(pair[:, :3] - 0.5, pair[:, 3:] - 0.5)
    assert got.shape == (8, 256)
    assert relative_error(got, expected) < 1e-5, say(got, expected)
    assert relative_error(network.disp(pair[:, :3], pair[:, 3:]), expected) > 1e-3  # without the shift
    network.disp.feature.branch1[1][0].padding = (0, 0)
    assert relative_error(network.disp(pair[:, :3] - 0.5, pair[:, 3:] - 0.5), expected) > 1e-4
    network.disp.feature.branch1[1][0].padding = (1, 1)


@torch.no_grad()
def test_photos_are_resized_clamped_and_resized_back(network: K3DN, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def keep(pair: Tensor) -> Tensor:
        seen.append(pair)
        return pair[:, 3:]

    monkeypatch.setattr(network, "restore", keep)
    pair = random_pair(40, 56).round()
    got = network(pair)
    resized = F.interpolate(pair, SIZE, mode="bicubic")
    assert resized.max() > 1.05, "nothing to clamp tests nothing"
    torch.testing.assert_close(seen[0], resized.clip(0, 1) - 0.5)
    torch.testing.assert_close(got, F.interpolate(seen[0][:, 3:], (40, 56), mode="bicubic") + 0.5)


@pytest.mark.parametrize("half", [False, True])
def test_local_correlation_by_loops(half: bool) -> None:
    both = torch.randn(2, 2, 5, 7, 16, generator=torch.Generator().manual_seed(0))
    query, key = (400 * both).half() if half else both
    expected = slow_correlation(query.float(), key.float())
    assert not half or expected.abs().max() > 65504, "in FP16 this would overflow"
    torch.testing.assert_close(correlate(query, key), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("size", "samples", "cell"), [(36, 40, 5), (56, 64, 4), (9, 10, 5), (14, 16, 4)])
def test_nearest_resizing_and_means_as_a_matrix(size: int, samples: int, cell: int) -> None:
    row = torch.rand(1, 1, size)
    expected = F.avg_pool1d(F.interpolate(row, samples), cell)[0, 0]
    torch.testing.assert_close(nearest_means(size, samples, cell) @ row[0, 0], expected)


def test_a_depthwise_kernel_is_mirrored_and_of_unit_length() -> None:
    kernel = depthwise_kernel(torch.randn(1, 3, 1, 10, 6, 2))
    assert kernel.shape == (3, 1, 9, 9)
    assert torch.equal(kernel, kernel.flip(-1))
    torch.testing.assert_close(kernel.square().sum((1, 2, 3)), torch.ones(3, dtype=torch.float64))


@pytest.mark.slow
def test_graphs_at_the_published_working_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded coordinates of its resizing had differed by 1e-4 px between torch and runtimes."""
    for name, value in (("WIDTH", 6), ("BLOCKS", 1), ("WINDOW_BLOCKS", 1)):
        monkeypatch.setattr(k3dn, name, value)
    network = K3DN()
    assert network.config.to_dict()["works_at"] == [1152, 1792]
    network.load_published_state(random_state(network.published_state()))
    check_graphs(network.eval(), tmp_path, [(256, 384)], {"fp32": 1e-5})


@pytest.mark.slow
def test_graphs_compute_what_torch_does(network: K3DN, tmp_path: Path) -> None:
    kinds = check_graphs(network, tmp_path, [(96, 80), SIZE], {"fp32": 1e-4, "fp16": 2e-2})
    assert all(not {"If", "Loop", "Einsum", "DFT"} & set(found) for found in kinds.values())
