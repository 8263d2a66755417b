from pathlib import Path

import onnx
from onnx import TensorProto, helper

from benchmarks.engines.graph_report import count_nodes, needless_nodes, read_report


def test_needless_nodes_are_found(tmp_path: Path) -> None:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None if name == "y" else [2, 3])

    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.FLOAT, name="same"),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 1], name="still"),
        helper.make_node("Transpose", ["b"], ["c"], perm=[1, 0], name="first"),
        helper.make_node("Transpose", ["c"], ["d"], perm=[1, 0], name="back"),
        helper.make_node("Cast", ["d"], ["e"], to=TensorProto.FLOAT16, name="down"),
        helper.make_node("Cast", ["e"], ["f"], to=TensorProto.FLOAT, name="up"),
        helper.make_node("Identity", ["f"], ["y"], name="nothing"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "graph", [value("x")], [value("y")]), ir_version=10)
    onnx.save(model, tmp_path / "graph.onnx")
    assert needless_nodes(tmp_path / "graph.onnx") == [
        "Cast: same", "Transpose: still", "Transpose of Transpose: first", "Transpose of Transpose: back",
        "Cast of Cast: up", "Identity: nothing",
    ]  # fmt: skip
    assert count_nodes(tmp_path / "graph.onnx") == {"Cast": 3, "Transpose": 3, "Identity": 1}


def test_a_report_of_something_else_is_empty() -> None:
    report = read_report(["Building.", "Name: x"])
    assert (report.layers, report.bytes, report.activation_bytes) == ((), None, None)
