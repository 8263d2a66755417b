"""The LDP deblurring network: a NAFNet-like encoder and decoder with BPA blocks (paper, Section 3.2 and Fig. 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.network.bpa import BPABlock
from ldp_export.network.config import LDPConfig
from ldp_export.network.layers import Enlarge, NAFBlock


class LDPNet(nn.Module):
    """Restores an all-in-focus image from a DP pair and its blur logits.

    ``restored = (L + R) / 2 + network(L, R, blur logits)``: the sum is FP32 whatever type the network computes in.
    """

    def __init__(self, config: LDPConfig) -> None:
        super().__init__()
        self.config = config
        width, stem = config.width, config.stem
        self.intro = nn.Conv2d((6 + config.concatenates) * stem * stem, width, 3, padding=1)
        self.ending = nn.Conv2d(width, 3 * stem * stem, 3, padding=1)
        nn.init.zeros_(self.ending.weight)  # a new network restores nothing yet: it gives the center view
        if self.ending.bias is not None:
            nn.init.zeros_(self.ending.bias)
        self.encoders, self.downs, self.ups, self.decoders = (nn.ModuleList() for _ in range(4))
        stride = stem
        for blocks in config.encoder:
            self.encoders.append(self._blocks(blocks, width, stride))
            self.downs.append(nn.Conv2d(width, 2 * width, 2, stride=2))
            width, stride = 2 * width, 2 * stride
        self.middle = self._blocks(config.middle, width, stride)
        self.bpa = nn.ModuleDict()
        hidden = config.kernel_hidden if config.prior == "bpa" else None
        for place in config.attention:
            channels = width if place == "middle" else width // 2
            self.bpa[place] = BPABlock(channels, min(config.head_dim, channels), config.kernel, hidden, config.window)
        for blocks in config.decoder:
            self.ups.append(Enlarge(width))
            width, stride = width // 2, stride // 2
            self.decoders.append(self._blocks(blocks, width, stride))

    def _blocks(self, count: int, width: int, stride: int) -> nn.Sequential:
        cell = self.config.sca_cell
        return nn.Sequential(*(NAFBlock(width, cell and cell // stride) for _ in range(count)))

    def forward(self, pair: Tensor, blur_logits: Tensor | None = None) -> Tensor:
        """Restores one batch.

        Args:
            pair: ``(B, 6, H, W)`` float32 in [0, 1]: left RGB, right RGB; H and W multiples of ``config.multiple``.
            blur_logits: ``(B, 1, any, any)`` float32: the unnormalised blur map, over the same field of view. A network
                that reads no blur map needs none.

        Returns:
            Restored image ``(B, 3, H, W)`` float32, not clamped.

        Raises:
            ValueError: The network reads a blur map, and there is none.
        """
        if blur_logits is None:
            if self.config.reads_blur_map:
                raise ValueError(f"expected blur logits with the prior {self.config.prior}, got none")
            blur_logits = pair.new_zeros(1, 1, 1, 1)  # nothing reads it
        dtype = self.intro.weight.dtype
        x = pair.to(dtype)
        if self.config.concatenates:
            blur_map = torch.sigmoid(blur_logits.float())
            size = (pair.shape[2], pair.shape[3])
            blur_map = F.interpolate(blur_map, size=size, mode="bilinear", align_corners=False)
            x = torch.cat([x, blur_map.to(dtype)], dim=1)
        x = self.intro(F.pixel_unshuffle(x, self.config.stem) if self.config.stem > 1 else x)
        skips: list[Tensor] = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            if len(skips) == len(self.encoders) - 1:
                x = self._attend("encoder", x, blur_logits)
            skips.append(x)
            x = down(x)
        x = self.middle(self._attend("middle", x, blur_logits))
        for i, (up, decoder) in enumerate(zip(self.ups, self.decoders, strict=True)):
            x = up(x) + skips.pop()
            if i == 0:
                x = self._attend("decoder", x, blur_logits)
            x = decoder(x)
        x = self.ending(x)
        if self.config.stem > 1:
            x = F.pixel_shuffle(x, self.config.stem)
        return x.float() + (pair[:, :3].float() + pair[:, 3:].float()) * 0.5

    def _attend(self, place: str, x: Tensor, blur_logits: Tensor) -> Tensor:
        return self.bpa[place](x, blur_logits) if place in self.bpa else x
