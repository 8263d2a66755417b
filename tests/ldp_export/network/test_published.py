"""The registry of published networks: what it says of each agrees with its module."""

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ldp_export.evaluation.paper import load_table
from ldp_export.network.published import PUBLISHED, Published
from ldp_export.network.published.base import PublishedNetwork, swap_colors
from ldp_export.network.published.layers import center
from ldp_runtime.stages.tiles import BLEND

ALL = sorted(PUBLISHED)


def build_on_meta(name: str) -> PublishedNetwork:
    with torch.device("meta"):
        return PUBLISHED[name].build()


@pytest.mark.parametrize("name", ALL)
def test_the_parameters_are_as_many_as_stated(name: str) -> None:
    published, network = PUBLISHED[name], build_on_meta(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == published.parameters
    assert (network.config.name, network.config.multiple) == (published.name, published.multiple)
    assert network.config.multiple <= 16 or network.config.least == 1


FILES = {
    "bambnet": (452, 4_497_731),
    "dpdnet": (48, 31_035_151),
    "ifan": (158, 10_477_860),
    "rdpd": (49, 24_278_415),
    "restormer": (495, 26_132_548),
}
"""Tensors and numbers in the authors' files, counted in their code."""


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_authors_files_hold_as_many_tensors_and_numbers(name: str) -> None:
    state = build_on_meta(name).published_state()
    assert (len(state), sum(map(math.prod, state.values()))) == FILES[name]


@pytest.mark.parametrize("name", ALL)
def test_quoted_rows_exist_and_weights_say_what_to_cite(name: str) -> None:
    published: Published = PUBLISHED[name]
    if published.quoted:
        load_table(1).find(published.quoted)
    if published.weights:
        assert published.weights.files and published.weights.cite[-4:].isdecimal()
    assert len(published.source) > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*ALL} - {"k3dn", "deeprft"}))  # those take minutes at their own sizes
def test_shapes_and_that_both_views_matter(name: str) -> None:
    network = PUBLISHED[name].random()
    pair = torch.rand(1, 6, 64, 80)
    with torch.inference_mode():
        restored = network(pair)
        changed = [network(torch.cat([pair[:, :3] + a, pair[:, 3:] + b], 1)) for a, b in ((0.5, 0), (0, 0.5))]
    assert restored.shape[2:] == (64, 80) and torch.isfinite(restored).all()
    assert all((other - restored).abs().max() > 1e-6 for other in changed)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "limit"), [("dpdnet", 1e-6), ("rdpd", 1e-6), ("ifan", 1e-3)])
def test_a_tile_equals_the_full_frame_where_its_pixels_count(name: str, limit: float) -> None:
    """Pixels nearer to a cut than the halo less half of the blend have no weight; IFAN's filters reach farther."""
    network = PUBLISHED[name].random()
    halo = network.config.halo
    assert halo is not None
    unused = halo - BLEND // 2
    pair = torch.rand(1, 6, 16, 2 * unused + 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole, tile = network(pair)[..., unused:], network(pair[..., unused:])
    error = (whole - tile).abs()[0].amax((0, 1))
    assert error[unused:].max() < limit, f"{error[unused:].max()}"
    assert error[: unused // 4].max() > 1e-4


def convolution_gmacs(network: torch.nn.Module) -> float:
    """Multiply-adds of the convolutions alone at 256 x 256 px, as the papers count them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 6, 256, 256, device="meta"))
    counts: dict[Any, int] = counter.get_flop_counts()["Global"]
    return sum(flops for op, flops in counts.items() if "convolution" in str(op)) / 2e9


@pytest.mark.parametrize(("name", "gmacs"), [("nafnet", 16.0), ("restormer", 140.99)])
def test_a_network_takes_the_gmacs_of_its_paper(name: str, gmacs: float) -> None:
    assert convolution_gmacs(build_on_meta(name)) == pytest.approx(gmacs, rel=0.01)


def test_the_ends_are_fp32_whatever_the_type_of_the_weights() -> None:
    class Halved(PublishedNetwork):
        adds_center = True

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(6, 3, 1)

        def restore(self, pair: torch.Tensor) -> torch.Tensor:
            assert pair.dtype == torch.float16
            return self.layer(pair) * 0

    pair = torch.rand(1, 6, 4, 4)
    restored = Halved().half()(pair)
    assert restored.dtype == torch.float32
    assert torch.equal(restored, center(pair))


def test_colors_are_swapped_in_both_views_and_further_channels_stay() -> None:
    kernel = torch.arange(7.0).reshape(1, 7, 1, 1)
    assert swap_colors(kernel).flatten().tolist() == [2, 1, 0, 5, 4, 3, 6]
