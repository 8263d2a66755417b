"""Random tensors under the names of authors' files, and graphs of networks checked against torch."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import openvino
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldp_export.bundling.onnx_graphs import deblur_graph, save_graph
from ldp_export.network.published.base import PublishedNetwork
from ldp_runtime.registry import BACKENDS

State = dict[str, Tensor]


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> State:
    """A tensor for each name: kernels that keep the size of activations, plausible statistics of normalisation."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            values = torch.tensor(7)
        elif name.endswith(("running_var", "moving_variance:0")):
            values = 0.5 + torch.rand(shape, generator=generator)
        elif name.endswith("kernel"):  # of Keras
            values = values / math.sqrt(math.prod(shape[:3]))
        elif len(shape) > 1:
            values = values / math.sqrt(math.prod(shape[1:]))
        elif name.endswith("weight"):
            values = 1 + 0.2 * values
        else:
            values = 0.1 * values
        state[name] = values
    return state


def random_pair(height: int, width: int) -> Tensor:
    """``(1, 6, height, width)`` in [0, 1]."""
    return torch.rand(1, 6, height, width, generator=torch.Generator().manual_seed(3))


def say(got: Tensor, expected: Tensor) -> str:
    """Mean and maximum of a difference, and where."""
    error = (got - expected).abs()
    where = [int(i) for i in np.unravel_index(int(error.argmax()), error.shape)]
    return f"mean {float(error.mean()):.3g}, max {float(error.max()):.3g} at {where}"


def relative_error(got: Tensor, expected: Tensor) -> float:
    """The largest difference in units of the largest expected value."""
    return float((got - expected).abs().max() / expected.abs().max())


def check_graphs(
    network: PublishedNetwork, folder: Path, sizes: list[tuple[int, int]], most: Mapping[str, float]
) -> dict[str, Counter[str]]:
    """Exports FP32 and FP16 graphs and compares ONNX Runtime and OpenVINO with torch at sizes unlike the traced one.

    Args:
        network: The network.
        folder: Where graphs are written.
        sizes: ``(H, W)`` to run.
        most: Largest relative error by precision.

    Returns:
        The kinds of nodes by precision.
    """
    kinds = {}
    for precision, limit in most.items():
        path = folder / f"{precision}.onnx"
        graph = deblur_graph(network, network.config.multiple, half=precision == "fp16", blur_map=False)
        save_graph(graph, path)
        kinds[precision] = Counter(node.op_type for node in onnx.load(path).graph.node)
        session = BACKENDS["onnxruntime"].open(path, precision, 1)
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for size in sizes:
            pair = random_pair(*size)
            with torch.inference_mode():
                expected = network(pair)
            found: dict[str, NDArray[np.float32]] = {
                "onnxruntime": session.run({"pair": pair.numpy()})["restored"],
                "openvino": compiled({"pair": pair.numpy()})[0],
            }
            for backend, array in found.items():
                got = torch.from_numpy(array.copy())
                assert got.shape == expected.shape
                assert relative_error(got, expected) < limit, f"{backend} {precision} {size}: {say(got, expected)}"
    return kinds
