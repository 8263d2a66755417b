"""A CLIP and a deblurring network small enough for a test."""

import torch
from torch import Tensor, nn

from ldp_export.network import LDPConfig, LDPNet
from ldp_export.network.bpa import BPABlock
from ldp_export.network.layers import NAFBlock
from ldp_export.network.randomise import randomise, randomise_network
from ldp_export.network.released import ReleasedConfig, ReleasedNet

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TINY_CONFIG = LDPConfig(
    "tiny",
    width=8,
    stem=8,
    encoder=(1,),
    middle=1,
    decoder=(0,),
    bpa=("middle",),
    head_dim=4,
    kernel=3,
    window=4,
    sca_cell=16,
)

RESIDUAL = 200.0
"""|x| of the residual stream of ``tiny_network``, beyond what a trained NAFNet reaches."""


def tiny_network(seed: int = 4) -> LDPNet:
    """The tiny network with random weights whose residual stream is large, which is hard for FP16."""
    network = randomise_network(LDPNet(TINY_CONFIG), seed)
    generator = torch.Generator().manual_seed(0)
    pair, logits = torch.rand(1, 6, 32, 48, generator=generator), 4 * torch.randn(1, 1, 2, 3, generator=generator)
    convolutions = [network.intro, *network.downs, *(next(up.children()) for up in network.ups)]
    blocks = [module for module in network.modules() if isinstance(module, (NAFBlock, BPABlock))]
    with torch.no_grad():
        hooks = [conv.register_forward_hook(enlarge) for conv in convolutions]
        hooks += [block.register_forward_hook(enlarge_residual) for block in blocks]
        network(pair, logits)
        for hook in hooks:
            hook.remove()
        network.ending.weight /= RESIDUAL
    return network


def enlarge(conv: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A hook that scales a convolution so that its output reaches ``RESIDUAL``."""
    factor = RESIDUAL / float(output.abs().max())
    for parameter in conv.parameters():
        parameter.mul_(factor)
    return output * factor


def enlarge_residual(block: NAFBlock | BPABlock, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A hook that scales what a block adds, so that it matters beside the stream."""
    assert block.beta is not None
    assert block.gamma is not None
    factor = RESIDUAL / float((output - inputs[0]).abs().max())
    block.beta.mul_(factor)
    block.gamma.mul_(factor)
    return block.forward(*inputs)


TINY_RELEASED = ReleasedConfig("tiny", width=8, encoder=(1,), middle=1, decoder=(1,))


def tiny_released(seed: int = 1) -> ReleasedNet:
    """A narrow released network with random weights whose output has about the contrast of an image."""
    network = randomise(ReleasedNet(TINY_RELEASED), seed).eval()
    torch.nn.init.constant_(network.ca.temperature, 3.0)
    with torch.no_grad():
        pair = torch.rand(1, 6, 32, 32, generator=torch.Generator().manual_seed(seed))
        network.output.weight.mul_(0.2 / network(pair, torch.rand(1, 1, 32, 32)).std())
    return network
