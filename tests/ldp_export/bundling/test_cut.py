"""The deblur graph in two parts: what crosses, the same numbers, the same bytes by TensorRT-RTX's plans."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.engines.graph_report import read_report
from ldp_export.bundling.cut import cut_deblur, cut_parts
from ldp_export.bundling.tensorrt_builder import Part, TensorRT
from ldp_runtime.bundle.engines import Profile, Shape, ShapeRange, deblur_shapes
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle

NANO = Path(__file__).resolve().parents[3] / "models" / "ldp-nano" / "deblur.fp16.onnx"
HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None


def run(graph: Path, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {v.name: feeds[v.name] for v in session.get_inputs()}), strict=True))


def fixed(shapes: Mapping[str, Shape]) -> Profile:
    return {name: ShapeRange(shape, shape, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("size", [(96, 160), (128, 64)])
def test_both_parts_give_what_the_whole_gives(tmp_path: Path, size: tuple[int, int]) -> None:
    parts = cut_deblur(NANO, 32, tmp_path)
    assert parts is not None
    rng = np.random.default_rng(0)
    feeds = {
        "pair": rng.random((1, 6, *size), np.float32),
        "blur_logits": rng.standard_normal((1, 1, size[0] // 16, size[1] // 16)).astype(np.float32),
    }
    maps = run(parts.head, feeds)
    assert {name: value.dtype for name, value in maps.items()} == dict.fromkeys(parts.maps, np.float16)
    pair = ShapeRange(*[(1, 6, *size)] * 3)
    assert {name: value.shape for name, value in maps.items()} == {n: r.opt for n, r in parts.map_profile(pair).items()}
    restored = run(parts.tail, feeds | maps)["restored"]
    np.testing.assert_allclose(restored, run(NANO, feeds)["restored"], rtol=0, atol=2e-3)


def test_no_convolution_stands_in_both_parts(tmp_path: Path) -> None:
    parts = cut_deblur(NANO, 32, tmp_path)
    assert parts is not None

    def convolutions(path: Path) -> set[str]:
        return {node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"}

    head, tail = convolutions(parts.head), convolutions(parts.tail)
    assert head
    assert not head & tail
    assert head | tail == convolutions(NANO)


def test_shapes_of_a_range_are_tied_to_those_of_the_pair(tmp_path: Path) -> None:
    profile = {"pair": ShapeRange((1, 6, 32, 32), (1, 6, 64, 96), (1, 6, 128, 256))}
    head, rest = cut_parts(Part("deblur", NANO, profile), 32, tmp_path)
    assert (head.name, rest.name) == ("head", "deblur")
    assert head.profile == profile
    assert head.channels_last == rest.channels_last == tuple(sorted(rest.profile.keys() - {"pair"}))
    assert ShapeRange((1, 32, 16, 16), (1, 32, 32, 48), (1, 32, 64, 128)) in rest.profile.values()


def test_only_maps_cross(tmp_path: Path) -> None:
    """A vector of means does not, nor a column of them: they are made again of the map that crosses."""
    rng = np.random.default_rng(0)
    weights = {"kernel": rng.standard_normal((4, 6, 1, 1)), "last": rng.standard_normal((3, 4, 1, 1))}
    nodes = [
        helper.make_node("Cast", ["pair"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["half", "kernel"], ["map"]),
        helper.make_node("GlobalAveragePool", ["map"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["vector"]),
        helper.make_node("ReduceMean", ["map", "width"], ["column"], keepdims=0),
        helper.make_node("Cast", ["blur_logits"], ["half_logits"], to=TensorProto.FLOAT16),
        helper.make_node("GlobalAveragePool", ["half_logits"], ["blur"]),
        helper.make_node("Flatten", ["blur"], ["one"]),
        helper.make_node("Mul", ["vector", "one"], ["scaled"]),
        helper.make_node("Unsqueeze", ["scaled", "sides"], ["scale"]),
        helper.make_node("Mul", ["map", "scale"], ["product"]),
        helper.make_node("Unsqueeze", ["column", "width"], ["columns"]),
        helper.make_node("Mul", ["columns", "blur"], ["shift"]),
        helper.make_node("Add", ["product", "shift"], ["sum"]),
        helper.make_node("Conv", ["sum", "last"], ["made"]),
        helper.make_node("Cast", ["made"], ["restored"], to=TensorProto.FLOAT),
    ]
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("pair", [1, 6, "H", "W"]), ("blur_logits", [1, 1, "h", "w"]), ("restored", None))
    }
    constants = [numpy_helper.from_array(value.astype(np.float16), name) for name, value in weights.items()]
    constants += [numpy_helper.from_array(np.array(axes), name) for name, axes in (("width", [3]), ("sides", [2, 3]))]
    graph = helper.make_graph(nodes, "means", [values["pair"], values["blur_logits"]], [values["restored"]], constants)
    path = tmp_path / "means.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    parts = cut_deblur(path, 32, tmp_path)
    assert parts is not None
    assert parts.maps == {"map": (4, 1)}
    feeds = {"pair": rng.random((1, 6, 32, 64), np.float32), "blur_logits": rng.random((1, 1, 2, 4), np.float32)}
    restored = run(parts.tail, feeds | run(parts.head, feeds))["restored"]
    np.testing.assert_allclose(restored, run(path, feeds)["restored"], rtol=0, atol=2e-2)


def test_a_network_without_a_head_is_not_cut(tmp_path: Path) -> None:
    graph = make_tiny_bundle(tmp_path, clip=False) / "deblur.fp16.onnx"
    assert cut_deblur(graph, 32, tmp_path) is None
    assert cut_parts(Part("deblur", graph, {}), 32, tmp_path) == []
    model = onnx.load(NANO)
    for node in model.graph.node:  # as where the blur map is one more channel of the pair
        if "pair" in node.input:
            node.input.append("blur_logits")
    onnx.save(model, tmp_path / "concat.onnx")
    assert cut_deblur(tmp_path / "concat.onnx", 32, tmp_path) is None


@pytest.mark.skipif(not HAS_RTX, reason="tensorrt_rtx is not installed (pip install 'ldp[rtx]')")
def test_both_plans_move_as_many_bytes_as_the_whole(tmp_path: Path) -> None:
    def planned(part: Part) -> int:
        plan = TensorRT("rtx").build(
            part.graph, part.profile, ["sm_89"], channels_last=part.channels_last, detailed=True
        )
        layers = read_report(plan.messages).layers
        return sum(tensor.bytes or 0 for layer in layers for tensor in (*layer.reads, *layer.writes))

    whole = Part("deblur", NANO, fixed(deblur_shapes(1120, 1696, 16)))
    assert sum(map(planned, cut_parts(whole, 32, tmp_path))) == pytest.approx(planned(whole), rel=2e-3)


@pytest.mark.skipif(not HAS_RTX, reason="tensorrt_rtx is not installed (pip install 'ldp[rtx]')")
@pytest.mark.parametrize("target", ["sm_75", "sm_89"])
def test_maps_lie_channels_last_without_gaps_in_both_parts(tmp_path: Path, target: str) -> None:
    """12 channels: no multiple of 8, to which other layouts would round them up."""
    graph = make_tiny_bundle(tmp_path) / "deblur.fp16.onnx"
    for part in cut_parts(Part("deblur", graph, fixed(deblur_shapes(64, 96, 16))), 32, tmp_path):
        (name,) = part.channels_last
        plan = TensorRT("rtx").build(part.graph, part.profile, [target], channels_last=[name], detailed=True)
        lines = "\n".join(plan.messages).splitlines()
        (binding,) = (line for line in lines if line.strip().startswith(f"Name: {name}, IOMode"))
        assert "Format: Non-vectorized channel-last FP16 format" in binding
        moved = [line for line in lines if f"Name: {name}, Dimensions: [1,12,32,48]" in line]
        assert moved and all(f"[1,12,32,48], Strides: [{12 * 32 * 48},1,{12 * 48},12]" in line for line in moved)
