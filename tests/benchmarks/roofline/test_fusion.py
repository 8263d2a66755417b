"""Which nodes run as one kernel, rule by rule, and what holds for whole networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from benchmarks.roofline.flops import GraphCost, graph_cost
from benchmarks.roofline.fusion import EXTRA, FusedGraph, fuse, unfused
from ldp_runtime.bundle.bundle import Bundle

NANO = Path(__file__).resolve().parents[3] / "models" / "ldp-nano"
PLANE = 4 * 8 * 8 * 2  # bytes of four channels of 8 x 8 in FP16


def graph_of(path: Path, nodes: list, outputs: str, channels: int = 4, **weights: np.ndarray) -> GraphCost:
    """A graph on ``x (1, channels, 8, 8)`` in FP16; one-letter outputs."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, channels, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return graph_cost(path, {"x": (1, channels, 8, 8)})


def half(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float16)


def moved(fused: FusedGraph) -> list[tuple[str, int, int]]:
    return [(k.kind, sum(k.reads.values()), sum(k.writes.values())) for k in fused.kernels]


def conv(source: str, weight: str, result: str, **attributes: object) -> object:
    return helper.make_node("Conv", [source, weight], [result], **attributes)


def test_pointwise_chains_and_the_gate_run_in_the_convolution(tmp_path: Path) -> None:
    nodes = [
        conv("x", "w", "a"),
        helper.make_node("Split", ["a"], ["b", "c"], axis=1, num_outputs=2),
        helper.make_node("Mul", ["b", "c"], ["d"]),
        helper.make_node("Add", ["d", "x"], ["e"]),
    ]
    fused = fuse(graph_of(tmp_path / "m.onnx", nodes, "e", w=half(8, 4, 1, 1)))
    assert moved(fused) == [("matrix", PLANE + 64, PLANE)]  # x once though two nodes read it; the gate never leaves


def test_a_result_with_more_elements_is_not_fused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["a"]),
        conv("a", "w", "b"),
        helper.make_node("Mul", ["x", "b"], ["y"]),
    ]
    fused = fuse(graph_of(tmp_path / "m.onnx", nodes, "y", w=half(4, 4, 1, 1)))
    assert [kernel.kind for kernel in fused.kernels] == ["pool", "matrix", "pointwise"]
    assert moved(fused)[2] == ("pointwise", PLANE + 8, PLANE)


def test_a_spelt_out_layer_norm_is_one_pass(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["wide", "axes"], ["mean"]),
        helper.make_node("Sub", ["wide", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axes"], ["variance"]),
        helper.make_node("Sqrt", ["variance"], ["deviation"]),
        helper.make_node("Div", ["centred", "deviation"], ["normal"]),
        helper.make_node("Cast", ["normal"], ["n"], to=TensorProto.FLOAT16),
        conv("n", "w", "y"),
    ]
    graph = graph_of(tmp_path / "m.onnx", nodes, "y", axes=np.array([1], np.int64), w=half(4, 4, 1, 1))
    fused = fuse(graph)
    assert moved(fused) == [("norm", PLANE, PLANE), ("matrix", PLANE + 32, PLANE)]
    more = fuse(graph, ("layer norm in the convolution after it",))
    assert moved(more) == [("matrix", PLANE + 32, PLANE)]


def test_attention_is_one_kernel_that_keeps_its_map(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["q"]),
        helper.make_node("Transpose", ["q"], ["k"], perm=[1, 0]),
        helper.make_node("MatMul", ["q", "k"], ["logits"]),
        helper.make_node("Div", ["logits", "beta"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mask"], ["masked"]),
        helper.make_node("Cast", ["masked"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["wide"], ["soft"]),
        helper.make_node("Cast", ["soft"], ["p"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["p", "q"], ["y"]),
    ]
    weights = {"rows": np.array([64, 4], np.int64), "beta": np.array(2, np.float16), "mask": half(64, 64)}
    fused = fuse(graph_of(tmp_path / "m.onnx", nodes, "y", **weights))
    assert [kernel.kind for kernel in fused.kernels] == ["attention"]
    assert fused.kernels[0].matrix_flops == 2 * (2 * 64 * 64 * 4)
    assert sum(fused.kernels[0].reads.values()) <= 2 * PLANE + 2 + 64 * 64 * 2
    assert sum(fused.kernels[0].writes.values()) == PLANE


def test_joining_whole_results_is_free_and_joining_parts_is_a_copy(tmp_path: Path) -> None:
    nodes = [
        conv("x", "w", "a"),
        conv("a", "w", "b"),
        helper.make_node("Concat", ["a", "b"], ["c"], axis=1),
        conv("c", "v", "y"),
    ]
    fused = fuse(graph_of(tmp_path / "m.onnx", nodes, "y", w=half(4, 4, 1, 1), v=half(4, 8, 1, 1)))
    assert [kernel.kind for kernel in fused.kernels] == ["matrix"] * 3
    assert moved(fused)[2] == ("matrix", 2 * PLANE + 64, PLANE)

    ends = {"start": np.array([0], np.int64), "end": np.array([4], np.int64), "axis": np.array([3], np.int64)}
    nodes = [
        conv("x", "w", "a"),
        helper.make_node("Slice", ["a", "start", "end", "axis"], ["s"]),
        helper.make_node("Concat", ["a", "s"], ["c"], axis=3),
        conv("c", "w", "y"),
    ]
    fused = fuse(graph_of(tmp_path / "n.onnx", nodes, "y", w=half(4, 4, 1, 1), **ends))
    assert [kernel.kind for kernel in fused.kernels] == ["matrix", "copy", "matrix"]
    assert moved(fused)[1] == ("copy", PLANE, PLANE * 3 // 2)


def test_a_cache_saves_what_fits_between_kernels_and_nothing_else(tmp_path: Path) -> None:
    nodes = [conv("x", "w", "a"), conv("a", "w", "y")]
    fused = fuse(graph_of(tmp_path / "m.onnx", nodes, "y", w=half(4, 4, 1, 1)))
    first, second = fused.kernels
    assert [fused.nbytes(k) for k in (first, second)] == [2 * PLANE + 32] * 2
    assert [fused.nbytes(k, PLANE) for k in (first, second)] == [PLANE + 32] * 2
    assert [fused.nbytes(k, PLANE - 1) for k in (first, second)] == [2 * PLANE + 32] * 2


@pytest.fixture(scope="module", params=["deblur", "clip"])
def nano(request: pytest.FixtureRequest) -> GraphCost:
    sizes = {
        "deblur": {"pair": (1, 6, 128, 192), "blur_logits": (1, 1, 8, 12)},
        "clip": {"stereo": (2, 3, 128, 256), "center": (2, 3, 128, 128)},
    }
    return graph_cost(Bundle.load(NANO).graph(request.param, "fp16"), sizes[request.param])


def test_nothing_is_lost_and_no_kernel_waits_for_a_later_one(nano: GraphCost) -> None:
    fused = fuse(nano)
    nodes = [id(node) for kernel in fused.kernels for node in kernel.nodes]
    assert len(nodes) == len(set(nodes))
    assert sum(kernel.matrix_flops for kernel in fused.kernels) == nano.matrix_flops
    assert sum(kernel.vector_flops for kernel in fused.kernels) == nano.vector_flops
    assert all(kernel.writes for kernel in fused.kernels)
    made = set(nano.inputs)
    for kernel in fused.kernels:
        unmade = [name for name in kernel.reads if name not in made and not nano.tensors[name].constant]
        assert unmade == []
        made |= kernel.writes.keys()


def test_each_fusion_more_moves_fewer_bytes(nano: GraphCost) -> None:
    def total(fused: FusedGraph) -> int:
        return sum(fused.nbytes(kernel) for kernel in fused.kernels)

    names = tuple(EXTRA)
    steps = [fuse(nano, names[:count]) for count in range(len(names) + 1)]
    totals = [total(unfused(nano)), *map(total, steps)]
    assert totals == sorted(totals, reverse=True)
    assert totals[1] < totals[0] / 2
    assert {sum(k.matrix_flops for k in fused.kernels) for fused in steps} == {nano.matrix_flops}
