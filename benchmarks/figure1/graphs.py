"""Published networks with random weights as ONNX graphs."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.harness.bundles import export_folder, exporter_key, keep_deblur_graph
from ldp_export.network.published import Published
from ldp_runtime.stages.geometry import padding_multiple


def export_network(network: Published, *, half: bool) -> Path:
    """The ONNX graph of a network with random weights, from the cache or exported into it.

    Args:
        network: The network.
        half: FP16 inside; else FP32.

    Raises:
        BenchmarkError: There is no cache.
    """
    path = export_folder(exporter_key(), "published") / f"{network.name}{'.fp16' if half else ''}.onnx"
    if not path.is_file():
        print(f"export: {network.title}, {'fp16' if half else 'fp32'}", file=sys.stderr)
        keep_deblur_graph(network.random(), padding_multiple(network.multiple), path, half=half, blur_map=False)
    return path
