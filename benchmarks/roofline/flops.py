"""What an ONNX graph computes at one size of its inputs: the shape of every tensor, the FLOPs of every node.

Shapes are exact, not symbolic: values that depend on shapes alone (Shape, Range, the mask of keys outside the map) are
computed while walking the graph, with ONNX's own shape inference and reference evaluator. Such constants
cost nothing, as in an engine that is built for that size; nor do nodes whose inputs are all weights.

FLOPs, where a multiply-add is two:

* matrix FLOPs: convolutions and matrix products, those that tensor cores can do. They are what torch's
  ``FlopCounterMode`` counts, and a test holds the two sums together within 1 %;
* depthwise convolutions are counted by the same formula, but as vector FLOPs: tensor cores do not help them;
* vector FLOPs else: one for each element of the result of a pointwise operation whatever its function (biases and
  activations too), one for each element that a reduction or pooling reads, ``SOFTMAX_FLOPS``, ``NORM_FLOPS`` and
  ``RESIZE_FLOPS`` for each element of those. torch counts none of these;
* copies, casts, reshapes and permutations have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, TypeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import infer_node_outputs

from benchmarks.harness.results import BenchmarkError

SOFTMAX_FLOPS = 4
"""Per element: maximum, difference and exponential, sum, quotient."""

NORM_FLOPS = 7
"""Per element: mean, difference, square, its mean, times the reciprocal root, scale, shift."""

BATCH_NORM_FLOPS = 2
"""Per element, with statistics that are constants: scale, shift."""

RESIZE_FLOPS = 7
"""Per element, bilinear: four products and three sums; nearest has none."""

MOVES = frozenset(
    {"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "SpaceToDepth"}
    | {"Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Every element of the result is one of the inputs."""

POINTWISE = frozenset(
    {"Abs", "Add", "And", "Cast", "Clip", "Cos", "Div", "Equal", "Erf", "Exp", "Gelu", "Greater", "GreaterOrEqual"}
    | {"HardSigmoid", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min", "Mul", "Neg", "Not", "Or", "PRelu"}
    | {"Pow", "Reciprocal", "Relu", "Sigmoid", "Sin", "Softplus", "Sqrt", "Sub", "Tanh", "Where"}
)
"""Every element of the result depends on one element (broadcast) of each input."""

REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"})
POOLS = frozenset({"AveragePool", "MaxPool", "GlobalAveragePool"})
NORMS = frozenset({"Softmax", "LayerNormalization", "BatchNormalization"})
MATRIX = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})

_KNOWN = MOVES | POINTWISE | REDUCTIONS | POOLS | NORMS | MATRIX | {"Resize"}
_MAX_VALUE = 2**23
"""Elements up to which values that depend on shapes alone are computed."""

_MAX_WEIGHT = 2**16
"""Elements up to which the values of weights are kept for that."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a graph.

    Attributes:
        shape: Its sizes.
        constant: A weight, or something that depends on weights and shapes alone.
    """

    shape: tuple[int, ...]
    constant: bool

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class NodeCost:
    """One node of a graph and what it computes.

    Attributes:
        name: Its name in the graph.
        op: Its operator.
        inputs: Names of its inputs, without those left out.
        outputs: Names of its outputs.
        attributes: Its attributes.
        matrix_flops: Of convolutions (not depthwise) and matrix products.
        vector_flops: All others.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    matrix_flops: int
    vector_flops: int


@dataclass(frozen=True)
class GraphCost:
    """A graph at one size.

    Attributes:
        nodes: The nodes that do something at this size, in the graph's order.
        tensors: All tensors by name.
    """

    nodes: tuple[NodeCost, ...]
    tensors: Mapping[str, TensorInfo]

    @property
    def matrix_flops(self) -> int:
        """Convolutions and matrix products, without depthwise ones."""
        return sum(node.matrix_flops for node in self.nodes)

    @property
    def vector_flops(self) -> int:
        """Everything else."""
        return sum(node.vector_flops for node in self.nodes)

    @property
    def contraction_flops(self) -> int:
        """All convolutions and matrix products, depthwise ones too: what torch's ``FlopCounterMode`` counts."""
        return sum(contraction_flops(node, self.tensors) for node in self.nodes)


def graph_cost(path: Path, sizes: Mapping[str, Sequence[int]]) -> GraphCost:
    """Walks a graph.

    Args:
        path: An ONNX file. Weights outside of it (external data) are not read: their shapes are in the graph.
        sizes: The shape of every input, by name.

    Returns:
        Its nodes and tensors at that size.

    Raises:
        BenchmarkError: The inputs are others, an operator is unknown here, or a shape stays unknown.
    """
    model = onnx.load(path, load_external_data=False)
    return _Walk(model, str(path)).run(sizes)


def contraction_flops(node: NodeCost, tensors: Mapping[str, TensorInfo]) -> int:
    """FLOPs of a convolution (depthwise too) or matrix product; 0 for any other node."""
    if node.op not in MATRIX:
        return 0
    weight, output = tensors[node.inputs[1]].shape, tensors[node.outputs[0]]
    if node.op == "Conv":
        return 2 * output.elements * math.prod(weight[1:])
    if node.op == "ConvTranspose":
        return 2 * tensors[node.inputs[0]].elements * math.prod(weight[1:])
    first = tensors[node.inputs[0]].shape
    inner = first[-2] if node.op == "Gemm" and node.attributes.get("transA") else first[-1]
    return 2 * output.elements * inner


def is_depthwise(node: NodeCost, tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a node is a convolution of each channel by itself."""
    return node.op == "Conv" and tensors[node.inputs[1]].shape[1] == 1 and node.attributes.get("group", 1) > 1


class _Walk:
    """One walk over a graph: types and known values of all tensors."""

    def __init__(self, model: onnx.ModelProto, where: str) -> None:
        self.graph = model.graph
        self.where = where
        self.opsets = list(model.opset_import)
        self.opset = next(entry.version for entry in self.opsets if entry.domain in ("", "ai.onnx"))
        self.types: dict[str, TypeProto] = {}
        self.values: dict[str, NDArray[Any]] = {}
        self.constants: set[str] = set()

    def run(self, sizes: Mapping[str, Sequence[int]]) -> GraphCost:
        weights = {tensor.name for tensor in self.graph.initializer}
        inputs = [value for value in self.graph.input if value.name not in weights]
        if {value.name for value in inputs} != set(sizes):
            raise BenchmarkError(
                f"{self.where}: expected sizes of the inputs {', '.join(v.name for v in inputs)}, "
                f"got {', '.join(sizes)}"
            )
        for value in inputs:
            element = value.type.tensor_type.elem_type
            self.types[value.name] = helper.make_tensor_type_proto(element, [int(n) for n in sizes[value.name]])
        for tensor in self.graph.initializer:
            self.types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
            self.constants.add(tensor.name)
            if tensor.data_location != TensorProto.EXTERNAL and math.prod(tensor.dims) <= _MAX_WEIGHT:
                self.values[tensor.name] = numpy_helper.to_array(tensor)
        costs = [cost for node in self.graph.node if (cost := self._node(node)) is not None]
        return GraphCost(tuple(costs), {name: self._info(name) for name in self.types})

    def _node(self, node: onnx.NodeProto) -> NodeCost | None:
        present = [name for name in node.input if name]
        self._infer(node, present)
        of_shapes = node.op_type in ("Shape", "Size") or all(name in self.values for name in present)
        if of_shapes and sum(self._info(name).elements for name in node.output) <= _MAX_VALUE:
            self._evaluate(node, present)
            self.constants.update(node.output)
            return None
        if all(name in self.constants for name in present):
            self.constants.update(node.output)
            return None
        if node.op_type not in _KNOWN:
            raise BenchmarkError(
                f"{self.where}: expected operators that flops.py knows, got {node.op_type}; add it there"
            )
        return self._cost(node, tuple(present))

    def _infer(self, node: onnx.NodeProto, present: list[str]) -> None:
        schema = onnx.defs.get_schema(node.op_type, self.opset, node.domain)
        data = {name: numpy_helper.from_array(self.values[name], name) for name in present if name in self.values}
        types = {name: self.types[name] for name in present}
        try:
            inferred = infer_node_outputs(schema, node, types, data, opset_imports=self.opsets)
        except onnx.shape_inference.InferenceError as error:
            raise BenchmarkError(f"{self.where}: no shape for {node.op_type} {node.name}: {error}") from error
        for name in node.output:
            if not name:
                continue
            tensor = inferred[name].tensor_type if name in inferred else None
            if (
                tensor is None
                or not tensor.HasField("shape")
                or not all(d.HasField("dim_value") for d in tensor.shape.dim)
            ):
                raise BenchmarkError(
                    f"{self.where}: expected a shape of {node.op_type} {node.name} that follows from the sizes of the "
                    "inputs, got none"
                )
            self.types[name] = inferred[name]

    def _evaluate(self, node: onnx.NodeProto, present: list[str]) -> None:
        if node.op_type == "Shape":  # of anything, whose values need not be known
            start, end = (next((a.i for a in node.attribute if a.name == key), None) for key in ("start", "end"))
            shape = self._info(node.input[0]).shape[slice(start, end)]
            self.values[node.output[0]] = np.asarray(shape, np.int64)
            return
        if node.op_type == "Size":
            self.values[node.output[0]] = np.asarray(self._info(node.input[0]).elements, np.int64)
            return
        inputs, outputs = (
            [helper.make_value_info(name, self.types[name]) for name in names]
            for names in (dict.fromkeys(present), node.output)
        )
        graph = helper.make_graph([node], "one", inputs, outputs)
        evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=self.opsets))
        results: Any = evaluator.run(None, {name: self.values[name] for name in present})
        self.values.update(zip(node.output, (np.asarray(value) for value in results), strict=True))

    def _info(self, name: str) -> TensorInfo:
        tensor = self.types[name].tensor_type
        return TensorInfo(tuple(d.dim_value for d in tensor.shape.dim), name in self.constants)

    def _cost(self, node: onnx.NodeProto, inputs: tuple[str, ...]) -> NodeCost:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        outputs = tuple(name for name in node.output if name)
        tensors = {name: self._info(name) for name in (*inputs, *outputs)}
        cost = NodeCost(node.name, node.op_type, inputs, outputs, attributes, 0, 0)
        flops = contraction_flops(cost, tensors)
        matrix = 0 if is_depthwise(cost, tensors) else flops
        return replace(cost, matrix_flops=matrix, vector_flops=flops - matrix + _vector_flops(cost, tensors))


def _vector_flops(node: NodeCost, tensors: Mapping[str, TensorInfo]) -> int:
    output, source = tensors[node.outputs[0]], tensors[node.inputs[0]]
    if node.op in MATRIX:
        return output.elements if node.op != "MatMul" and len(node.inputs) > 2 else 0  # the bias
    if node.op in ("AveragePool", "MaxPool"):
        return output.elements * int(math.prod(node.attributes["kernel_shape"]))
    if node.op in REDUCTIONS or node.op == "GlobalAveragePool":
        return source.elements
    if node.op == "Resize":
        return RESIZE_FLOPS * output.elements if node.attributes.get("mode", b"nearest") != b"nearest" else 0
    if node.op == "Cast" or node.op not in POINTWISE | NORMS:
        return 0
    norms = {"Softmax": SOFTMAX_FLOPS, "LayerNormalization": NORM_FLOPS, "BatchNormalization": BATCH_NORM_FLOPS}
    return norms.get(node.op, 1) * output.elements
