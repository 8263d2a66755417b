"""Checks an untrusted ONNX file, read from the protobuf, before any library parses it; the runtime needs no onnx.

The backends' parsers are large and native, and some accept more than a plain graph: operators of plugins, control flow,
weights at an address in memory. A file reaches them only if it consists of what ``ldp-export`` writes.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

OPSETS = range(17, 25)
"""Versions of the ONNX operator set that a graph may use."""

# fmt: off
OPERATORS = frozenset(
    (
        "Abs", "Add", "And", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Ceil", "Clip", "Concat",
        "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "CumSum", "DepthToSpace", "DequantizeLinear", "Div",
        "Einsum", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu",
        "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GroupNormalization",
        "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Less",
        "LessOrEqual", "Log", "LpNormalization", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mish", "Mod", "Mul",
        "Neg", "Not", "Or", "PRelu", "Pad", "Pow", "QuantizeLinear", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
        "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape",
        "Resize", "Round", "ScatterElements", "ScatterND", "Shape", "Sigmoid", "Sign", "Size", "Slice", "Softmax",
        "Softplus", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tan", "Tanh", "Tile",
        "Transpose", "Trilu", "Unsqueeze", "Where", "Xor"
    )
)
# fmt: on
"""Operators of ONNX's own set that a graph may use: arithmetic on tensors, with no control flow, no strings, no random
numbers, and nothing that decodes files."""

MAX_GRAPH_BYTES = 2**31 - 1
"""Largest ONNX file; protobuf itself has this limit."""

MAX_FIELDS = 1_000_000
"""Most protobuf fields in an ONNX file; ldp-nano's larger graph has some 9000."""

MAX_ELEMENTS = 2**31 - 1
"""Most elements of a tensor."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_FIELD = 2**29 - 1

# What onnx.proto has, as far as it is allowed here: message -> {field number: kind}. "one" occurs at most once, "many"
# any number of times; other kinds are messages that are checked too, at most one graph and one tensor per attribute.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {
        **dict.fromkeys((1, 2, 3, 4, 5, 6), "one"),
        7: "graph",
        8: "opset",
        14: "many",
    },
    "graph": {1: "node", 2: "one", 5: "tensor", 10: "one", 11: "many", 12: "many", 13: "many", 14: "many", 16: "many"},
    "node": {1: "many", 2: "many", 3: "one", 4: "one", 5: "attribute", 6: "one", 7: "one", 8: "one", 9: "many"},
    "attribute": {**dict.fromkeys((1, 2, 3, 4, 13, 20), "one"), 5: "tensor", 7: "many", 8: "many", 9: "many"},
    "tensor": {
        **dict.fromkeys((2, 8, 9, 12, 14), "one"),
        **dict.fromkeys((1, 4, 5, 7, 10, 16), "many"),
        13: "external",
    },
    "external": {1: "one", 2: "one"},
    "opset": {1: "one", 2: "one"},
}
_ONCE = {("model", 7), ("attribute", 5)}
_REFUSED = {
    ("model", 20): "training graphs",
    ("model", 25): "functions of its own",
    ("graph", 15): "sparse tensors",
    ("attribute", 6): "graphs inside a node (control flow)",
    ("attribute", 11): "graphs inside a node (control flow)",
    ("attribute", 22): "sparse tensors",
    ("attribute", 23): "sparse tensors",
    ("tensor", 6): "strings",
}
# Element type -> its name and bytes an element; and the field that may hold values in place of raw bytes.
_TYPES = {
    1: ("float", 4, 4),
    2: ("uint8", 1, 5),
    3: ("int8", 1, 5),
    6: ("int32", 4, 5),
    7: ("int64", 8, 7),
    9: ("bool", 1, 5),
    10: ("float16", 2, 5),
    11: ("double", 8, 10),
    16: ("bfloat16", 2, 5),
}
_VALUE_FIELDS = {4: _FIXED32, 5: _VARINT, 7: _VARINT, 10: _FIXED64}
_EXTERNAL = 1

Buffer = bytes | mmap.mmap


@dataclass(frozen=True)
class ExternalData:
    """Where the bytes of a tensor are, outside of the graph's file.

    Attributes:
        location: As written in the graph: a path relative to the graph's folder.
        offset: First byte there.
        length: Bytes.
    """

    location: str
    offset: int
    length: int


@dataclass(frozen=True)
class GraphFile:
    """The content of an ONNX file as far as a bundle checks it.

    Attributes:
        opset: Version of the operator set.
        external: Weights outside of the file.
    """

    opset: int
    external: tuple[ExternalData, ...]


def read_graph(data: Buffer) -> GraphFile:
    """Checks an ONNX file from end to end.

    Args:
        data: The content of the file.

    Returns:
        Its opset, and its weights outside of the file.

    Raises:
        ValueError: It is no ONNX graph, or holds what is not allowed in one; the message says what.
    """
    if not 0 < len(data) <= MAX_GRAPH_BYTES:
        raise ValueError("the file is empty" if len(data) == 0 else f"expected at most {MAX_GRAPH_BYTES} bytes")
    return _Reader(data).model()


@dataclass
class _Message:
    """The fields of a message by number: their values, or spans ``(first byte, one past the last)``."""

    numbers: dict[int, list[int]] = field(default_factory=dict)
    spans: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def number(self, at: int, default: int) -> int:
        return self.numbers.get(at, [default])[-1]


class _Reader:
    """Reads the messages of one file."""

    def __init__(self, data: Buffer) -> None:
        self._data = data
        self._fields = 0
        self._external: list[ExternalData] = []

    def model(self) -> GraphFile:
        model = self._message(0, len(self._data), "model")
        opsets = [self._opset(*span) for span in model.spans.get(8, [])]
        if len(opsets) != 1 or opsets[0] not in OPSETS:
            raise ValueError(f"expected one operator set of version {OPSETS[0]} to {OPSETS[-1]}, got {opsets}")
        if 7 not in model.spans:
            raise ValueError("there is no graph")
        graph = self._message(*model.spans[7][0], "graph")
        for span in graph.spans.get(1, []):
            self._node(*span)
        for span in graph.spans.get(5, []):
            self._tensor(*span)
        return GraphFile(opsets[0], tuple(self._external))

    def _opset(self, first: int, last: int) -> int:
        opset = self._message(first, last, "opset")
        self._check_domain(opset, 1)
        return opset.number(2, 0)

    def _check_domain(self, message: _Message, at: int) -> None:
        if (domain := self._text(message, at)) not in ("", "ai.onnx"):
            raise ValueError(f"expected operators of ONNX's own set, got the domain {domain!r}")

    def _node(self, first: int, last: int) -> None:
        node = self._message(first, last, "node")
        self._check_domain(node, 7)
        if (name := self._text(node, 4)) not in OPERATORS:
            raise ValueError(f"the operator {name!r} is not allowed")
        for span in node.spans.get(5, []):
            attribute = self._message(*span, "attribute")
            for tensor in attribute.spans.get(5, []):
                self._tensor(*tensor)

    def _tensor(self, first: int, last: int) -> None:
        tensor = self._message(first, last, "tensor")
        kind = tensor.number(2, 0)
        if kind not in _TYPES:
            raise ValueError(f"expected tensors of {', '.join(name for name, *_ in _TYPES.values())}, got type {kind}")
        _, size, values = _TYPES[kind]
        count = 1
        for length in self._dimensions(tensor):
            if length > MAX_ELEMENTS or (count := count * length) > MAX_ELEMENTS:
                raise ValueError(f"expected tensors of at most {MAX_ELEMENTS} elements")
        external = [self._message(*span, "external") for span in tensor.spans.get(13, [])]
        if (tensor.number(14, 0) == _EXTERNAL) != bool(external) or tensor.number(14, 0) not in (0, _EXTERNAL):
            raise ValueError("a tensor's weights are said to be both in the file and outside")
        present = [at for at in (*_VALUE_FIELDS, 9) if at in tensor.spans or at in tensor.numbers]
        if external:
            if present:
                raise ValueError("a tensor has values both in the file and outside")
            self._external.append(self._external_data(external, count * size))
            return
        if present not in ([], [9], [values]):
            raise ValueError("a tensor has values in a field that is not that of its type")
        got = self._values(tensor, values) * size if present == [values] else self._length(tensor.spans.get(9, []))
        if got != count * size:
            raise ValueError(f"expected a tensor of {count * size} bytes, as its shape says, got {got}")

    def _dimensions(self, tensor: _Message) -> Iterator[int]:
        yield from tensor.numbers.get(1, [])
        for at, last in tensor.spans.get(1, []):
            while at < last:
                length, at = self._varint(at, last)
                yield length

    def _values(self, tensor: _Message, at: int) -> int:
        """The number of values in the field of a tensor's type, packed or one by one."""
        spans = tensor.spans.get(at, [])
        loose = len(tensor.numbers.get(at, []))
        kind = _VALUE_FIELDS[at]
        if kind != _VARINT:
            width = 4 if kind == _FIXED32 else 8
            if any((last - first) % width for first, last in spans):
                raise ValueError("a tensor ends within a number")
            return loose + self._length(spans) // width
        # Every number ends with the one byte that has no continuation bit.
        ends = (np.frombuffer(self._data, np.uint8, last - first, first) < 0x80 for first, last in spans)
        return loose + sum(int(np.count_nonzero(end)) for end in ends)

    @staticmethod
    def _length(spans: list[tuple[int, int]]) -> int:
        return sum(last - first for first, last in spans)

    def _external_data(self, entries: list[_Message], length: int) -> ExternalData:
        pairs = [(self._text(entry, 1), self._text(entry, 2)) for entry in entries]
        values = dict(pairs)
        if len(values) != len(pairs) or not {"location"} <= values.keys() <= {"location", "offset", "length"}:
            raise ValueError(
                f"expected location, offset and length of outside weights, got {[key for key, _ in pairs]}"
            )
        numbers = {"offset": 0, "length": length}
        for name in numbers.keys() & values.keys():
            if not re.fullmatch("[0-9]{1,18}", values[name]):
                raise ValueError(f"expected a number as the {name} of outside weights, got {values[name]!r}")
            numbers[name] = int(values[name])
        if numbers["length"] != length:
            raise ValueError(
                f"expected {length} bytes of outside weights, as their shape says, got {numbers['length']}"
            )
        return ExternalData(values["location"], **numbers)

    def _text(self, message: _Message, at: int) -> str:
        if at in message.numbers:
            raise ValueError(f"field {at} has the wrong type")
        spans = message.spans.get(at, [])
        if not spans:
            return ""
        first, last = spans[-1]
        if last - first > 1024:
            raise ValueError("a name is longer than 1024 bytes")
        return bytes(self._data[first:last]).decode("utf-8")

    def _message(self, first: int, last: int, name: str) -> _Message:
        """Reads the fields of ``data[first:last]``, a message of this name, and refuses those not allowed in it."""
        known, message = _MESSAGES[name], _Message()
        at = first
        while at < last:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise ValueError(f"expected at most {MAX_FIELDS} fields")
            tag, at = self._varint(at, last)
            number, kind = tag >> 3, tag & 7
            if not 0 < number <= _MAX_FIELD:
                raise ValueError(f"expected the number of a field, got {number}")
            if (name, number) in _REFUSED:
                raise ValueError(f"{_REFUSED[name, number]} are not allowed")
            if number not in known:
                raise ValueError(f"field {number} of the {name} is not known")
            seen = number in message.numbers or number in message.spans
            if seen and (known[number] == "one" or (name, number) in _ONCE):
                raise ValueError(f"field {number} of the {name} comes twice")
            if kind == _BYTES:
                length, at = self._varint(at, last)
                if at + length > last:
                    raise ValueError("a field runs past the end of its message")
                message.spans.setdefault(number, []).append((at, at + length))
                at += length
                continue
            if known[number] in _MESSAGES:
                raise ValueError(f"field {number} of the {name} has the wrong type")
            if kind == _VARINT:
                value, at = self._varint(at, last)
            elif kind in (_FIXED64, _FIXED32):
                value, at = 0, at + (8 if kind == _FIXED64 else 4)
                if at > last:
                    raise ValueError("a field runs past the end of its message")
            else:
                raise ValueError(f"unknown protobuf wire type {kind}")
            message.numbers.setdefault(number, []).append(value)
        return message

    def _varint(self, at: int, last: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= last:
                raise ValueError("a number runs past the end of its message")
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise ValueError("a number is longer than 10 bytes")
