"""Other designs of a network, and their floors."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.bundles import export_folder, exporter_key, keep_deblur_graph
from benchmarks.roofline.chain import Chain, Step, floor
from benchmarks.roofline.flops import graph_cost
from benchmarks.roofline.fusion import fuse
from benchmarks.roofline.hardware import Device
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.stages.geometry import padding_multiple

if TYPE_CHECKING:
    from ldp_export.network import LDPConfig


def design_variants(config: LDPConfig) -> dict[str, LDPConfig]:
    """Other designs of a network by what they change, none of them trained."""
    variants = {
        "channel attention pools the whole map (NAFNet's own SCA; frame and tiles then differ)": replace(
            config, sca_cell=None
        ),
        "no BPA blocks": replace(config, bpa=()),
    }
    if config.encoder[0] > 1:
        variants["one block in place of two at the first scale, each way"] = replace(
            config, encoder=(1, *config.encoder[1:]), decoder=(*config.decoder[:-1], 1)
        )
        variants["the same, the two blocks moved to the deepest level"] = replace(
            config,
            encoder=(1, *config.encoder[1:-1], config.encoder[-1] + 1),
            decoder=(config.decoder[0] + 1, *config.decoder[1:-1], 1),
        )
    if config.stem == 1 and len(config.encoder) > 1:
        variants["pixel-unshuffle stem of 2 in place of the first scale, all other scales as they are"] = replace(
            config, stem=2, width=2 * config.width, encoder=config.encoder[1:], decoder=config.decoder[:-1]
        )
        variants["pixel-unshuffle stem of 2 before all scales, same widths"] = replace(config, stem=2)
    return {
        what: variant
        for what, variant in variants.items()
        if variant.sca_cell is None or variant.sca_cell % variant.stride == 0
    }


def variant_floors(chain: Chain, manifest: Manifest, device: Device) -> list[dict[str, Any]]:
    """The floor of the chain with each of ``design_variants`` in place of the bundle's network.

    Args:
        chain: The bundle's chain, FP16.
        manifest: Its manifest.
        device: The device.

    Returns:
        Rows of ``change``, ``parameters``, ``ms`` of the chain; the unchanged network first.
    """
    from tqdm import tqdm

    from ldp_export.network import LDPConfig

    config = LDPConfig.from_dict(manifest.network)
    rows = [_variant_row("as it is", config, chain.steps, device)]
    h, w = chain.size
    patch = manifest.require_clip().patch
    for what, variant in tqdm(design_variants(config).items(), "variants", disable=None, file=sys.stderr):
        multiple = padding_multiple(variant.multiple, patch)
        H, W = (-(-side // multiple) * multiple for side in (h, w))
        path = export_variant(variant, patch)
        graph = graph_cost(path, {"pair": (1, 6, H, W), "blur_logits": (1, 1, H // patch, W // patch)})
        rows.append(_variant_row(what, variant, chain.with_deblur(graph, fuse(graph)), device))
    return rows


def export_variant(config: LDPConfig, patch: int) -> Path:
    """The deblur graph of a network with random weights, FP16, from the cache or exported into it.

    Args:
        config: The network.
        patch: Side of CLIP's patch in px; the graph's sides are multiples of it.

    Raises:
        BenchmarkError: There is no cache.
    """
    path = _variant_path(config, patch)
    if not path.is_file():
        from ldp_export.network import LDPNet
        from ldp_export.network.randomise import randomise

        keep_deblur_graph(randomise(LDPNet(config)), padding_multiple(config.multiple, patch), path, half=True)
    return path


def variants_are_exported(manifest: Manifest) -> bool:
    """Whether the cache has the graphs of all of ``design_variants`` of a bundle's network."""
    from ldp_export.network import LDPConfig

    variants = design_variants(LDPConfig.from_dict(manifest.network)).values()
    return all(_variant_path(variant, manifest.require_clip().patch).is_file() for variant in variants)


def _variant_path(config: LDPConfig, patch: int) -> Path:
    key = hashlib.sha256(json.dumps([config.to_dict(), patch], sort_keys=True).encode()).hexdigest()[:16]
    return export_folder(exporter_key(), "variants") / f"{key}.onnx"


def _variant_row(what: str, config: LDPConfig, steps: Sequence[Step], device: Device) -> dict[str, Any]:
    import torch

    from ldp_export.network import LDPNet

    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in LDPNet(config).parameters())
    return {"change": what, "parameters": count, "ms": 1e3 * floor(steps, device)}
