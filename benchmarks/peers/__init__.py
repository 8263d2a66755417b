"""Alternatives to LDP, implemented from their papers, to compare time and memory.

The weights are random: nothing here restores an image, and time does not depend on the weights. Accuracy is quoted from
papers, and labelled so. Every network maps a pair ``(B, 6, H, W)`` in [0, 1] to the restored image ``(B, 3, H, W)``,
not clamped.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Peer:
    """A network beside ours.

    Attributes:
        name: Its name in options, and that of its module.
        title: Its name in print.
        network: Name of its class.
        multiple: H and W are multiples of this many px.
        parameters: The cited number of parameters of the paper's network.
        decimals: Decimals of the citation in millions: 17.1 M has one.
        source: Document and place of that number, and the differences here.
        checked: The source of the layers here, which confirms the number; empty if there was none.
        quoted: Its row in the LDP paper's Table 1, or None.
        quoted_ablation: Its row in the LDP paper's Table 6, or None.
    """

    name: str
    title: str
    network: str
    multiple: int
    parameters: float
    decimals: int
    source: str
    checked: str
    quoted: str | None
    quoted_ablation: str | None = None

    def build(self) -> nn.Module:
        """The network; imports torch."""
        module = importlib.import_module(f"benchmarks.peers.{self.name}")
        network: nn.Module = getattr(module, self.network)()
        return network


PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        peer.name: peer
        for peer in (
            Peer(
                "nafnet",
                "NAFNet, width 32",
                "NAFNet",
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
                "Restormer",
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
                "DPDNet",
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
                "IFAN",
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
