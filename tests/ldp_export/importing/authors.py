"""What the authors' code computes, written out from descriptions of their layers, slow and apart from our networks.

Each function takes the state by the authors' names and a pair ``(1, 6, H, W)`` RGB, left then right, and does all that
the authors do between reading two photos and clipping the result. Names are looked up one by one: one that is not read
is found by ``Reading.unread``.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ldp_export.network.published import PUBLISHED

IMPORTABLE = {name for name, network in PUBLISHED.items() if network.weights is not None}
"""Networks of which the authors publish weights for dual-pixel pairs."""


class Reading(dict[str, Tensor]):
    """A state dict that remembers what was read."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__(state)
        self.unread = set(state)

    def __getitem__(self, name: str) -> Tensor:
        self.unread.discard(name)
        return super().__getitem__(name)

    def conv(self, x: Tensor, name: str, stride: int = 1, groups: int = 1, bias: bool = True) -> Tensor:
        weight = self[f"{name}.weight"]
        return F.conv2d(
            x, weight, self[f"{name}.bias"] if bias else None, stride, padding=weight.shape[2] // 2, groups=groups
        )


def bgr(pair: Tensor) -> Tensor:
    """Each view as OpenCV reads it."""
    return pair[:, [2, 1, 0, 5, 4, 3]]


# --- Restormer


def restormer(s: Reading, pair: Tensor) -> Tensor:
    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = s[f"{name}.body.weight"], s[f"{name}.body.bias"]
        return F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, 1e-5).permute(0, 3, 1, 2)

    def attention(x: Tensor, name: str, heads: int) -> Tensor:
        qkv = s.conv(x, f"{name}.qkv", bias=False)
        qkv = s.conv(qkv, f"{name}.qkv_dwconv", groups=qkv.shape[1], bias=False)
        out = []
        for head in range(heads):
            q, k, v = (part.chunk(heads, 1)[head][0].flatten(1) for part in qkv.chunk(3, 1))
            q, k = (t / t.norm(dim=1, keepdim=True) for t in (q, k))
            out.append(((q @ k.T) * s[f"{name}.temperature"][head]).softmax(1) @ v)
        return s.conv(torch.cat(out).reshape(x.shape), f"{name}.project_out", bias=False)

    def feed_forward(x: Tensor, name: str) -> Tensor:
        x = s.conv(x, f"{name}.project_in", bias=False)
        x = s.conv(x, f"{name}.dwconv", groups=x.shape[1], bias=False)
        a, b = x.chunk(2, 1)
        return s.conv(F.gelu(a) * b, f"{name}.project_out", bias=False)

    def blocks(x: Tensor, name: str, count: int, heads: int) -> Tensor:
        for i in range(count):
            x = x + attention(norm(x, f"{name}.{i}.norm1"), f"{name}.{i}.attn", heads)
            x = x + feed_forward(norm(x, f"{name}.{i}.norm2"), f"{name}.{i}.ffn")
        return x

    first = s.conv(pair, "patch_embed.proj", bias=False)
    one = blocks(first, "encoder_level1", 4, 1)
    two = blocks(F.pixel_unshuffle(s.conv(one, "down1_2.body.0", bias=False), 2), "encoder_level2", 6, 2)
    three = blocks(F.pixel_unshuffle(s.conv(two, "down2_3.body.0", bias=False), 2), "encoder_level3", 6, 4)
    x = blocks(F.pixel_unshuffle(s.conv(three, "down3_4.body.0", bias=False), 2), "latent", 8, 8)
    x = torch.cat([F.pixel_shuffle(s.conv(x, "up4_3.body.0", bias=False), 2), three], 1)
    x = blocks(s.conv(x, "reduce_chan_level3", bias=False), "decoder_level3", 6, 4)
    x = torch.cat([F.pixel_shuffle(s.conv(x, "up3_2.body.0", bias=False), 2), two], 1)
    x = blocks(s.conv(x, "reduce_chan_level2", bias=False), "decoder_level2", 6, 2)
    x = torch.cat([F.pixel_shuffle(s.conv(x, "up2_1.body.0", bias=False), 2), one], 1)
    x = blocks(blocks(x, "decoder_level1", 4, 1), "refinement", 4, 1)
    return s.conv(x + s.conv(first, "skip_conv", bias=False), "output", bias=False)


# --- IFAN


def ifan(s: Reading, pair: Tensor) -> Tensor:
    left, right = pair[:, :3], pair[:, 3:]
    image = (left + right) / 2

    def active(x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.1)

    def encode(x: Tensor, prefix: str) -> list[Tensor]:
        levels = []
        for level in range(1, 5):
            for layer in range(1, 4):
                stride = 2 if level > 1 and layer == 1 else 1
                x = active(s.conv(x, f"{prefix}{level}_{layer}.0", stride))
            levels.append(x)
        return levels

    def residual(x: Tensor, name: str, units: int) -> Tensor:
        y = x
        for unit in range(units):
            inner = active(s.conv(y, f"{name}.stem.{unit}.0"))
            y = active(y + s.conv(inner, f"{name}.stem.{unit}.2"))
        return x + y if units > 1 else y

    def body(x: Tensor, name: str) -> Tensor:
        return residual(residual(active(s.conv(x, f"{name}.0.0")), f"{name}.1", 2), f"{name}.2", 2)

    one, two, three, x = encode(image, "conv")
    encoded = encode(torch.cat([right, left], 1), "kconv")[3]
    disparity = active(s.conv(s.conv(body(encoded, "DME"), "DME.3"), "conv_DME.0"))
    joined = active(s.conv(body(torch.cat([encoded, disparity], 1), "conv4_4"), "conv4_4.3.0"))
    filters = s.conv(body(joined, "F"), "F.3")[0]
    c, (h, w) = x.shape[1], x.shape[2:]
    taps = filters[: 17 * 2 * c * 3].reshape(17, 2, c, 3, h, w)
    biases = filters[17 * 2 * c * 3 :].reshape(17, c, h, w)
    for step in range(17):
        vertical = taps[step, 0]  # taps[step, 1] is never read: the bug that the authors confirm
        padded = F.pad(x, (0, 0, 1, 1), mode="replicate")[0]
        y = sum(vertical[:, t] * padded[:, t : t + h] for t in range(3))
        padded = F.pad(y[None], (1, 1, 0, 0), mode="replicate")[0]
        y = sum(vertical[:, t] * padded[:, :, t : t + w] for t in range(3))
        x = active(y + biases[step])[None]
    x = active(s.conv(residual(active(s.conv(x, "conv_res.0.0")), "conv_res.1", 3), "conv_res.2.0"))
    for n, skip in ((3, three), (2, two), (1, one)):
        up = F.conv_transpose2d(x, s[f"upconv{n}_u.0.weight"], s[f"upconv{n}_u.0.bias"], 2, 1)
        x = residual(residual(active(up) + skip, f"upconv{n}_1", 1), f"upconv{n}_2", 1)
    return active(s.conv(x, "out_res.0")) + image


# --- networks of Keras


def keras_conv(s: Reading, x: Tensor, layer: int) -> Tensor:
    """``same`` padding, more on the right and at the bottom for an even kernel; the kernel's axes are HWIO."""
    kernel = s[f"{layer}.kernel"].permute(3, 2, 0, 1)
    before, after = (kernel.shape[2] - 1) // 2, kernel.shape[2] // 2
    return F.conv2d(F.pad(x, (before, after, before, after)), kernel, s[f"{layer}.bias"])


def keras_decoder(s: Reading, x: Tensor, skips: list[Tensor], first: int) -> Tensor:
    """Four levels of (up, conv, conv), a 3x3 convolution and a 1x1 convolution that nothing follows."""
    layer = first
    for skip in reversed(skips):
        up = F.relu(keras_conv(s, x.repeat_interleave(2, 2).repeat_interleave(2, 3), layer))
        x = F.relu(keras_conv(s, torch.cat([skip, up], 1), layer + 1))
        x = F.relu(keras_conv(s, x, layer + 2))
        layer += 3
    return keras_conv(s, F.relu(keras_conv(s, x, layer)), layer + 1)


def keras_encoder(s: Reading, x: Tensor, levels: int) -> tuple[Tensor, list[Tensor]]:
    """Levels of two convolutions; what the next level reads, and the skips."""
    skips = []
    for level in range(levels):
        x = F.relu(keras_conv(s, F.relu(keras_conv(s, x, 2 * level)), 2 * level + 1))
        skips.append(x)
        x = F.max_pool2d(x, 2)
    return x, skips


def dpdnet(s: Reading, pair: Tensor) -> Tensor:
    x, skips = keras_encoder(s, bgr(pair), 4)
    x = F.relu(keras_conv(s, F.relu(keras_conv(s, x, 8)), 9))
    return torch.sigmoid(keras_decoder(s, x, skips, 10)).flip(1)


def rdpd(s: Reading, pair: Tensor) -> Tensor:
    h, w = pair.shape[2:]
    x = bgr(pair)
    if s["0.kernel"].shape[2] == 7:
        far = ((h - 1) ** 2 + (w - 1) ** 2) ** 0.5 / 2
        mask = [[((y - (h - 1) / 2) ** 2 + (x - (w - 1) / 2) ** 2) ** 0.5 / far for x in range(w)] for y in range(h)]
        x = torch.cat([x, torch.tensor(mask, dtype=x.dtype)[None, None]], 1)
    x, skips = keras_encoder(s, x, 4)
    x = F.relu(keras_conv(s, x, 8))
    kernel = s["9.recurrent_kernel"].permute(3, 2, 0, 1)
    state = cell = torch.zeros(1, kernel.shape[1], h // 16, w // 16, dtype=x.dtype)  # one frame: both are zero
    recurrent = F.conv2d(state, kernel, padding=1)
    i, f, c, o = (keras_conv(s, x, 9) + recurrent).chunk(4, 1)
    i, f, o = ((0.2 * gate + 0.5).clip(0, 1) for gate in (i, f, o))
    cell = f * cell + i * torch.tanh(c)
    return keras_decoder(s, o * torch.tanh(cell), skips, 10).flip(1)


# --- BAMBNet


def bambnet(s: Reading, pair: Tensor) -> Tensor:
    def block(x: Tensor, name: str) -> Tensor:
        y = s.conv(F.relu(s.conv(x, f"{name}.body.0")), f"{name}.body.2")
        mean = y.mean((2, 3), keepdim=True)
        weights = s.conv(F.relu(s.conv(mean, f"{name}.body.3.conv_du.0")), f"{name}.body.3.conv_du.2")
        return x + y * torch.sigmoid(weights)

    def stage(x: Tensor, number: int, branch: int) -> Tensor:
        name = f"layer{number}.{branch}.0"
        if branch == 0:
            return F.relu(s.conv(x, name))
        y = x
        for i in range(branch):
            y = block(y, f"{name}.body.{i}")
        y = x + s.conv(y, f"{name}.body.{branch}")
        return F.max_pool2d(y, 2) if number <= 4 else y.repeat_interleave(2, 2).repeat_interleave(2, 3)

    x = F.relu(s.conv(bgr(pair), "head.0"))
    total = x
    for branch in range(4):
        out = {1: stage(x, 1, branch)}
        for number in range(2, 9):
            given = out[number - 1]
            given = given + F.adaptive_avg_pool2d(x, given.shape[2:])
            if number > 5:
                given = given + out[9 - number]
            out[number] = stage(given, number, branch)
        total = total + out[8]
    return torch.sigmoid(s.conv(total, "tail_hard.0")).flip(1)


AUTHORS: dict[str, Callable[[Reading, Tensor], Tensor]] = {
    "restormer": restormer,
    "ifan": ifan,
    "dpdnet": dpdnet,
    "rdpd": rdpd,
    "bambnet": bambnet,
}
"""Name of a network -> what its authors' code computes."""
