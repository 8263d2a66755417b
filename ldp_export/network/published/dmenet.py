"""DMENet's map network (Lee et al., "Deep Defocus Map Estimation Using Domain Adaptation", CVPR 2019).

VGG-19's convolutions and a decoder, from **one image** to a **map of its defocus, not a restored image**: the image
comes from a deconvolution by that map, which has the data's own sizes and is no graph. Here the image is the center
view; how the LDP paper gave it pairs is not stated.

Normalisation is folded into the convolutions, and so are the scale, the order and the means of the colours that VGG
expects. All convolutions are padded with the map's own border, which the authors' symmetric padding by 1 px is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldp_export.network.published.base import PublishedConfig, PublishedNetwork
from ldp_export.network.published.layers import center

SLOPE = 0.2
ENCODER = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""Channels and convolutions of each scale."""
REFINING = 7
"""Residual blocks at full size."""
MEANS_BGR = (103.939, 116.779, 123.68)
"""What VGG expects to be subtracted from colours in [0, 255]."""
MOST_LEVELS = 15.0
_EPS = 1e-5


def blur_sigma(defocus: Tensor) -> Tensor:
    """Standard deviation in px of the Gaussian blur that a map in [0, 1] stands for, of any shape."""
    return ((MOST_LEVELS * defocus - 1) / 2).clamp(min=0)


def replicated(inputs: int, outputs: int, side: int = 3) -> nn.Conv2d:
    """A convolution that keeps the size, padded with the border."""
    return nn.Conv2d(inputs, outputs, side, padding=side // 2, padding_mode="replicate")


class DMENet(PublishedNetwork):
    """The network. Names of layers are the authors', with ``_`` for ``/``.

    The authors' file holds, besides, heads that only training reads.
    """

    config = PublishedConfig("dmenet", multiple=16, memory=2500)
    ignored = tuple(f"decoder/u{level}_aux/" for level in range(5))

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict()
        inputs = 3
        for level, (width, count) in enumerate(ENCODER, 1):
            for i in range(1, count + 1):
                self.encoder[f"conv{level}_{i}"] = replicated(inputs, width)
                inputs = width
        layers: dict[str, nn.Module] = {}
        for level in (3, 2, 1):
            width = ENCODER[level - 1][0]
            layers[f"u{level}_c1"] = replicated(inputs + ENCODER[level][0], width)
            layers |= {f"u{level}_c{i}": replicated(width, width) for i in (2, 3)}
            inputs = width
        width = ENCODER[0][0]
        layers["u0_c_init"] = replicated(inputs + width, width)
        for i in range(REFINING):
            layers |= {f"u0_c{i}_{j}": replicated(width, width) for j in (1, 2)}
            layers[f"u0_c_res{i}"] = replicated(width, width, 1)
        layers |= {"uf_c1": replicated(width, width), "uf_c2": replicated(width, width // 2)}
        layers["uf_c3"] = replicated(width // 2, 1)
        self.decoder = nn.ModuleDict(layers)

    def restore(self, pair: Tensor) -> Tensor:
        """Pair ``(B, 6, H, W)`` to the map of its center view's defocus as a grey image ``(B, 3, H, W)``."""
        return self.defocus(center(pair)).expand(-1, 3, -1, -1)

    def defocus(self, image: Tensor) -> Tensor:
        """RGB ``(B, 3, H, W)`` in [0, 1] to the map of its defocus ``(B, 1, H, W)`` in [0, 1]."""
        x, skips = image, []
        for level, (_, count) in enumerate(ENCODER, 1):
            x = F.max_pool2d(x, 2) if level > 1 else x
            for i in range(1, count + 1):
                x = F.relu(self.encoder[f"conv{level}_{i}"](x))
            skips.append(x)
        skips.pop()
        for level in (3, 2, 1):
            x = torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], dim=1)
            for i in (1, 2, 3):
                x = self._decode(f"u{level}_c{i}", x)
        x = torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], dim=1)
        x = self._decode("u0_c_init", x)
        for i in range(REFINING):
            x = self._decode(f"u0_c{i}_2", self._decode(f"u0_c{i}_1", x)) + self._decode(f"u0_c_res{i}", x)
        x = self._decode("uf_c2", self._decode("uf_c1", x))
        return torch.sigmoid(self.decoder["uf_c3"](x))

    def _decode(self, name: str, x: Tensor) -> Tensor:
        return F.leaky_relu(self.decoder[name](x), SLOPE)

    def published_state(self) -> dict[str, tuple[int, ...]]:
        """See ``PublishedNetwork.published_state``; names are TensorLayer's after ``main_net/defocus_net/``."""
        state: dict[str, tuple[int, ...]] = {}
        for name, layer in self._layers():
            outputs, inputs, side, _ = layer.weight.shape
            state |= {f"{name}/kernel:0": (side, side, inputs, outputs), f"{name}/bias:0": (outputs,)}
            if norm := _norm(name):
                state |= {f"{norm}/{part}:0": (outputs,) for part in ("beta", "moving_mean", "moving_variance")}
        return state

    def load_published_state(self, state: Mapping[str, Tensor]) -> None:
        """See ``PublishedNetwork.load_published_state``; folds normalisation, which has no scale of its own."""
        for name, layer in self._layers():
            kernel = state[f"{name}/kernel:0"].double().permute(3, 2, 0, 1)  # from (side, side, inputs, outputs)
            bias = state[f"{name}/bias:0"].double()
            if norm := _norm(name):
                beta, mean, variance = (
                    state[f"{norm}/{part}:0"].double() for part in ("beta", "moving_mean", "moving_variance")
                )
                scale = torch.rsqrt(variance + _EPS)
                kernel, bias = kernel * scale[:, None, None, None], (bias - mean) * scale + beta
            if kernel.shape[1] == 3:
                means = torch.tensor(MEANS_BGR, dtype=torch.float64)
                bias = bias - (kernel.sum((2, 3)) * means).sum(1)
                kernel = 255 * kernel.flip(1)  # it reads BGR
            layer.load_state_dict({"weight": kernel, "bias": bias})

    def _layers(self) -> list[tuple[str, nn.Conv2d]]:
        """Each convolution by its name in the authors' file."""
        layers = [(f"encoder/{name}", layer) for name, layer in self.encoder.items()]
        layers += [(f"decoder/{name.replace('_', '/', 1)}", layer) for name, layer in self.decoder.items()]
        return [(name, layer) for name, layer in layers if isinstance(layer, nn.Conv2d)]


def _norm(name: str) -> str | None:
    """The name of the normalisation after a convolution; the encoder and the last convolution have none."""
    place, _, last = name.rpartition("/")
    return None if place == "encoder" or name.endswith("uf/c3") else f"{place}/b{last.removeprefix('c')}"
