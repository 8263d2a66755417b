"""The forms of the network that are exported: the same function, fewer nodes, and safe in FP16 and bf16."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from benchmarks.engines.graph_report import count_nodes, needless_nodes, read_report
from ldp_export.bundling.onnx_graphs import deblur_graph, save_graph
from ldp_export.bundling.quantize_graphs import _layer_nodes
from ldp_export.network import CONFIGS, LDPNet
from ldp_export.network.bpa import BPABlock
from ldp_export.network.layers import Halves, LayerNorm2d, NAFBlock, SimpleGate, SimplifiedChannelAttention
from ldp_export.network.randomise import randomise, randomise_network
from ldp_export.simulation.samples import focus_setting
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.images.quality import psnr
from ldp_runtime.registry import BACKENDS
from ldp_runtime.stages.pixels import PaddedPair
from tests.ldp_export.tiny_models import TINY_CONFIG

NANO = Path("models/ldp-nano")

RESIDUAL = 200.0
"""|x| of the residual stream, beyond what a trained NAFNet reaches."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the same function


@pytest.mark.parametrize("cell", [None, 1, 2])
def test_a_folded_naf_block_computes_the_same(cell: int | None) -> None:
    block = randomise(NAFBlock(6, cell)).double()
    folded = copy.deepcopy(block)
    folded.fold()
    assert folded.beta is folded.gamma is folded.norm1.weight is folded.norm1.bias is None
    x = 3 * noise(2, 6, 8, 4).double()
    torch.testing.assert_close(folded(x), block(x), atol=1e-5, rtol=1e-5)
    assert float((block(x) - x).detach().abs().max()) > 0.1, "the block does nothing: any form would agree"
    folded.fold()  # nothing is left to fold
    torch.testing.assert_close(folded(x), block(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("window", "hidden"), [(4, 6), (None, 6), (4, None)])
def test_a_folded_bpa_block_computes_the_same(window: int | None, hidden: int | None) -> None:
    block = randomise(BPABlock(8, 4, 3, hidden, window))
    folded = copy.deepcopy(block)
    folded.fold()
    x, blur_logits = 3 * noise(2, 8, 7, 5), noise(2, 1, 3, 2, seed=1)
    torch.testing.assert_close(folded(x, blur_logits), block(x, blur_logits), atol=2e-5, rtol=2e-5)
    assert float((block(x, blur_logits) - x).detach().abs().max()) > 0.1


def test_channel_attention_pools_alike_for_export(monkeypatch: pytest.MonkeyPatch) -> None:
    sca, x = randomise(SimplifiedChannelAttention(3, 4)), 30 * noise(2, 3, 12, 20)
    eager = sca(x)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(sca(x), eager, atol=1e-5, rtol=1e-5)
    means = SimplifiedChannelAttention._pool_cells((x + 60000).half(), 4)
    assert means.dtype == torch.float32
    assert bool(torch.isfinite(means).all()), "a sum of 16 such numbers is beyond FP16"


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, groups=8)],
    ids=["1x1", "3x3 without bias", "depthwise"],
)
def test_a_gate_of_halves_is_the_gate_of_the_whole(conv: nn.Conv2d) -> None:
    x = noise(2, conv.in_channels, 5, 4)
    source = tuple(x.chunk(2, dim=1)) if conv.groups > 1 else x
    gated, expected = SimpleGate()(Halves(conv)(source)), SimpleGate()(conv(x))
    assert gated.shape == (2, 4, 5, 4)
    torch.testing.assert_close(gated, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_blocks_compute_the_same_in_the_form_for_export(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FP32 takes the form for CPUs: means by convolution, a pooling layer."""
    naf, bpa = randomise(NAFBlock(6, 2)), randomise(BPABlock(8, 4, 3, 6, 4))
    x, y, blur_logits = 3 * noise(2, 6, 8, 4) + 5, 3 * noise(2, 8, 7, 5) + 5, noise(2, 1, 3, 2, seed=1)
    eager = naf(x), bpa(y, blur_logits)
    naf.fold()
    bpa.fold()
    assert naf.norm1.averaging is not None
    assert not [name for name in naf.state_dict() if "averaging" in name]
    naf.split_gates()
    bpa.split_gates()
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    naf, bpa, x, y = naf.to(dtype), bpa.to(dtype), x.to(dtype), y.to(dtype)
    for exported, expected, source in zip((naf(x), bpa(y, blur_logits)), eager, (x, y), strict=True):
        # bf16 rounds to 1 in 256.
        tolerance = 2e-5 if dtype == torch.float32 else 0.05 * float((expected - source).detach().abs().max())
        torch.testing.assert_close(exported.float(), expected, atol=tolerance, rtol=tolerance)


# --- the graph in half arithmetic


@dataclass(frozen=True)
class Case:
    """A network whose residual stream is large, its inputs, and what it computes in FP32."""

    network: LDPNet
    feeds: dict[str, NDArray[np.float32]]
    restored: NDArray[np.float32]

    @property
    def spread(self) -> float:
        """Standard deviation of what the network adds to the center view."""
        pair = self.feeds["pair"]
        return float((self.restored - (pair[:, :3] + pair[:, 3:]) / 2).std())


def residuals(network: LDPNet, run: Callable[[], object]) -> list[float]:
    """Largest |x| that enters each block."""
    largest: list[float] = []
    blocks = [module for module in network.modules() if isinstance(module, (NAFBlock, BPABlock))]
    hooks = [b.register_forward_pre_hook(lambda _, x: largest.append(float(x[0].abs().max()))) for b in blocks]
    run()
    for hook in hooks:
        hook.remove()
    return largest


def enlarge(conv: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A hook that scales a convolution so that its output reaches ``RESIDUAL``."""
    factor = RESIDUAL / float(output.abs().max())
    for parameter in conv.parameters():
        parameter *= factor
    return output * factor


def enlarge_residual(block: NAFBlock | BPABlock, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A hook that scales what a block adds, so that it matters beside the stream."""
    assert block.beta is not None
    assert block.gamma is not None
    factor = RESIDUAL / float((output - inputs[0]).abs().max())
    block.beta *= factor
    block.gamma *= factor
    return block.forward(*inputs)


@pytest.fixture(scope="module")
def case() -> Case:
    network = randomise_network(LDPNet(TINY_CONFIG), 4)
    pair, logits = torch.rand(1, 6, 32, 48, generator=torch.Generator().manual_seed(0)), 4 * noise(1, 1, 2, 3)
    convolutions = (network.intro, *network.downs, *(up[0] for up in network.ups))
    blocks = [module for module in network.modules() if isinstance(module, (NAFBlock, BPABlock))]
    with torch.no_grad():
        hooks = [conv.register_forward_hook(enlarge) for conv in convolutions]
        hooks += [block.register_forward_hook(enlarge_residual) for block in blocks]
        network(pair, logits)
        for hook in hooks:
            hook.remove()
        network.ending.weight /= RESIDUAL
        restored = network(pair, logits)
        large = residuals(network, lambda: network(pair, logits))
    assert min(large) > 0.75 * RESIDUAL, large
    return Case(network, {"pair": pair.numpy(), "blur_logits": logits.numpy()}, restored.numpy())


def assert_close(restored: NDArray[Any], case: Case, tolerance: float) -> None:
    """``tolerance`` is the RMS error allowed, as a share of the spread of what the network adds."""
    assert restored.dtype == np.float32
    error = np.abs(restored - case.restored)
    assert float(np.sqrt(np.mean(error**2))) < tolerance * case.spread, (
        f"mean {error.mean():.3g}, max {error.max():.3g} at {np.unravel_index(error.argmax(), error.shape)}, "
        f"of a residual of {case.spread:.3g}"
    )


def half_graph(network: LDPNet, path: Path) -> Path:
    save_graph(deblur_graph(network, TINY_CONFIG.multiple, half=True), path)
    return path


@pytest.fixture(scope="module")
def graph(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return half_graph(case.network, tmp_path_factory.mktemp("graphs") / "deblur.fp16.onnx")


def run_in_half(path: Path, feeds: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """Every tensor of a graph, computed node by node by ONNX's reference: FP16 nodes round and overflow as FP16.

    A runtime for CPUs may compute them in FP32 and hide an overflow.
    """
    model = onnx.load(path)
    kinds = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info
    for node in model.graph.node:
        for name in node.output:
            if name not in {output.name for output in model.graph.output}:
                model.graph.output.append(next(kind for kind in kinds if kind.name == name))
    with np.errstate(all="ignore"):
        values = ReferenceEvaluator(model).run(None, feeds)
    return {end.name: value for end, value in zip(model.graph.output, values, strict=True)}


def test_large_residuals_pass_the_fp16_graph_in_half_arithmetic(case: Case, graph: Path) -> None:
    values = run_in_half(graph, case.feeds)
    halves = {name: value for name, value in values.items() if value.dtype == np.float16}
    assert len(halves) > 50
    infinite = [name for name, value in values.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
    assert not infinite
    assert max(float(np.abs(value).max()) for value in halves.values()) > RESIDUAL
    assert_close(values["restored"], case, 0.03)


def naive_form(path: Path) -> onnx.ModelProto:
    """The graph without its FP32 islands: inputs and all else FP16, means as sums over counts."""
    model = onnx.load(path)
    for end in model.graph.input:
        end.type.tensor_type.elem_type = TensorProto.FLOAT16
    sizes = {name for node in model.graph.node if node.op_type == "Resize" for name in node.input[1:]}
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and weight.name not in sizes:
            array = onnx.numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    nodes = []
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        if node.op_type == "ReduceMean":
            (mean,) = node.output
            node.op_type, node.output[0] = "ReduceSum", f"{mean}_sum"
            shape = helper.make_node("Shape", [node.input[0]], [f"{mean}_shape"])
            sides = helper.make_node("Gather", [f"{mean}_shape", node.input[1]], [f"{mean}_sides"])
            count = helper.make_node("ReduceProd", [f"{mean}_sides"], [f"{mean}_count"], keepdims=0)
            half = helper.make_node("Cast", [f"{mean}_count"], [f"{mean}_half"], to=TensorProto.FLOAT16)
            nodes += [node, shape, sides, count, half, helper.make_node("Div", [f"{mean}_sum", f"{mean}_half"], [mean])]
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, kind, None)
        for name, kind in [("restored", TensorProto.UNDEFINED)]
        + [(node.output[0], TensorProto.FLOAT16) for node in nodes if node.op_type == "ReduceSum"]
    )
    return model


def test_the_naive_form_overflows_on_the_same_input(case: Case, graph: Path) -> None:
    """The negative control: normalisations that keep their sums of squares in FP16 lose the image."""
    model = naive_form(graph)
    with np.errstate(all="ignore"):
        feeds = {name: array.astype(np.float16) for name, array in case.feeds.items()}
        restored, *sums = ReferenceEvaluator(model).run(None, feeds)
    assert {array.dtype for array in sums} == {np.dtype(np.float16)}
    assert sum(bool(np.isinf(array).any()) for array in sums) >= 4
    error = restored.astype(np.float32) - case.restored
    assert not np.sqrt(np.mean(error**2)) < 0.3 * case.spread, "the image should be lost; NaN is so too"


# --- nodes


def test_casts_are_those_of_the_islands_and_nothing_is_needless(case: Case, graph: Path) -> None:
    counts = count_nodes(graph)
    modules = list(case.network.modules())

    def number(kind: type[nn.Module]) -> int:
        return sum(isinstance(module, kind) for module in modules)

    # In and out of FP32: each normalisation, each local pooling, each softmax; the pair and the blur logits come in,
    # the output goes out, and the mask of keys outside the map is made in the network's type.
    islands = number(LayerNorm2d) + number(SimplifiedChannelAttention) + number(BPABlock)
    assert counts["Cast"] <= 2 * islands + 3 + number(BPABlock)
    # Stem and end shuffle pixels; an attention cuts three windows, places its kernels, splits and joins its heads.
    assert counts["Transpose"] <= 12 * number(BPABlock) + 2
    assert not needless_nodes(graph)


def test_the_graph_for_cpus_reduces_no_map_and_has_the_layers_of_the_other(
    case: Case, graph: Path, tmp_path: Path
) -> None:
    path = tmp_path / "deblur.onnx"
    save_graph(deblur_graph(case.network, TINY_CONFIG.multiple, half=False), path)
    assert_close(BACKENDS["onnxruntime"].open(path, "fp32").run(case.feeds)["restored"], case, 1e-5)
    counts, halves = count_nodes(path), count_nodes(graph)
    norms = sum(isinstance(module, LayerNorm2d) for module in case.network.modules())
    assert counts["ReduceMean"] == 0 < halves["ReduceMean"]
    gated = sum(3 if isinstance(m, NAFBlock) else isinstance(m, BPABlock) for m in case.network.modules())
    assert counts["Conv"] == halves["Conv"] + 2 * norms + gated
    assert not needless_nodes(path)
    layers = [_layer_nodes(onnx.load(file).graph) for file in (path, graph)]  # what is quantised
    assert [nodes[0].op_type for nodes in layers[0]] == [nodes[0].op_type for nodes in layers[1]]
    assert sum(len(nodes) == 2 for nodes in layers[0]) == gated
    assert all(len(nodes) == 1 for nodes in layers[1])


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


def test_tensorrt_fuses_attention_normalisation_and_pooling(nano_bundle: Path) -> None:
    """What the builder says of the engine: one layer an attention, one a normalisation, no FP32 copy of a map."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed (pip install 'ldp[rtx]')")
    from ldp_export.bundling.tensorrt_builder import TensorRT
    from ldp_runtime.bundle.engines import ShapeRange, deblur_shapes

    network = LDPNet(CONFIGS["nano"])
    shapes = deblur_shapes(256, 384, 16)
    profile = {name: ShapeRange(shape, shape, shape) for name, shape in shapes.items()}
    plan = TensorRT("rtx").build(nano_bundle / "deblur.fp16.onnx", profile, ["sm_86"], detailed=True)
    assert not plan.warnings
    report = read_report(plan.messages)
    assert 100 < len(report.layers) < plan.layers / 5
    assert report.attentions == sum(isinstance(module, BPABlock) for module in network.modules()) == 1
    normalised = [layer for layer in report.layers if "MeanSubMulMean" in layer.name]
    assert len(normalised) == sum(isinstance(module, LayerNorm2d) for module in network.modules())
    pooled = [layer for layer in report.layers if "CastMean" in layer.name and layer not in normalised]
    assert len(pooled) == sum(isinstance(module, SimplifiedChannelAttention) for module in network.modules())
    assert report.bytes is not None
    # Full maps of the first scale are 256/2 x 384/2 x 32 FP16 numbers.
    assert 50 < report.bytes / (128 * 192 * 32 * 2) < 160
    assert report.activation_bytes is not None
    assert report.activation_bytes > 128 * 192 * 64 * 2


def test_a_report_of_something_else_is_empty() -> None:
    report = read_report(["Building.", "Name: x"])
    assert (report.layers, report.bytes, report.activation_bytes) == ((), None, None)


# --- the graph for CPUs in bf16


def rounded_to_bf16(path: Path, output: Path) -> int:
    """Writes a graph that rounds what a CPU with bf16 keeps in it: weights, and every map up to the last convolution.

    The sum with the center view stays in FP32, as in OpenVINO. Rounding is Veltkamp's, since ONNX Runtime takes a cast
    and its way back out of a graph.

    Returns:
        How many maps are rounded.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    makers = {name: node for node in graph.node for name in node.output}
    before, pending = set(), [next(node for node in reversed(graph.node) if node.op_type == "Conv").input[0]]
    while pending:
        name = pending.pop()
        if name in makers and name not in before:
            before.add(name)
            pending += makers[name].input
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT and len(weight.dims) > 1:
            array = torch.from_numpy(onnx.numpy_helper.to_array(weight).copy()).bfloat16().float().numpy()
            weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    graph.initializer.append(onnx.numpy_helper.from_array(np.float32(2**16 + 1), "split"))
    nodes, rounded = [], 0
    for node in graph.node:
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in before and kinds.get(name) == TensorProto.FLOAT:
                node.output[i] = f"{name}_exact"
                scaled, rest = f"{name}_scaled", f"{name}_rest"
                nodes += [
                    helper.make_node("Mul", [node.output[i], "split"], [scaled]),
                    helper.make_node("Sub", [scaled, node.output[i]], [rest]),
                    helper.make_node("Sub", [scaled, rest], [name]),
                ]
                rounded += 1
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    onnx.save(model, output)
    return rounded


def run_as_it_stands(path: Path, feeds: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    (restored,) = ort.InferenceSession(path, options).run(["restored"], feeds)
    return restored


def test_bf16_costs_little_where_no_cpu_here_has_it(tmp_path: Path) -> None:
    bundle = Bundle.load(NANO)
    path = tmp_path / "deblur.bf16.onnx"
    assert rounded_to_bf16(bundle.graph("deblur"), path) > 300
    pair = focus_setting("near")
    left, right, target = (view[:256, 160:544] for view in (pair.left, pair.right, pair.target))
    deblurrer = Deblurrer(bundle, backend="onnxruntime", precision="fp32")
    exact = deblurrer(left, right)
    source = PaddedPair(left, right, left.shape[:2]).region(0, 0, *left.shape[:2])
    feeds = {"pair": source[None], "blur_logits": exact.blur_logits[None, None]}
    images = [run_as_it_stands(graph, feeds)[0].transpose(1, 2, 0) for graph in (bundle.graph("deblur"), path)]
    full, rounded = (psnr(np.clip(image, 0, 1), target / np.float32(255), data_range=1) for image in images)
    assert 50 < psnr(images[1], images[0], data_range=1) < 80, "rounding has no effect, or too much"
    assert abs(rounded - full) < 0.02, f"{full:.4f} dB became {rounded:.4f}"
    assert full > psnr((left / 255 + right / 255) / 2, target / 255, data_range=1) + 2, "the network does nothing"
