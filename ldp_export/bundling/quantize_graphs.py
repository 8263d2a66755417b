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
from ldp_runtime.bundle.manifest import GRAPHS
from ldp_runtime.errors import LDPError
from ldp_runtime.registry import SESSION_BACKENDS


@dataclass(frozen=True)
class Format:
    """An 8-bit format that layers are quantised to.

    Attributes:
        title: Its name for people.
        scheme: What is quantised how, for the manifest.
        type: Its name in ``onnxruntime.quantization.QuantType``.
        graphs: Which graphs are quantised.
        ops: Operators of the nodes that are.
        rest: Precision of what is not, in the graphs that are written.
        largest: The largest number of the format, which the largest value of each tensor becomes; None leaves scales
            to the quantiser.
    """

    title: str
    scheme: str
    type: str
    graphs: tuple[str, ...]
    ops: tuple[str, ...]
    rest: str
    largest: float | None = None


FORMATS = {
    "int8": Format(
        "INT8",
        "Q/DQ, symmetric, INT8 activations a tensor (min-max), weights a channel in 7 bits",
        "QInt8",
        GRAPHS,
        ("Conv", "MatMul"),
        "fp32",
    ),
    "fp8": Format(
        "FP8",
        "Q/DQ, symmetric, FP8 E4M3, activations and weights a tensor (min-max), CLIP's matrix products alone",
        "QFLOAT8E4M3FN",
        ("clip",),
        ("MatMul",),
        "fp16",
        largest=448.0,
    ),
}
"""Precision of a session -> what layers are quantised to for it."""

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
        name: Its name in both graphs.
        group: The group that it is kept or left out with.
        macs: Multiply-accumulates of it on the first pair.
    """

    name: str
    group: str
    macs: int


class _Graph:
    """A graph of a bundle in FP32, and where it is written in FP16 in that too; layers have the same names in both.

    A layer is one node, or two: the halves of a convolution before a gate.
    """

    def __init__(self, bundle: Bundle, kind: str, format_: Format, scratch: Path) -> None:
        self._kind, self._format = kind, format_
        self._models = {precision: onnx.load(bundle.graph(kind, precision)) for precision in {"fp32", format_.rest}}
        self._path = scratch / f"{kind}.float.onnx"
        self.layers: tuple[Layer, ...] = ()
        self._inputs: dict[str, dict[str, list[str]]] = {}  # precision -> layer -> what each of its nodes takes
        self._ranges: dict[str, tuple[float, float]] = {}  # of tensors of the FP32 graph
        found = {precision: _layer_nodes(model.graph, format_.ops) for precision, model in self._models.items()}
        shapes = {p: [(n[0].op_type, _shape(self._models[p].graph, n)) for n in nodes] for p, nodes in found.items()}
        if shapes["fp32"] != shapes[format_.rest]:
            raise QuantizeError(
                f"expected the same layers in the FP32 and the FP16 {kind} graph of {bundle.manifest.name!r}, got "
                f"{len(shapes['fp32'])} and {len(shapes['fp16'])}, or of other shapes; export the bundle again"
            )
        if not shapes["fp32"]:
            raise QuantizeError(
                f"expected {' or '.join(format_.ops)} with weights in the {kind} graph of {bundle.manifest.name!r}, "
                "which is what is quantised, got none; run it in fp32 or fp16"
            )
        for precision, layers in found.items():
            self._inputs[precision] = {}
            for number, nodes in enumerate(layers):
                name = f"layer_{number}"
                for part, node in enumerate(nodes):
                    node.name = f"{name}.{part}"
                self._inputs[precision][name] = [node.input[0] for node in nodes]

    def calibrate(self, feeds: Sequence[Feeds]) -> None:
        """Finds the range of what each layer takes, and its multiply-accumulates."""
        from onnxruntime.quantization import CalibrationMethod
        from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self._feeds = iter(feeds)

            def get_next(self) -> Any:
                return next(self._feeds, None)

        model = self._models["fp32"]
        _save(model, self._path)
        calibrator = create_calibrator(
            self._path,
            list(self._format.ops),
            augmented_model_path=str(self._path.with_suffix(".ranges.onnx")),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(Reader())
        ranges = calibrator.compute_data().data
        for name in {name for names in self._inputs["fp32"].values() for name in names}:
            low, high = (float(np.asarray(value).item()) for value in ranges[name].range_value)
            self._ranges[name] = low, high
        self.layers = tuple(_layers(model.graph, self._kind, self._output_sizes(feeds[0]), self._format.ops))

    def _output_sizes(self, feeds: Feeds) -> dict[str, int]:
        """How many numbers each layer puts out."""
        model = copy.deepcopy(self._models["fp32"])
        nodes = _weighted(model.graph, self._format.ops)
        for node in nodes:
            model.graph.output.append(
                onnx.helper.make_tensor_value_info(f"{node.name}_shape", onnx.TensorProto.INT64, None)
            )
            model.graph.node.append(onnx.helper.make_node("Shape", [node.output[0]], [f"{node.name}_shape"]))
        path = self._path.with_suffix(".shapes.onnx")
        _save(model, path)
        shapes = SESSION_BACKENDS[_BACKEND].open(path, "fp32").run(feeds)
        return {node.name: math.prod(shapes[f"{node.name}_shape"].tolist()) for node in nodes}

    def quantized(self, kept: set[str], path: Path, precision: str = "fp32") -> Path:
        """Writes the graph with these layers quantised.

        Args:
            kept: Names of layers.
            path: Where to write it.
            precision: Of what is not quantised.
        """
        model = copy.deepcopy(self._models[precision])
        if kept:
            dtype = np.dtype(np.float32 if precision == "fp32" else np.float16)
            here, in_fp32 = self._inputs[precision], self._inputs["fp32"]
            named = (pair for layer in kept for pair in zip(here[layer], in_fp32[layer], strict=True))
            ranges = {name: self._ranges[calibrated] for name, calibrated in named}
            nodes = [node for node in _weighted(model.graph, self._format.ops) if _layer_of(node) in kept]
            model = _quantize(model, nodes, ranges, dtype, self._format)
        _save(model, path)
        return path


def _quantize(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    ranges: Mapping[str, tuple[float, float]],
    dtype: np.dtype[Any],
    format_: Format,
) -> onnx.ModelProto:
    """Quantises some nodes of a graph, which it uses up.

    Args:
        model: The graph.
        nodes: Convolutions and matrix products with weights.
        ranges: The range of what each takes.
        dtype: Of the rest of the graph.
        format_: What to.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    tensors = {
        name: TensorData(lowest=dtype.type(low), highest=dtype.type(high)) for name, (low, high) in ranges.items()
    }
    own_scales = format_.largest is None
    options: dict[str, Any] = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": list(format_.ops),
    }
    if format_.largest is not None:  # the quantiser's own scales of FP8 come from standard deviations and cut tails off
        from ml_dtypes import float8_e4m3fn

        largest = {name: max(abs(low), abs(high)) for name, (low, high) in ranges.items()}
        for node in nodes:
            weight = onnx.numpy_helper.to_array(_weight(model.graph, node))
            largest[node.input[1]] = float(np.abs(weight).max())
        options["TensorQuantOverrides"] = {
            name: [
                {
                    "scale": np.array(max(value / format_.largest, float(np.finfo(dtype).tiny)), dtype),
                    "zero_point": np.zeros((), float8_e4m3fn),
                }
            ]
            for name, value in largest.items()
        }
    quantizer = QDQQuantizer(
        model,
        per_channel=own_scales,
        reduce_range=own_scales,
        weight_qType=QuantType[format_.type],
        activation_qType=QuantType[format_.type],
        tensors_range=TensorsData(CalibrationMethod.MinMax, tensors),
        nodes_to_quantize=[node.name for node in nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=list(format_.ops),
        extra_options=options,
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


def _weighted(graph: onnx.GraphProto, ops: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes of these operators whose second factor is a weight, in the order of the graph."""
    weights = {tensor.name for tensor in graph.initializer if not tensor.name.endswith(_AVERAGING)}
    return [node for node in graph.node if node.op_type in ops and node.input[1] in weights]


def _layer_nodes(graph: onnx.GraphProto, ops: Sequence[str]) -> list[list[onnx.NodeProto]]:
    """The nodes of each layer, in the order of the graph."""
    layers: list[list[onnx.NodeProto]] = []
    for node in _weighted(graph, ops):
        if node.input[1].endswith(_SECOND_HALF):
            layers[-1].append(node)
        else:
            layers.append([node])
    return layers


def _layer_of(node: onnx.NodeProto) -> str:
    """The name of a node's layer."""
    return str(node.name.partition(".")[0])


def _shape(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> list[int]:
    """The shape of a layer's weight, that of halves being put together."""
    shapes = [_weight(graph, node).dims[:] for node in nodes]
    return [sum(shape[0] for shape in shapes), *shapes[0][1:]]


def _weight(graph: onnx.GraphProto, node: onnx.NodeProto) -> onnx.TensorProto:
    return next(tensor for tensor in graph.initializer if tensor.name == node.input[1])


def _layers(graph: onnx.GraphProto, kind: str, sizes: Mapping[str, int], ops: Sequence[str]) -> Iterator[Layer]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    weights = {tensor.name for tensor in graph.initializer}
    for node, *halves in _layer_nodes(graph, ops):
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
