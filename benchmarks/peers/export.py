"""Peers with random weights as ONNX graphs."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.harness.bundles import export_folder, exporter_key, keep_deblur_graph
from ldp_export.network.published import Published
from ldp_runtime.stages.geometry import padding_multiple


def export_peer(peer: Published, *, half: bool) -> Path:
    """The ONNX graph of a peer with random weights, from the cache or exported into it.

    Args:
        peer: The peer.
        half: FP16 inside; else FP32.

    Raises:
        BenchmarkError: There is no cache.
    """
    path = export_folder(exporter_key(), "peers") / f"{peer.name}{'.fp16' if half else ''}.onnx"
    if not path.is_file():
        print(f"export: {peer.title}, {'fp16' if half else 'fp32'}", file=sys.stderr)
        keep_deblur_graph(peer.random(), padding_multiple(peer.multiple), path, half=half, blur_map=False)
    return path
