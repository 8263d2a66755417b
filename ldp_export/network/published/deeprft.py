"""DeepRFT (Mao et al., "Intriguing Findings of Frequency Selection for Image Deblurring", AAAI 2023).

A network of three scales in the manner of MIMO-UNet, whose residual blocks have a second branch: pointwise convolutions
of the spectrum. All that its authors publish restores **one image of three channels**; how the LDP paper gave it pairs
is not stated. Here it restores the center view.

Its authors cut photos into windows of 512 px, the last ones flush with the border, and paste them side by side; so does
``restore``. The spectrum is that of a window, so a window differs from the same place of any other.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.network.published.base import PublishedConfig, PublishedNetwork
from ldp_export.network.published.fourier import Fourier
from ldp_export.network.published.layers import center
from ldp_export.network.published.mimo import Conv, Group, conv, up
from ldp_export.network.published.stereo import cut, join

WIDTH = 32
BLOCKS = 8
"""Residual blocks of each group."""
WINDOW = 512
"""Side of a window in px, a power of two."""
_RESIDUAL = 0.1


def activated(inputs: int, outputs: int, side: int = 3, stride: int = 1) -> Conv:
    """A convolution, then ReLU."""
    return conv(inputs, outputs, side, stride, nn.ReLU())


class SpectralBlock(nn.Module):
    """``x`` plus two convolutions of it, plus two pointwise convolutions of its spectrum.

    Neither has a bias, so that the scale of the spectrum does not matter.
    """

    def __init__(self, width: int, fourier: Fourier) -> None:
        super().__init__()
        self.main = nn.Sequential(activated(width, width), conv(width, width))
        self.main_fft = nn.Sequential(activated(2 * width, 2 * width, 1), conv(2 * width, 2 * width, 1))
        self.fourier = fourier

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, N, N)`` to the same shape."""
        spectrum = self.main_fft(torch.cat(self.fourier.transform(x), dim=1))
        real, imaginary = spectrum.chunk(2, dim=1)
        return x + self.main(x) + self.fourier.invert(real, imaginary)


class Fusion(nn.Module):
    """Joins maps of one size (AFF)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(activated(inputs, width, 1), conv(width, width))

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps ``(B, C, H, W)`` to ``(B, width, H, W)``."""
        return self.conv(torch.cat(maps, dim=1))


class ReducedInput(nn.Module):
    """Features of the image at a reduced size (SCM)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            activated(3, width // 4),
            activated(width // 4, width // 2, 1),
            activated(width // 2, width // 2),
            activated(width // 2, width - 3, 1),
        )
        self.conv = conv(width, width, 1)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to ``(B, width, H, W)``."""
        return self.conv(torch.cat([image, self.main(image)], dim=1))


class Merge(nn.Module):
    """Adds to features a convolution of their product with those of the reduced image (FAM)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.merge = conv(width, width)

    def forward(self, x: Tensor, reduced: Tensor) -> Tensor:
        """Two maps of one shape to that shape."""
        return x + self.merge(x * reduced)


class DeepRFT(PublishedNetwork):
    """The network; a photo smaller than a window is continued to its size by its last row and column.

    The authors' files hold, besides, the layers of two side outputs, which only training uses.
    """

    config = PublishedConfig("deeprft", multiple=4, memory=3000, least=512)  # graphs are traced with several windows
    adds_center = True
    ignored = ("ConvsOut.",)

    def __init__(self) -> None:
        super().__init__()
        self.window = WINDOW
        widths = (WIDTH, 2 * WIDTH, 4 * WIDTH)
        fouriers = [Fourier(self.window >> level) for level in range(3)]
        groups = [
            Group(*(SpectralBlock(width, fourier) for _ in range(BLOCKS)))
            for width, fourier in zip((*widths, *reversed(widths)), (*fouriers, *reversed(fouriers)), strict=True)
        ]
        self.Encoder, self.Decoder = nn.ModuleList(groups[:3]), nn.ModuleList(groups[3:])
        self.feat_extract = nn.ModuleList(
            [
                activated(3, widths[0]),
                activated(widths[0], widths[1], stride=2),
                activated(widths[1], widths[2], stride=2),
                up(widths[2], widths[1], nn.ReLU()),
                up(widths[1], widths[0], nn.ReLU()),
                conv(widths[0], 3),
            ]
        )
        self.Convs = nn.ModuleList([activated(widths[2], widths[1], 1), activated(widths[1], widths[0], 1)])
        self.AFFs = nn.ModuleList(Fusion(sum(widths), width) for width in widths[:2])
        self.FAM1, self.FAM2 = Merge(widths[2]), Merge(widths[1])
        self.SCM1, self.SCM2 = ReducedInput(widths[2]), ReducedInput(widths[1])

    @torch.no_grad()
    def tame(self) -> None:
        """See ``PublishedNetwork.tame``; each of the blocks in a row would nearly double the variance."""
        for block in self.modules():
            if isinstance(block, SpectralBlock):
                for parameter in (*block.main[1].parameters(), *block.main_fft[1].parameters()):
                    parameter.mul_(_RESIDUAL)

    def restore(self, pair: Tensor) -> Tensor:
        """See ``PublishedNetwork.restore``; what it returns is added to the center view."""
        image = center(pair)
        rows, columns = (_Cuts(image.shape[axis], self.window, image.device) for axis in (2, 3))
        spread = image.index_select(2, rows.sources).index_select(3, columns.sources)
        change = self.restore_windows(cut(spread, rows.count, columns.count))
        return join(change, rows.count, columns.count).index_select(2, rows.places).index_select(3, columns.places)

    def restore_windows(self, image: Tensor) -> Tensor:
        """Windows ``(B, 3, N, N)`` to what is added to them."""
        half = image[:, :, ::2, ::2]
        quarter = half[:, :, ::2, ::2]
        res1 = self.Encoder[0](self.feat_extract[0](image))
        res2 = self.Encoder[1](self.FAM2(self.feat_extract[1](res1), self.SCM2(half)))
        x = self.Encoder[2](self.FAM1(self.feat_extract[2](res2), self.SCM1(quarter)))
        joined2 = self.AFFs[1](res1[:, :, ::2, ::2], res2, _repeat(x, 2))
        joined1 = self.AFFs[0](res1, _repeat(res2, 2), _repeat(x, 4))
        x = self.feat_extract[3](self.Decoder[0](x))
        x = self.Decoder[1](self.Convs[0](torch.cat([x, joined2], dim=1)))
        x = self.feat_extract[4](x)
        x = self.Decoder[2](self.Convs[1](torch.cat([x, joined1], dim=1)))
        return self.feat_extract[5](x)

    def published_state(self) -> dict[str, tuple[int, ...]]:
        """See ``PublishedNetwork.published_state``; convolutions are DO-Conv's, but for the transposed ones."""
        state: dict[str, tuple[int, ...]] = {}
        for key, value in self.state_dict().items():
            outputs, inputs, side, _ = shape = tuple(value.shape)
            if side == 4:
                state[key] = shape
                continue
            start, taps = key.removesuffix("weight"), side * side
            state[f"{start}W"] = (outputs, inputs, taps)
            if side > 1:
                state |= {f"{start}{name}": (inputs, taps, taps) for name in ("D", "D_diag")}
        return state

    def load_published_state(self, state: Mapping[str, Tensor]) -> None:
        """See ``PublishedNetwork.load_published_state``; folds DO-Conv's two kernels into one."""
        self.load_state_dict({key: _kernel(state, key, value.shape) for key, value in self.state_dict().items()})


class _Cuts:
    """The windows along one axis: the last one flush with the border, and where the picture takes its pixels from.

    Attributes:
        count: How many.
        sources: For each pixel of the windows one after another, its position in the picture.
        places: For each pixel of the picture, its position in the windows one after another.
    """

    def __init__(self, size: int, window: int, device: torch.device) -> None:
        self.count = (size + window - 1) // window
        starts = (torch.arange(self.count, device=device) * window).clamp(max=size - window).clamp(min=0)
        self.sources = (starts[:, None] + torch.arange(window, device=device)).flatten().clamp(max=size - 1)
        place = torch.arange(size, device=device)
        number = place // window
        self.places = number * window + place - starts[number]


def _repeat(x: Tensor, times: int) -> Tensor:
    return F.interpolate(x, scale_factor=float(times), mode="nearest")


def _kernel(state: Mapping[str, Tensor], key: str, shape: torch.Size) -> Tensor:
    """The plain kernel of a layer; DO-Conv's is ``sum_s (D + D_diag)[i, mn, s] W[o, i, s]``."""
    start = key.removesuffix("weight")
    if f"{start}W" not in state:
        return state[key]
    kernel = state[f"{start}W"]
    if f"{start}D" in state:
        depth = (state[f"{start}D"] + state[f"{start}D_diag"]).double()
        kernel = torch.einsum("ims,ois->oim", depth, kernel.double()).float()
    return kernel.reshape(shape)
