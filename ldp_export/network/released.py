"""The network that the paper's authors released, which is not the paper's: channel attention that adds the blur map.

``LDPNet`` is the paper's network. This one is here so that the released checkpoint runs; it is never trained here. The
names of its parameters are the checkpoint's, but for ``sca.1``, which is ``sca.conv`` here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.network.config import ConfigError
from ldp_export.network.layers import Enlarge, NAFBlock

CHANNEL = "channel"

_EPS = 1e-12


@dataclass(frozen=True)
class ReleasedConfig:
    """What defines a released network; the bundle's manifest stores it. The defaults are what was released, 7.62 M.

    Attributes:
        name: Name of the configuration.
        width: Channels of the attention and of the first scale; each scale below has twice as many.
        encoder: NAFBlocks of each encoder level, first to last.
        middle: NAFBlocks at the deepest scale.
        decoder: NAFBlocks of each decoder level, deepest to first; as many levels as the encoder.
        ensemble: What its blur logits come from where CLIP's dense features give them, as of ``LDPConfig``.
        attention: "channel"; distinguishes this configuration from that of ``LDPNet``.
    """

    name: str = "released"
    width: int = 32
    encoder: tuple[int, ...] = (2, 2, 2, 2)
    middle: int = 2
    decoder: tuple[int, ...] = (2, 2, 2, 2)
    ensemble: str | int = "ens2"
    attention: str = CHANNEL

    def __post_init__(self) -> None:
        if not self.encoder or len(self.encoder) != len(self.decoder):
            raise ConfigError(f"encoder {self.encoder} and decoder {self.decoder} must have as many levels, at least 1")
        if self.attention != CHANNEL:
            raise ConfigError(f"attention must be {CHANNEL}, not {self.attention!r}")

    @property
    def reads_blur_map(self) -> bool:
        """Always: channel attention adds it."""
        return True

    @property
    def multiple(self) -> int:
        """Height and width of the body's input are padded to multiples of this many pixels."""
        return 1 << len(self.encoder)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def pool_matrix(size: int, bins: int) -> Tensor:
    """Adaptive average pooling of one axis as a matrix.

    Bin i is the mean from ``floor(i * size / bins)`` to ``ceil((i + 1) * size / bins)``, as in
    ``torch.nn.functional.adaptive_avg_pool2d``. As a matrix it exports with a free size.

    Args:
        size: Length of the axis.
        bins: Length after pooling.

    Returns:
        ``(bins, size)`` float32; each row sums to one.
    """
    bin_ = torch.arange(bins)
    start = bin_ * size // bins
    stop = ((bin_ + 1) * size + bins - 1) // bins
    place = torch.arange(size)
    inside = (place >= start[:, None]) & (place < stop[:, None])
    return inside.float() / (stop - start).float()[:, None]


class ChannelAttention(nn.Module):
    """Attention between channels, to whose logits the blur map is added, pooled to channels x channels.

    ``softmax(q k^T * temperature + adaptive_avg_pool(blur map)) v`` with one head, q and k of unit length along space.
    Products and norms are FP32 whatever the type: they sum over all pixels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor, blur_map: Tensor) -> Tensor:
        """Features ``(B, C, H, W)`` and the blur map ``(B, 1, H, W)`` float32 in [0, 1] to ``(B, C, H, W)``."""
        channels, height, width = x.shape[1:]
        query, key, value = self.qkv(x).flatten(2).chunk(3, dim=1)  # (B, C, H * W) each
        query, key = query.float(), key.float()
        lengths = [t.square().sum(2).sqrt().clamp_min(_EPS) for t in (query, key)]  # (B, C)
        cosine = query @ key.transpose(1, 2) / (lengths[0][:, :, None] * lengths[1][:, None])
        rows, columns = (pool_matrix(size, channels).to(x.device) for size in (height, width))
        pooled = rows @ blur_map[:, 0].float() @ columns.T  # (B, C, C)
        attention = torch.softmax(cosine * self.temperature.float() + pooled, dim=2).to(value.dtype)
        return self.project_out((attention @ value).unflatten(2, (height, width)))


class ReleasedBody(nn.Module):
    """The NAFNet between the two ends: no global skip; pads with zeros to the network's multiple and crops again."""

    def __init__(self, config: ReleasedConfig) -> None:
        super().__init__()
        width = config.width
        self.multiple = config.multiple
        self.intro = nn.Conv2d(width, width, 3, padding=1)
        self.ending = nn.Conv2d(width, width, 3, padding=1)
        self.encoders, self.downs, self.ups, self.decoders = (nn.ModuleList() for _ in range(4))
        for blocks in config.encoder:
            self.encoders.append(_blocks(blocks, width))
            self.downs.append(nn.Conv2d(width, 2 * width, 2, stride=2))
            width *= 2
        self.middle_blks = _blocks(config.middle, width)
        for blocks in config.decoder:
            self.ups.append(Enlarge(width))
            width //= 2
            self.decoders.append(_blocks(blocks, width))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        height, width = x.shape[2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        x = self.intro(x)
        skips: list[Tensor] = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            skips.append(encoder(x))
            x = down(skips[-1])
        x = self.middle_blks(x)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(up(x) + skips.pop())
        return self.ending(x)[:, :, :height, :width]


class ReleasedNet(nn.Module):
    """Restores an all-in-focus image from a DP pair and its blur map in [0, 1], as the released code does it.

    The output is the image itself, not added to the center view. Attention and the channel attention of the NAFBlocks
    pool over the whole image, so that a tile differs from the same place of the full frame.
    """

    def __init__(self, config: ReleasedConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(6, width, 3, padding=1, bias=False)))
        self.ca = ChannelAttention(width)
        self.naf = ReleasedBody(config)
        self.skip_conv = nn.Conv2d(width, width, 1, bias=False)
        self.output = nn.Conv2d(width, 3, 3, padding=1, bias=False)

    def forward(self, pair: Tensor, blur_map: Tensor) -> Tensor:
        """Restores one batch.

        Args:
            pair: ``(B, 6, H, W)`` float32 in [0, 1]: left RGB, right RGB; any size.
            blur_map: ``(B, 1, H, W)`` float32 in [0, 1], larger where it is more blurred.

        Returns:
            Restored image ``(B, 3, H, W)`` float32, not clamped.
        """
        features = self.patch_embed(pair.to(self.output.weight.dtype))
        features = self.ca(features, blur_map)
        return self.output(self.naf(features) + self.skip_conv(features)).float()


def released_state(network: ReleasedNet) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released checkpoint of such a network.

    Besides the network's own parameters it has those of ``ca.qkv_dwconv``, a depthwise 3x3 that is never run.
    """
    shapes = {_released_name(key): tuple(value.shape) for key, value in network.state_dict().items()}
    channels = 3 * network.config.width
    return shapes | {"ca.qkv_dwconv.weight": (channels, 1, 3, 3)}


def load_released_state(network: ReleasedNet, state: Mapping[str, Tensor]) -> None:
    """Loads a state dict of which ``released_state`` says the names and shapes."""
    own = network.state_dict()
    network.load_state_dict({key: state[_released_name(key)] for key in own})


def _released_name(key: str) -> str:
    return key.replace(".sca.conv.", ".sca.1.")


def _blocks(count: int, width: int) -> nn.Sequential:
    return nn.Sequential(*(NAFBlock(width, None) for _ in range(count)))
