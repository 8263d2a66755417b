from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper

from ldp_runtime.bundle import onnx_files
from ldp_runtime.bundle.onnx_files import OPERATORS, OPSETS, ExternalData, read_graph
from tests.ldp_runtime.tiny_bundle import clip_graph, deblur_graph


def model() -> ModelProto:
    return deblur_graph(np.random.default_rng(0), np.dtype(np.float32))


def add_node(m: ModelProto, op: str, **options: object) -> None:
    m.graph.node.append(helper.make_node(op, ["pair"], ["y"], **options))


def outside(tensor: TensorProto, **entries: object) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def test_graphs_of_the_exporter_are_read() -> None:
    for graph in (clip_graph, deblur_graph):
        for dtype in (np.float32, np.float16):
            read = read_graph(graph(np.random.default_rng(0), np.dtype(dtype)).SerializeToString())
            assert (read.opset, read.external) == (20, ())
    folder = Path(__file__).parents[3] / "models" / "ldp-nano"
    for path in folder.glob("*.onnx"):
        assert read_graph(path.read_bytes()).opset == 20


def test_values_may_be_in_the_fields_of_their_type() -> None:
    m = model()
    m.graph.initializer.append(helper.make_tensor("a", TensorProto.FLOAT, [2, 3], range(6)))
    m.graph.initializer.append(helper.make_tensor("b", TensorProto.INT64, [3], [1, 2**40, -1]))
    m.graph.initializer.append(helper.make_tensor("c", TensorProto.INT32, [0], []))
    m.graph.initializer.append(helper.make_tensor("d", TensorProto.DOUBLE, [], [1.0]))
    read_graph(m.SerializeToString())
    m.graph.initializer[-1].dims.append(2)
    with pytest.raises(ValueError, match="expected a tensor of 16 bytes, as its shape says, got 8"):
        read_graph(m.SerializeToString())


def test_external_data_is_found_with_its_place() -> None:
    m = model()
    first, second = m.graph.initializer[:2]
    length = len(first.raw_data)
    outside(first, location="a.bin", offset=64, length=length)
    more = len(second.raw_data)
    outside(second, location="b.bin")
    assert read_graph(m.SerializeToString()).external == (
        ExternalData("a.bin", 64, length),
        ExternalData("b.bin", 0, more),
    )


def outside_first(**entries: object) -> Callable[[ModelProto], None]:
    return lambda m: outside(m.graph.initializer[0], **entries)


def reshape(m: ModelProto, *dims: int) -> None:
    m.graph.initializer[0].dims[:] = dims


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: add_node(m, "Loop"), "the operator 'Loop' is not allowed"),
        (lambda m: add_node(m, "ImageDecoder"), "the operator 'ImageDecoder' is not allowed"),
        (lambda m: add_node(m, "RandomNormal"), "the operator 'RandomNormal' is not allowed"),
        (lambda m: add_node(m, ""), "the operator '' is not allowed"),
        (lambda m: add_node(m, "Identity", then_branch=helper.make_graph([], "branch", [], [])), "control flow"),
        (
            lambda m: m.functions.append(helper.make_function("d", "f", [], ["o"], [], [])),
            "functions of its own are not",
        ),
        (lambda m: m.graph.sparse_initializer.append(SparseTensorProto()), "sparse tensors are not allowed"),
        (
            lambda m: m.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"x"])),
            "strings are not allowed",
        ),
        (lambda m: m.training_info.add(), "training graphs are not allowed"),
        (lambda m: add_node(m, "Identity", domain="com.microsoft"), "got the domain 'com.microsoft'"),
        (lambda m: m.opset_import.append(helper.make_opsetid("custom", 1)), "got the domain 'custom'"),
        (lambda m: setattr(m.opset_import[0], "version", OPSETS[0] - 1), "expected one operator set of version"),
        (lambda m: setattr(m.opset_import[0], "version", OPSETS[-1] + 1), "expected one operator set of version"),
        (lambda m: reshape(m, 10**9, 10**9), "elements"),
        (lambda m: reshape(m, -1), "elements"),
        (lambda m: reshape(m, 2), "as its shape says"),
        (lambda m: m.graph.initializer[0].float_data.append(1.0), "values in a field that is not that of its type"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", TensorProto.COMPLEX64), "got type 14"),
        (outside_first(), "both in the file and outside"),
        (outside_first(offset=3), "expected location, offset and length"),
        (outside_first(location="a", basepath="/"), "expected location, offset and length"),
        (outside_first(location="a", offset="-1"), "expected a number as the offset"),
        (outside_first(location="a", length="9" * 30), "expected a number as the length"),
        (outside_first(location="a", length=1), "bytes of outside weights, as their shape says, got 1"),
        (
            lambda m: m.graph.initializer[0].external_data.add(key="location", value="a.bin"),
            "both in the file and outside",
        ),
        (lambda m: m.ClearField("graph"), "there is no graph"),
    ],
)
def test_what_a_graph_may_not_hold(change: Callable[[ModelProto], None], problem: str) -> None:
    m = model()
    change(m)
    with pytest.raises(ValueError) as caught:
        read_graph(m.SerializeToString())
    assert problem in str(caught.value)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


@pytest.mark.parametrize(
    ("tail", "problem"),
    [
        pytest.param(b"\x3a\x00", "comes twice", id="a second graph, which a parser would merge"),
        pytest.param(varint((7 << 3 | 2) + (1 << 32)) + b"\x00", "number of a field", id="a number cut to 32 bits"),
        pytest.param(b"\x28" + b"\xff" * 10**6 + b"\x01", "longer than 10 bytes", id="an endless number"),
        pytest.param(b"\x2b\x2c", "unknown protobuf wire type 3", id="a group"),
        pytest.param(b"\xfa\x01\x00", "field 31 of the model is not known", id="an unknown field"),
        pytest.param(b"\x38\x00", "comes twice", id="a graph that is a number"),
        pytest.param(b"\x29\x00", "runs past the end", id="a cut number"),
        pytest.param(b"\x72\x05\x00", "runs past the end", id="a cut field"),
        pytest.param(b"\x00\x00", "number of a field", id="field zero"),
    ],
)
def test_what_two_parsers_could_read_differently_is_refused(tail: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_graph(model().SerializeToString() + tail)


@pytest.mark.parametrize(
    ("limit", "problem"), [("MAX_GRAPH_BYTES", "at most 100 bytes"), ("MAX_FIELDS", "at most 100 fields")]
)
def test_a_file_of_too_many_bytes_or_fields_is_refused(
    limit: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, limit, 100)
    with pytest.raises(ValueError, match=problem):
        read_graph(model().SerializeToString())


def test_a_merged_tensor_of_an_attribute_is_refused() -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32))
    attribute = helper.make_attribute("value", tensor).SerializeToString()
    part = tensor.SerializeToString()
    twice = attribute + b"\x2a" + bytes([len(part)]) + part
    node = b"\x22\x08Constant\x2a" + bytes([len(twice)]) + twice
    graph = b"\x0a" + bytes([len(node)]) + node
    data = b"\x3a" + bytes([len(graph)]) + graph + b"\x42\x02\x10\x14"
    with pytest.raises(ValueError, match="field 5 of the attribute comes twice"):
        read_graph(data)


def test_operators_are_those_of_onnx() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert known >= OPERATORS
