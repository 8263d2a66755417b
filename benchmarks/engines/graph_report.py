"""Counts in ONNX graphs and in the engines built from them: nodes, needless ones, fused layers, bytes moved."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper

_NOTHING = {"Identity", "Dropout"}
_TWICE = {"Cast", "Transpose"}
_LAYER = re.compile(
    r"^Name: (?P<name>[^,]*), LayerType: (?P<type>[^,]*), Inputs: \[(?P<inputs>.*?)\], Constants: \[.*?\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: .*?, Metadata: (?P<nodes>.*)$",
    re.MULTILINE,
)
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_TENSOR = re.compile(r"Name: ([^,]*), Dimensions: \[([^\]]*)\].*?Datatype: (\w+)")
_BYTES = {"Float": 4, "Half": 2, "Int64": 8, "Int32": 4, "Bool": 1}
_BOOKKEEPING = {"signal", "wait", "shape_call"}
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")


def count_nodes(graph: Path) -> Counter[str]:
    """The number of nodes of each kind."""
    return Counter(node.op_type for node in onnx.load(graph, load_external_data=False).graph.node)


def needless_nodes(graph: Path) -> list[str]:
    """Nodes that do nothing, as ``"KIND of KIND: name"`` or ``"KIND: name"``.

    They pass their input on (a cast to the same type, a transposition that moves nothing), or they are casts and
    transpositions of the result of another one of their kind that nothing else reads.

    Args:
        graph: An ONNX file.
    """
    model = onnx.load(graph, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    made_by = {name: node for node in model.graph.node for name in node.output}
    uses = Counter(name for node in model.graph.node for name in node.input)
    found = []
    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        same_type = node.op_type == "Cast" and types.get(node.input[0]) == attributes["to"]
        in_place = node.op_type == "Transpose" and list(attributes["perm"]) == sorted(attributes["perm"])
        if node.op_type in _NOTHING or same_type or in_place:
            found.append(f"{node.op_type}: {node.name}")
            continue
        before = made_by.get(node.input[0]) if node.input else None
        repeated = before is not None and node.op_type == before.op_type and node.op_type in _TWICE
        if repeated and uses[node.input[0]] == 1:
            found.append(f"{node.op_type} of {node.op_type}: {node.name}")
    return found


@dataclass(frozen=True)
class Tensor:
    """What a layer reads or writes.

    Attributes:
        name: TensorRT's name.
        shape: Its sizes; negative where they depend on the input's.
        bytes: Its size; None where that depends on the input's.
    """

    name: str
    shape: tuple[int, ...]
    bytes: int | None


@dataclass(frozen=True)
class Layer:
    """A layer of an engine: one launch of the GPU.

    Attributes:
        name: TensorRT's name.
        type: Its kind.
        nodes: The nodes of the ONNX graph that it computes.
        reads: Inputs that the network computed, each once; no weights.
        writes: Outputs.
    """

    name: str
    type: str
    nodes: tuple[str, ...]
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]

    @property
    def bytes(self) -> int | None:
        """Sizes of inputs and outputs together, each read or written once; None where one depends on the input's."""
        known = [tensor.bytes for tensor in (*self.reads, *self.writes) if tensor.bytes is not None]
        return sum(known) if len(known) == len(self.reads) + len(self.writes) else None


@dataclass(frozen=True)
class EngineReport:
    """TensorRT's report of a build.

    Attributes:
        layers: Its layers, in order.
        activation_bytes: GPU memory that a run needs beside weights, inputs and outputs, at the largest shapes.
    """

    layers: tuple[Layer, ...]
    activation_bytes: int | None

    @property
    def attentions(self) -> int:
        """Layers that compute a whole attention: both products and the softmax."""
        return sum("mha" in layer.name for layer in self.layers)

    @property
    def bytes(self) -> int | None:
        """Bytes that all layers read and write; None where they depend on the input's size."""
        sizes = [layer.bytes for layer in self.layers]
        known = [size for size in sizes if size is not None]
        return sum(known) if sizes and len(known) == len(sizes) else None


def read_report(messages: Iterable[str]) -> EngineReport:
    """Reads the messages of a detailed build.

    Args:
        messages: ``engine.Plan.messages``.
    """
    text = "\n".join(messages)
    layers = tuple(
        Layer(
            match["name"],
            match["type"],
            tuple(_NODE.findall(match["nodes"])),
            _tensors(match["inputs"]),
            _tensors(match["outputs"]),
        )
        for match in _LAYER.finditer(text)
        if match["type"] not in _BOOKKEEPING
    )
    memory = _ACTIVATIONS.search(text)
    return EngineReport(layers, int(memory[1]) if memory else None)


def _tensors(text: str) -> tuple[Tensor, ...]:
    """The tensors of a list, without repetition."""
    found = []
    for name, dimensions, dtype in dict.fromkeys(match.groups() for match in _TENSOR.finditer(text)):
        shape = tuple(int(side) for side in dimensions.split(",") if side.strip())
        known = min(shape, default=0) >= 0 and dtype in _BYTES
        found.append(Tensor(name, shape, math.prod(shape) * _BYTES[dtype] if known else None))
    return tuple(found)
