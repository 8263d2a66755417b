"""Networks that a user would take in place of LDP, written anew from their papers, to compare time and memory.

The weights are random: nothing here restores an image, and time does not depend on the weights. What accuracy their
papers or the LDP paper report is quoted where it is shown. Every network takes a pair ``(B, 6, H, W)`` in [0, 1] and
returns the restored image ``(B, 3, H, W)``, not clamped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Peer:
    """A network beside ours.

    Attributes:
        name: What the user calls it.
        title: Its name in print.
        build: Makes the module; imports torch.
        multiple: H and W are multiples of this many px.
        parameters: The cited number of parameters of the network as its paper has it.
        decimals: How many digits of millions the citation gives: 17.1 M has one.
        source: Document and place that number comes from, and what differs here.
        checked: What the layers here were compared with, from which the number follows; empty if nothing was at hand.
        quoted: Its row in the LDP paper's Table 1, or None.
        quoted_ablation: Its row in the LDP paper's Table 6, or None.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    multiple: int
    parameters: float
    decimals: int
    source: str
    checked: str
    quoted: str | None
    quoted_ablation: str | None = None


def _nafnet() -> nn.Module:
    from benchmarks.peers.nafnet import NAFNet

    return NAFNet()


def _restormer() -> nn.Module:
    from benchmarks.peers.restormer import Restormer

    return Restormer()


def _dpdnet() -> nn.Module:
    from benchmarks.peers.dpdnet import DPDNet

    return DPDNet()


def _ifan() -> nn.Module:
    from benchmarks.peers.ifan import IFAN

    return IFAN()


PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        peer.name: peer
        for peer in (
            Peer(
                "nafnet",
                "NAFNet, width 32",
                _nafnet,
                16,
                17.1e6,
                1,
                "the authors' repository megvii-research/NAFNet, options/test/GoPro/NAFNet-width32.yml: encoder "
                "1-1-1-28, middle 1, decoder 1-1-1-1 (the paper's 36 blocks), 17.1 M with a 3-channel input; the "
                "pair's 6 channels add 864",
                "the block counts of that file",
                None,
                "NAFNet",
            ),
            Peer(
                "restormer",
                "Restormer, dual-pixel",
                _restormer,
                8,
                26.1e6,
                1,
                "comparison tables of later papers print 26.1 or 26.13 M; the dual-pixel variant, which differs in the "
                "first and the skip convolution, is that of swz30/Restormer, "
                "Defocus_Deblurring/test_dual_pixel_defocus_deblur.py",
                "the options of that file; the rest from the paper's Section 4",
                "Restormer",
            ),
            Peer(
                "dpdnet",
                "DPDNet",
                _dpdnet,
                16,
                31.04e6,
                2,
                "counted from the layers of the authors' repository Abdullah-Abuolaim/defocus-deblurring-dual-pixel, "
                "DPDNet/model.py; no printed number was found",
                "every layer of that file",
                "DPDNet",
            ),
            Peer(
                "ifan",
                "IFAN, dual-pixel",
                _ifan,
                8,
                10.48e6,
                2,
                "the IFAN paper's comparison on DPDD: 10.48 M, of the network without its training branches; the "
                "layers are those of codeslake/IFAN, models/archs/IFAN_dual.py",
                "every layer of that file, with the sizes of configs/config_IFAN.py",
                "IFAN",
            ),
        )
    }
)
"""Every peer by name."""
