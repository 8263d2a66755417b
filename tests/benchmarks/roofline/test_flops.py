"""FLOPs and bytes of graphs: by hand on small ones, and against torch's own counter on the networks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.results import BenchmarkError
from benchmarks.roofline.flops import BATCH_NORM_FLOPS, RESIZE_FLOPS, SOFTMAX_FLOPS, graph_cost
from ldp_export.bundling.onnx_graphs import deblur_graph, save_graph
from ldp_export.network import CONFIGS, LDPConfig, LDPNet
from ldp_export.network.randomise import randomise
from ldp_runtime.bundle.bundle import Bundle

NANO = Path(__file__).resolve().parents[3] / "models" / "ldp-nano"
TINY = LDPConfig(
    "tiny",
    width=8,
    encoder=(1,),
    middle=1,
    decoder=(1,),
    bpa=("encoder", "middle"),
    head_dim=8,
    kernel=3,
    window=4,
    kernel_hidden=4,
    sca_cell=8,
)


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int | str]],
    outputs: Sequence[str],
    weights: dict[str, np.ndarray] | None = None,
    dtype: int = TensorProto.FLOAT,
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_a_normalisation_by_constants_is_a_scale_and_a_shift(tmp_path: Path) -> None:
    node = helper.make_node("BatchNormalization", ["x", "a", "b", "m", "v"], ["y"])
    path = write(tmp_path / "bn.onnx", [node], {"x": [1, 3, 4, 5]}, ["y"], {n: np.ones(3, np.float32) for n in "abmv"})
    cost = graph_cost(path, {"x": (1, 3, 4, 5)})
    assert (cost.vector_flops, cost.contraction_flops) == (BATCH_NORM_FLOPS * 3 * 4 * 5, 0)


def test_a_convolution_is_counted_by_hand(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1])
    path = write(tmp_path / "m.onnx", [node], {"x": [1, 3, "H", "W"]}, ["y"], {"w": zeros(8, 3, 3, 3), "b": zeros(8)})
    cost = graph_cost(path, {"x": (1, 3, 16, 32)})
    out = 8 * 8 * 16
    assert cost.tensors["y"].shape == (1, 8, 8, 16)
    assert cost.matrix_flops == 2 * out * 27
    assert cost.vector_flops == out  # the bias


def test_a_depthwise_convolution_is_no_work_for_tensor_cores(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=4, pads=[1, 1, 1, 1])
    path = write(tmp_path / "m.onnx", [node], {"x": [1, 4, 8, 8]}, ["y"], {"w": zeros(4, 1, 3, 3)})
    cost = graph_cost(path, {"x": (1, 4, 8, 8)})
    assert (cost.matrix_flops, cost.vector_flops, cost.contraction_flops) == (0, 2 * 9 * 256, 2 * 9 * 256)


@pytest.mark.parametrize(
    ("node", "inputs", "weights", "flops"),
    [
        (helper.make_node("MatMul", ["x", "w"], ["y"]), (2, 5, 7), zeros(7, 3), 2 * 2 * 5 * 7 * 3),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), (7, 5), zeros(7, 3), 2 * 5 * 7 * 3),
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
            (1, 4, 5, 6),
            zeros(4, 2, 2, 2),
            2 * 4 * 5 * 6 * 2 * 4,
        ),
    ],
)
def test_matrix_products_are_counted_by_hand(
    tmp_path: Path, node: onnx.NodeProto, inputs: tuple[int, ...], weights: np.ndarray, flops: int
) -> None:
    path = write(tmp_path / "m.onnx", [node], {"x": inputs}, ["y"], {"w": weights})
    assert graph_cost(path, {"x": inputs}).matrix_flops == flops


def test_pools_reductions_softmax_and_resize(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("AveragePool", ["x"], ["a"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("ReduceMean", ["x", "axes"], ["b"], keepdims=1),
        helper.make_node("Softmax", ["x"], ["c"], axis=1),
        helper.make_node("Resize", ["x", "", "scales"], ["d"], mode="linear"),
    ]
    weights = {"axes": np.array([1], np.int64), "scales": np.array([1, 1, 2, 2], np.float32)}
    cost = graph_cost(write(tmp_path / "m.onnx", nodes, {"x": [1, 4, 8, 8]}, "abcd", weights), {"x": (1, 4, 8, 8)})
    assert [node.vector_flops for node in cost.nodes] == [256, 256, SOFTMAX_FLOPS * 256, RESIZE_FLOPS * 1024]


def test_what_depends_on_shapes_alone_is_a_constant_and_costs_nothing(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=2, end=4),
        helper.make_node("ReduceProd", ["s"], ["n"], keepdims=0),
        helper.make_node("Range", ["zero", "n", "one"], ["r"]),
        helper.make_node("Cast", ["r"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["minus", "n1"], ["to"], axis=0),
        helper.make_node("Reshape", ["n", "first"], ["n1"]),
        helper.make_node("Reshape", ["x", "to"], ["flat"]),
        helper.make_node("Add", ["flat", "f"], ["y"]),
    ]
    nodes[4], nodes[5] = nodes[5], nodes[4]
    weights = {
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "minus": np.array([-1], np.int64),
        "first": np.array([1], np.int64),
    }
    path = write(tmp_path / "m.onnx", nodes, {"x": [1, 2, "H", "W"]}, ["y"], weights)
    cost = graph_cost(path, {"x": (1, 2, 3, 5)})
    assert [node.op for node in cost.nodes] == ["Reshape", "Add"]
    assert cost.tensors["f"].constant and cost.tensors["f"].shape == (15,)
    assert cost.tensors["y"].shape == (2, 15)
    assert [node.vector_flops for node in cost.nodes] == [0, 30]


def test_weights_beside_the_graph_are_not_read(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = write(tmp_path / "m.onnx", [node], {"x": [2, 64]}, ["y"], {"w": zeros(64, 64)})
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").unlink()
    assert graph_cost(path, {"x": (2, 64)}).matrix_flops == 2 * 2 * 64 * 64


def test_errors_say_what_is_wrong(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("Det", ["x"], ["y"])], {"x": [2, 2]}, ["y"])
    with pytest.raises(BenchmarkError, match="expected sizes of the inputs x, got z"):
        graph_cost(path, {"z": (2, 2)})
    with pytest.raises(BenchmarkError, match="got Det"):
        graph_cost(path, {"x": (2, 2)})
    free = write(tmp_path / "n.onnx", [helper.make_node("NonZero", ["x"], ["y"])], {"x": [2, 2]}, ["y"])
    with pytest.raises(BenchmarkError, match="expected a shape of NonZero"):
        graph_cost(free, {"x": (2, 2)})


def torch_flops(network: LDPNet, H: int, W: int) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 6, H, W), torch.zeros(1, 1, H // 16, W // 16))
    return int(counter.get_total_flops())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_nano_agrees_with_torchs_counter(precision: str) -> None:
    graph = Bundle.load(NANO).graph("deblur", precision)
    cost = graph_cost(graph, {"pair": (1, 6, 64, 96), "blur_logits": (1, 1, 4, 6)})
    expected = torch_flops(LDPNet(CONFIGS["nano"]), 64, 96)
    assert cost.contraction_flops == pytest.approx(expected, rel=0.01)
    assert cost.tensors["restored"].shape == (1, 3, 64, 96)


@pytest.mark.slow
def test_a_small_like_network_agrees_with_torchs_counter(tmp_path: Path) -> None:
    network = randomise(LDPNet(TINY))
    path = tmp_path / "deblur.onnx"
    save_graph(deblur_graph(network.eval(), 16, half=True), path)  # the FP32 graph takes means by convolution
    for H, W in ((32, 48), (80, 64)):  # windows of 4 x 4 fit at one size and have to be padded at the other
        cost = graph_cost(path, {"pair": (1, 6, H, W), "blur_logits": (1, 1, H // 16, W // 16)})
        assert cost.contraction_flops == pytest.approx(torch_flops(network, H, W), rel=0.01)
