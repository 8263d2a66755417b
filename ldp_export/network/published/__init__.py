"""Networks for dual-pixel pairs that others published, implemented from their papers and layer lists.

Each module here holds one network: a ``base.PublishedNetwork`` that maps a pair ``(B, 6, H, W)`` RGB in [0, 1], left
then right, to the restored image ``(B, 3, H, W)`` RGB, not clamped. All that its authors do before and after it is part
of it: order of colours and views is turned in the weights when they are loaded, shifts of the range, residuals and
resizing are layers of ``restore``. So one runtime restores with any of them. What it has to know is in
``PublishedConfig``: the multiple and least size of the sides, the halo of exact tiles or None, and the memory.

``published_state`` says the names and shapes that the authors' file has, without wrappers and prefixes such as
``module.``; ``load_published_state`` takes such tensors. A Keras file has no stable names: its layers with weights are
numbered in order, ``0.kernel``, ``0.bias``, ``1.kernel``, kernels with the axes of Keras. A network that comes as
several files has the stem of the file in lower case before each name. Where the file decides on a form of the network,
its class overrides ``fitting(state)``, which builds the form that fits.

Weights here are random until they are loaded; ``ldp-export import`` makes a bundle of the authors' file. Sizes that
vary are symbols when the network is exported: no number of ``restore`` may depend on them but through their arithmetic.
Sums over many positions (norms, Gram matrices, means) are FP32 in a network of any type.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldp_export.network.published.base import PublishedNetwork


@dataclass(frozen=True)
class Weights:
    """What the authors publish of a network.

    Attributes:
        files: The names of the files that make it up.
        where: Where they lie, a phrase.
        licence: Their licence, a phrase.
        sharing: Whether a bundle made of the files may be passed on, a phrase.
        cite: The sentence to cite.
    """

    files: tuple[str, ...]
    where: str
    licence: str
    sharing: str
    cite: str


@dataclass(frozen=True)
class Published:
    """A network.

    Attributes:
        name: Its name in options, and that of its module.
        title: Its name in print.
        network: Name of its class.
        multiple: H and W are multiples of this many px.
        parameters: Its parameters here.
        source: What the layers and that number were checked against.
        weights: What the authors publish for dual-pixel pairs; None where there is nothing.
        quoted: Its row in the LDP paper's Table 1, or None.
        quoted_ablation: Its row in the LDP paper's Table 6, or None.
    """

    name: str
    title: str
    network: str
    multiple: int
    parameters: int
    source: str
    weights: Weights | None
    quoted: str | None
    quoted_ablation: str | None = None

    @property
    def network_class(self) -> type[PublishedNetwork]:
        """The class of the network; imports torch."""
        module = importlib.import_module(f"ldp_export.network.published.{self.name}")
        found: type[PublishedNetwork] = getattr(module, self.network)
        return found

    def build(self) -> PublishedNetwork:
        """The network, untrained."""
        return self.network_class()

    def random(self) -> PublishedNetwork:
        """The network with all parameters drawn, and its output scaled to the contrast of an image."""
        from ldp_export.network.randomise import randomise

        network = randomise(self.build()).eval()
        network.tame()
        return network


_FREE = "may be passed on with the authors' licence and names"
_COPYLEFT = "may be passed on under the same licence alone"
FORBIDDEN = "must not be passed on"

PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        network.name: network
        for network in (
            Published(
                "dpdnet",
                "DPDNet",
                "DPDNet",
                16,
                31_035_151,
                "the layers of the authors' repository Abdullah-Abuolaim/defocus-deblurring-dual-pixel, "
                "DPDNet/model.py; no printed number was found",
                Weights(
                    ("defocus_deblurring_dp_l5_s512_f0.7_d0.4.hdf5",),
                    "sync.com, linked from the README of Abdullah-Abuolaim/defocus-deblurring-dual-pixel",
                    "MIT",
                    _FREE,
                    "Abdullah Abuolaim and Michael S. Brown, Defocus Deblurring Using Dual-Pixel Data, ECCV 2020",
                ),
                "DPDNet",
            ),
            Published(
                "ifan",
                "IFAN, dual-pixel",
                "IFAN",
                8,
                9_635_748,
                "the layers of codeslake/IFAN, models/archs/IFAN_dual.py, with the sizes of configs/config_IFAN.py; "
                "the IFAN paper's comparison on DPDD prints 10.48 M, without the branches of training, with filters "
                "that go unused",
                Weights(
                    ("IFAN_dual.pytorch",),
                    "checkpoints.zip on OneDrive and Dropbox, linked from the README of codeslake/IFAN",
                    "AGPL-3.0",
                    _COPYLEFT,
                    "Junyong Lee, Hyeongseok Son, Jaesung Rim, Sunghyun Cho and Seungyong Lee, Iterative Filter "
                    "Adaptive Network for Single Image Defocus Deblurring, CVPR 2021",
                ),
                "IFAN",
            ),
            Published(
                "restormer",
                "Restormer, dual-pixel",
                "Restormer",
                8,
                26_132_548,
                "the options of swz30/Restormer, Defocus_Deblurring/test_dual_pixel_defocus_deblur.py, the rest from "
                "the paper's Section 4; comparison tables of later papers print 26.1 or 26.13 M",
                Weights(
                    ("dual_pixel_defocus_deblurring.pth",),
                    "release v1.0 of swz30/Restormer on GitHub, and Google Drive",
                    "Restormer's Academic Public License, no commercial use",
                    FORBIDDEN,
                    "Syed Waqas Zamir, Aditya Arora, Salman Khan, Munawar Hayat, Fahad Shahbaz Khan and Ming-Hsuan "
                    "Yang, Restormer: Efficient Transformer for High-Resolution Image Restoration, CVPR 2022",
                ),
                "Restormer",
            ),
            Published(
                "rdpd",
                "RDPD, single image",
                "RDPD",
                16,
                12_481_423,
                "the layers of Abdullah-Abuolaim/recurrent-defocus-deblurring-synth-dual-pixel; the file has 24.28 M, "
                "of which one image needs no recurrent kernel and no forget gate",
                Weights(
                    ("RDPD+.hdf5",),
                    "sync.com, linked from the README of "
                    "Abdullah-Abuolaim/recurrent-defocus-deblurring-synth-dual-pixel",
                    "Apache-2.0",
                    _FREE,
                    "Abdullah Abuolaim, Mauricio Delbracio, Damien Kelly, Michael S. Brown and Peyman Milanfar, "
                    "Learning to Reduce Defocus Blur by Realistically Modeling Dual-Pixel Data, ICCV 2021",
                ),
                "RDPD",
            ),
            Published(
                "bambnet",
                "BAMBNet",
                "BAMBNet",
                16,
                4_497_731,
                "the layers of junjun-jiang/BaMBNet",
                Weights(
                    ("200_models.pth",),
                    "Google Drive, linked from the README of junjun-jiang/BaMBNet",
                    "CC-BY-NC-4.0, no commercial use",
                    FORBIDDEN,
                    "Pengwei Liang, Junjun Jiang, Xianming Liu and Jiayi Ma, BaMBNet: A Blur-aware Multi-branch "
                    "Network for Dual-pixel Defocus Deblurring, IEEE/CAA Journal of Automatica Sinica, 2022",
                ),
                "BAMBNet",
            ),
            Published(
                "nafnet",
                "NAFNet, width 32",
                "NAFNet",
                16,
                17_112_771,
                "megvii-research/NAFNet, options/test/GoPro/NAFNet-width32.yml: encoder 1-1-1-28, middle 1, decoder "
                "1-1-1-1 (the paper's 36 blocks), 17,111,907 with a 3-channel input; the pair's 6 channels add 864",
                None,
                None,
                "NAFNet",
            ),
            Published(
                "dddnet",
                "DDDNet",
                "DDDNet",
                8,
                6_516_714,
                "every layer of panpanfei/Dual-Pixel-Exploration-Simultaneous-Depth-Estimation-and-Image-Restoration, "
                "DDDNet/model_test.py, which has 10,964,814 with those that an image does not need",
                Weights(
                    ("Estd.pkl", "Esti.pkl"),
                    "DDDNet/checkpoints/model_dpd of panpanfei/Dual-Pixel-Exploration-Simultaneous-Depth-Estimation-"
                    "and-Image-Restoration on GitHub",
                    "none stated; its README allows academic use only",
                    FORBIDDEN,
                    "Liyuan Pan, Shah Chowdhury, Richard Hartley, Miaomiao Liu, Hongguang Zhang and Hongdong Li, Dual "
                    "Pixel Exploration: Simultaneous Depth Estimation and Image Restoration, CVPR 2021",
                ),
                "DDDNet",
            ),
            Published(
                "k3dn",
                "K3DN, at 1152x1792",
                "K3DN",
                1,
                15_673_878,
                "every layer of cjsj166/k3dn, models.py, size L, which has 16,099,350 before its kernels are folded; "
                "no repository of the authors was found",
                Weights(
                    ("best.pt",),
                    "checkpoints/dp_2_ft of cjsj166/k3dn on GitHub, whose origin is not stated",
                    "none stated",
                    FORBIDDEN,
                    "Yan Yang, Liyuan Pan, Liu Liu and Miaomiao Liu, K3DN: Disparity-Aware Kernel Estimation for "
                    "Dual-Pixel Defocus Deblurring, CVPR 2023",
                ),
                "K3DN",
            ),
            Published(
                "deeprft",
                "DeepRFT, one image",
                "DeepRFT",
                4,
                9_545_904,
                "every layer of INVOKERer/DeepRFT, DeepRFT_MIMO.py, eight blocks a group, which takes one image and "
                "has 9,551,088 with two side outputs of training; how the LDP paper gave it pairs is not stated",
                None,
                "DeepRFT",
            ),
            Published(
                "dmenet",
                "DMENet, the map alone",
                "DMENet",
                16,
                25_346_177,
                "every layer of codeslake/DMENet, model.py, with normalisation folded; its output is a map of one "
                "image's defocus, and the deconvolution that gives an image is not part of it",
                None,
                "DMENet",
            ),
        )
    }
)
"""Every network by name."""
