"""Quantised graphs: explicit Q/DQ nodes around layers."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ldp_export.bundling.onnx_graphs import EXTERNAL_ABOVE
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.errors import LDPError
from ldp_runtime.registry import SESSION_BACKENDS

_OPS = ("Conv", "MatMul")  # of the nodes that are quantised

_SECOND_HALF = ".second.weight"  # of a convolution that `ldp_export.network.layers.Halves` made two of

_AVERAGING = ".averaging"  # weights of the means of layer normalisation, which is no layer to quantise

_ENCODER = "encoder.visual."

_BACKEND = "onnxruntime"

Floats = NDArray[np.float32]

Feeds = Mapping[str, Floats]


class QuantizeError(LDPError):
    """A bundle cannot be quantised as asked."""


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product with weights.

    Attributes:
        name: Its name in the graph.
        group: The group that it is kept or left out with.
        macs: Multiply-accumulates of it on the first pair.
    """

    name: str
    group: str
    macs: int


class _Graph:
    """A graph of a bundle in FP32.

    A layer is one node, or two: the halves of a convolution before a gate.
    """

    def __init__(self, bundle: Bundle, kind: str, scratch: Path) -> None:
        self._kind, self._model = kind, onnx.load(bundle.graph(kind))
        self._path = scratch / f"{kind}.float.onnx"
        self.layers: tuple[Layer, ...] = ()
        self._ranges: dict[str, tuple[float, float]] = {}  # of the tensors that layers take
        layers = _layer_nodes(self._model.graph)
        if not layers:
            raise QuantizeError(
                f"expected {' or '.join(_OPS)} with weights in the {kind} graph of {bundle.manifest.name!r}, "
                "which is what is quantised, got none; run it in fp32 or fp16"
            )
        for number, nodes in enumerate(layers):
            for part, node in enumerate(nodes):
                node.name = f"layer_{number}.{part}"

    def calibrate(self, feeds: Sequence[Feeds]) -> None:
        """Finds the range of what each layer takes, and its multiply-accumulates."""
        from onnxruntime.quantization import CalibrationMethod
        from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self._feeds = iter(feeds)

            def get_next(self) -> Any:
                return next(self._feeds, None)

        _save(self._model, self._path)
        calibrator = create_calibrator(
            self._path,
            list(_OPS),
            augmented_model_path=str(self._path.with_suffix(".ranges.onnx")),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(Reader())
        ranges = calibrator.compute_data().data
        for name in {node.input[0] for node in _weighted(self._model.graph)}:
            low, high = (float(np.asarray(value).item()) for value in ranges[name].range_value)
            self._ranges[name] = low, high
        self.layers = tuple(_layers(self._model.graph, self._kind, self._output_sizes(feeds[0])))

    def _output_sizes(self, feeds: Feeds) -> dict[str, int]:
        """How many numbers each layer puts out."""
        model = copy.deepcopy(self._model)
        nodes = _weighted(model.graph)
        for node in nodes:
            model.graph.output.append(
                onnx.helper.make_tensor_value_info(f"{node.name}_shape", onnx.TensorProto.INT64, None)
            )
            model.graph.node.append(onnx.helper.make_node("Shape", [node.output[0]], [f"{node.name}_shape"]))
        path = self._path.with_suffix(".shapes.onnx")
        _save(model, path)
        shapes = SESSION_BACKENDS[_BACKEND].open(path, "fp32").run(feeds)
        return {node.name: math.prod(shapes[f"{node.name}_shape"].tolist()) for node in nodes}

    def quantized(self, kept: set[str], path: Path) -> Path:
        """Writes the graph with these layers quantised.

        Args:
            kept: Names of layers.
            path: Where to write it.
        """
        model = copy.deepcopy(self._model)
        if kept:
            nodes = [node for node in _weighted(model.graph) if _layer_of(node) in kept]
            model = _quantize(model, nodes, self._ranges)
        _save(model, path)
        return path


def _quantize(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], ranges: Mapping[str, tuple[float, float]]
) -> onnx.ModelProto:
    """Quantises some nodes of a graph, which it uses up.

    Args:
        model: The graph.
        nodes: Convolutions and matrix products with weights.
        ranges: The range of what each takes.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    tensors = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()
    }
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, tensors),
        nodes_to_quantize=[node.name for node in nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=list(_OPS),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(_OPS),
        },
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


def _weighted(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes of these operators whose second factor is a weight, in the order of the graph."""
    weights = {tensor.name for tensor in graph.initializer if not tensor.name.endswith(_AVERAGING)}
    return [node for node in graph.node if node.op_type in _OPS and node.input[1] in weights]


def _layer_nodes(graph: onnx.GraphProto) -> list[list[onnx.NodeProto]]:
    """The nodes of each layer, in the order of the graph."""
    layers: list[list[onnx.NodeProto]] = []
    for node in _weighted(graph):
        if node.input[1].endswith(_SECOND_HALF):
            layers[-1].append(node)
        else:
            layers.append([node])
    return layers


def _layer_of(node: onnx.NodeProto) -> str:
    """The name of a node's layer."""
    return str(node.name.partition(".")[0])


def _weight(graph: onnx.GraphProto, node: onnx.NodeProto) -> onnx.TensorProto:
    return next(tensor for tensor in graph.initializer if tensor.name == node.input[1])


def _layers(graph: onnx.GraphProto, kind: str, sizes: Mapping[str, int]) -> Iterator[Layer]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    weights = {tensor.name for tensor in graph.initializer}
    for node, *halves in _layer_nodes(graph):
        weight = _weight(graph, node)
        name = node.input[1]
        if "." not in name:  # a weight that the export transposed; the bias still has its name
            added = (x for n in readers.get(node.output[0], ()) if n.op_type == "Add" for x in n.input)
            name = next((x for x in added if x in weights), name)
        terms = math.prod(weight.dims[1:]) if node.op_type == "Conv" else weight.dims[0]
        macs = terms * sum(sizes[part.name] for part in (node, *halves))
        yield Layer(_layer_of(node), f"{kind} {place(name)} {role(node, weight, name)}", macs)


def place(name: str) -> str:
    """Which part of a network a parameter belongs to: ``encoders.2`` of ``encoders.2.1.conv4.weight``."""
    parts = re.sub(r"\.(weight|bias)$", "", name.removeprefix(_ENCODER)).split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts[:2] if numbered is None else parts[max(0, numbered - 1) : numbered + 1])


def role(node: onnx.NodeProto, weight: onnx.TensorProto, name: str) -> str:
    """What kind of layer it is: ``1x1``, ``3x3``, ``depthwise``, ``sca`` (channel attention) or ``matmul``."""
    if node.op_type != "Conv":
        return "matmul"
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    if groups > 1:
        return "depthwise"
    return "sca" if ".sca." in name else "x".join(map(str, weight.dims[2:]))


def _save(model: onnx.ModelProto, path: Path) -> None:
    """Writes a graph, its weights beside it where they are too many for one file."""
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # onnx would append
    large = model.ByteSize() > EXTERNAL_ABOVE
    onnx.save(copy.deepcopy(model) if large else model, path, save_as_external_data=large, location=f"{path.name}.data")
