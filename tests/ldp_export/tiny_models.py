"""A CLIP and a deblurring network small enough for a test."""

from __future__ import annotations

from ldp_export.network import LDPConfig

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TINY_CONFIG = LDPConfig(
    "tiny",
    width=8,
    stem=8,
    encoder=(1,),
    middle=1,
    decoder=(1,),
    bpa=("middle",),
    head_dim=4,
    kernel=3,
    window=4,
    sca_cell=16,
)
