"""BAMBNet (Liang et al., "BaMBNet: A Blur-aware Multi-branch Network for Dual-pixel Defocus Deblurring", 2022).

Four branches of eight stages work on the same 64 features, from a 1x1 convolution a stage to groups of three residual
blocks with channel attention. In training each learns from the pixels of one amount of blur; at test their outputs are
added. All but the first go down to 1/16 and up again by max pooling and nearest upsampling, with the features, pooled,
added before each stage.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.network.published.base import PublishedConfig, PublishedNetwork, swap_colors

WIDTH = 64
SQUEEZED = 4
"""Channels between the two convolutions of channel attention."""

STAGES = 8
BRANCHES = (0, 1, 2, 3)
"""Residual blocks of a stage of each branch."""


class AttentionBlock(nn.Module):
    """A residual block of two convolutions whose output channels are weighted by their means over the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
        self.squeeze, self.expand = nn.Conv2d(WIDTH, SQUEEZED, 1), nn.Conv2d(SQUEEZED, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        y = self.second(F.relu(self.first(x)))
        mean = y.float().mean((2, 3), keepdim=True).to(y.dtype)
        return x + y * torch.sigmoid(self.expand(F.relu(self.squeeze(mean))))


class Group(nn.Module):
    """Residual blocks and a convolution, added to their input; without blocks a 1x1 convolution and ReLU."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AttentionBlock() for _ in range(blocks))
        self.last = nn.Conv2d(WIDTH, WIDTH, 3 if blocks else 1, padding=1 if blocks else 0)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        if not self.blocks:
            return F.relu(self.last(x))
        y = x
        for block in self.blocks:
            y = block(y)
        return x + self.last(y)


class BAMBNet(PublishedNetwork):
    """The network; its authors' weights read and write BGR."""

    config = PublishedConfig("bambnet", multiple=16, memory=2600)
    names = (
        (r"^first\.", "head.0."),
        (r"^last\.", "tail_hard.0."),
        (r"^stages\.(\d)\.0\.last\.", r"stages.\1.0.0."),
        (r"^stages\.(\d)\.(\d)\.last\.", r"stages.\1.\2.0.body.\2."),
        (r"^stages\.(\d)\.(\d)\.blocks\.(\d)\.", r"stages.\1.\2.0.body.\3.body."),
        (r"\.first\.", ".0."),
        (r"\.second\.", ".2."),
        (r"\.squeeze\.", ".3.conv_du.0."),
        (r"\.expand\.", ".3.conv_du.2."),
    )

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, WIDTH, 3, padding=1)
        self.stages = nn.ModuleList(nn.ModuleList(map(Group, BRANCHES)) for _ in range(STAGES))
        self.last = nn.Conv2d(WIDTH, 3, 3, padding=1)

    def restore(self, pair: Tensor) -> Tensor:
        """See ``PublishedNetwork.restore``."""
        x = F.relu(self.first(pair))
        pooled = [x]
        for _ in range(STAGES // 2):
            pooled.append(F.avg_pool2d(pooled[-1], 2))
        total = x
        for branch in BRANCHES:
            total = total + self._run_branch(branch, pooled if branch else [x] * len(pooled))
        return torch.sigmoid(self.last(total))

    def _run_branch(self, branch: int, pooled: list[Tensor]) -> Tensor:
        """A branch on the features at each of its scales, finest first: ``(B, C, H, W)`` to the same shape."""
        half = STAGES // 2
        y, skips = pooled[0], list[Tensor]()
        for i, stage in enumerate(self.stages):
            if i:
                y = y + pooled[min(i, STAGES - i)]
            if i > half:
                y = y + skips[STAGES - 1 - i]
            y = stage.get_submodule(str(branch))(y)
            if branch:
                y = F.max_pool2d(y, 2) if i < half else F.interpolate(y, scale_factor=2.0, mode="nearest")
            skips.append(y)
        return y

    def published_name(self, key: str) -> str:
        """See ``PublishedNetwork.published_name``; stages count from one."""
        key = super().published_name(key)
        if key.startswith("stages."):
            number, _, rest = key.removeprefix("stages.").partition(".")
            return f"layer{int(number) + 1}.{rest}"
        return key

    def load_published_state(self, state: Mapping[str, Tensor]) -> None:
        """See ``PublishedNetwork.load_published_state``."""
        turned = {name: state[name].flip(0) for name in ("tail_hard.0.weight", "tail_hard.0.bias")}
        super().load_published_state({**state, **turned, "head.0.weight": swap_colors(state["head.0.weight"])})
