import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ldp_export.bundling import quantize, quantize_pairs
from ldp_export.bundling.quantize import QualityError, quantize_bundle
from ldp_export.bundling.quantize_graphs import QuantizeError, place, role
from ldp_export.bundling.quantize_pairs import LabelledPair, PairSets, simulated_pairs
from ldp_export.cli import main
from ldp_export.simulation import samples
from ldp_runtime.bundle.bundle import Bundle, read_manifest, save_manifest
from ldp_runtime.bundle.manifest import GRAPHS, BlurMapSpec
from ldp_runtime.cli import main as run_ldp
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import BundleError
from ldp_runtime.images.quality import psnr
from tests.ldp_runtime.tiny_bundle import make_engine, rewrite
from tests.sample import SAMPLE, near_sample


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LDP_CONFIG", str(tmp_path / "config"))


@pytest.fixture
def tiny(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "bundles" / "tiny")


@pytest.fixture(scope="module")
def quantized(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with all of its layers in INT8."""
    folder = tmp_path_factory.mktemp("bundles") / "int8"
    quantize_bundle(Bundle.load(pristine), pairs(), folder, max_loss=5, threads=1)
    return folder


def pair(seed: int) -> LabelledPair:
    """Smooth noise of 64 x 96 px; the target is the center view with more contrast."""
    rng = np.random.default_rng(seed)
    views = [cv2.resize(rng.random((8, 12, 3), np.float32), (96, 64), interpolation=cv2.INTER_CUBIC) for _ in range(2)]
    left, right = ((255 * view.clip(0, 1)).astype(np.uint8) for view in views)
    center = (left.astype(np.float32) + right) / 2
    return LabelledPair(left, right, np.clip(1.1 * center - 10, 0, 255).astype(np.uint8))


def pairs() -> PairSets:
    return PairSets("noise", [pair(0), pair(1)], [pair(2), pair(3)], {"noise": [pair(4)]})


def state(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def restore(folder: Path, backend: str, precision: str) -> tuple[Any, Any]:
    deblurrer = Deblurrer.from_bundle(folder, backend=backend, precision=precision, threads=1)
    left, right = (view.astype(np.uint16) * 257 for view in (pair(4).left, pair(4).right))
    result = deblurrer(left, right)
    return result.restored, result.blur_logits


def quantised_layers(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, list[TensorProto], list[TensorProto]]]:
    """Both layers of a tiny graph: node; kernel, scale and zero point of its weight; the latter two of its input."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(layers) == 2
    found = []
    for layer in layers:
        taken, weight = (made_by[name] for name in layer.input[:2])
        assert [taken.op_type, weight.op_type] == ["DequantizeLinear"] * 2
        assert made_by[taken.input[0]].op_type == "QuantizeLinear"
        assert all(name in weights for name in layer.input[2:])  # the bias stays in float
        found.append((layer, [weights[name] for name in weight.input], [weights[name] for name in taken.input[1:]]))
    return found


@pytest.mark.parametrize("kind", GRAPHS)
def test_layers_take_int8(quantized: Path, kind: str) -> None:
    model = onnx.load(Bundle.load(quantized).graph(kind, "int8"))
    for layer, (kernel, scale, zero), (activation, zero_point) in quantised_layers(model):
        values = numpy_helper.to_array(kernel)
        assert kernel.data_type == TensorProto.INT8
        assert 60 <= np.abs(values.astype(int)).max() <= 64  # 7 bits: x86 CPUs without VNNI overflow with 8
        assert scale.dims == [values.shape[0]]
        assert not numpy_helper.to_array(zero).any()
        assert activation.data_type == TensorProto.FLOAT and activation.dims == []
        assert zero_point.data_type == TensorProto.INT8 and not numpy_helper.to_array(zero_point).any()
        readers = {node.op_type for node in model.graph.node if layer.output[0] in node.input}
        assert "QuantizeLinear" not in readers  # so do outputs
    if kind == "deblur":
        assert [(x.name, x.type.tensor_type.elem_type) for x in model.graph.output] == [("restored", TensorProto.FLOAT)]


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_int8_restores_what_float_restores(quantized: Path, backend: str) -> None:
    exact, logits = restore(quantized, backend, "fp32")
    image, rounded = restore(quantized, backend, "int8")
    assert (image != exact).any() and (rounded != logits).any()
    assert psnr(image, exact, data_range=65535) > 45
    assert np.abs(rounded - logits).max() < 0.1


def test_openvino_computes_the_layers_in_int8(quantized: Path) -> None:
    from ldp_runtime.backends import openvino

    config = {"INFERENCE_PRECISION_HINT": "f32"}
    for precision, wanted in (("int8", True), ("fp32", False)):
        compiled = openvino._core().compile_model(Bundle.load(quantized).graph("deblur", precision), "CPU", config)
        infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
        kinds = [str(i["primitiveType"].value) for i in infos if i["layerType"].value == "Convolution"]
        assert len(kinds) == 2
        assert all(("I8" in kind.upper()) is wanted for kind in kinds), kinds


def test_the_copy_is_whole_and_says_how_it_was_made(quantized: Path, pristine: Path) -> None:
    manifest = Bundle.load(quantized).manifest
    before = read_manifest(pristine)
    made = {f"{kind}.int8.onnx" for kind in GRAPHS}
    assert manifest.files.keys() == before.files.keys() | made
    assert manifest.graphs["deblur"] == {
        "fp32": "deblur.onnx",
        "fp16": "deblur.fp16.onnx",
        "int8": "deblur.int8.onnx",
    }
    record = manifest.quantization["int8"]
    assert record["quantizer"].startswith("onnxruntime ")
    assert (record["pairs"], record["calibration_pairs"]) == ("noise", 2)
    assert {row["group"]: row["precision"] for row in record["groups"]} == {
        "deblur constant_5 3x3": "int8",
        "deblur constant_7 3x3": "int8",
        "clip constant_0 16x16": "int8",
    }
    costs = [row["noise"] / row["macs_share"] for row in record["groups"]]
    assert costs == sorted(costs, reverse=True) and costs[-1] > 0
    assert record["macs_share"] == {"clip": 1.0, "deblur": 1.0}
    figures = record["check"]["noise"]
    assert figures["passed"] and 0 < abs(figures["delta_db"]) <= 5
    assert sorted(p.name for p in quantized.parent.iterdir()) == [quantized.name]  # nothing staged is left


def test_the_same_pairs_give_the_same_graphs(quantized: Path, tiny: Path) -> None:
    quantize_bundle(Bundle.load(tiny), pairs(), max_loss=5, threads=1)
    assert read_manifest(tiny).files == read_manifest(quantized).files
    assert set(state(tiny)) == set(state(quantized))


def test_an_engine_that_is_built_meanwhile_stays_in_the_manifest(tiny: Path) -> None:
    bundle = Bundle.load(tiny)
    engine = make_engine(tiny, b"plan")
    save_manifest(tiny, msgspec.structs.replace(bundle.manifest, engines=(engine,)))
    quantize_bundle(bundle, pairs(), max_loss=5, threads=1)
    assert read_manifest(tiny).engines == (engine,)


def test_what_costs_most_for_its_work_stays_in_float(tiny: Path, quantized: Path) -> None:
    record = read_manifest(quantized).quantization["int8"]
    everything = abs(record["selection"]["delta_db"])  # with all layers in INT8
    limit = 0.9 * everything / quantize.SELECTION_SHARE
    sets = dataclasses.replace(pairs(), check={})
    got = quantize_bundle(Bundle.load(tiny), sets, max_loss=limit, threads=1).quantization["int8"]
    worst = record["groups"][0]["group"]
    assert [row["group"] for row in got["groups"] if row["precision"] == "float"] == [worst]
    assert 0 < abs(got["selection"]["delta_db"]) <= 0.9 * everything
    kind = worst.split()[0]
    assert got["macs_share"][kind] == pytest.approx(1 - record["groups"][0]["macs_share"], abs=1e-3)
    for each in GRAPHS:
        nodes = onnx.load(tiny / f"{each}.int8.onnx").graph.node
        in_float = sum(row["layers"] for row in got["groups"] if row["group"] == worst and each == kind)
        assert sum(node.op_type == "QuantizeLinear" for node in nodes) == 2 - in_float


def test_with_no_loss_allowed_all_stays_in_float(tiny: Path) -> None:
    manifest = quantize_bundle(Bundle.load(tiny), pairs(), max_loss=1e-9, threads=1)
    assert {row["precision"] for row in manifest.quantization["int8"]["groups"]} == {"float"}
    assert manifest.quantization["int8"]["check"]["noise"]["delta_db"] == 0
    np.testing.assert_array_equal(restore(tiny, "onnxruntime", "int8")[0], restore(tiny, "onnxruntime", "fp32")[0])


def test_a_failed_check_writes_nothing(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quantize, "SELECTION_SHARE", 1e9)
    before = state(tiny)
    with pytest.raises(QualityError, match=r"INT8 on noise: expected a change in PSNR .* at most 1e-09 dB, got [+-]0"):
        quantize_bundle(Bundle.load(tiny), pairs(), max_loss=1e-9, threads=1)
    assert state(tiny) == before
    monkeypatch.setattr(quantize_pairs, "simulated_sets", lambda count, seed: pairs())
    assert main(["quantize", str(tiny), "--max-loss", "1e-9", "--threads", "1"]) == 1
    output = capsys.readouterr()
    assert "deblur constant_5 3x3" in output.out  # the table shows what to look at
    assert "nothing was written; give more --pairs or a larger --max-loss" in output.err
    assert state(tiny) == before
    assert sorted(p.name for p in tiny.parent.iterdir()) == ["tiny"]


def test_a_bundle_without_int8_graphs_says_the_mend(tiny: Path) -> None:
    assert "quantization" not in json.loads((tiny / "bundle.json").read_bytes())
    for backend in ("openvino", "onnxruntime"):
        with pytest.raises(BundleError, match=r"expected a int8 .* graph .*; .* make it with ldp-export quantize"):
            restore(tiny, backend, "int8")


def test_bundles_and_limits_that_do_not_fit(tiny: Path) -> None:
    with pytest.raises(QuantizeError, match="expected a largest loss above 0 dB, got 0"):
        quantize_bundle(Bundle.load(tiny), pairs(), max_loss=0)
    bundle = Bundle.load(tiny)
    spec = BlurMapSpec("patch", "map", 40)
    released = dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, blur_map=spec))
    with pytest.raises(QuantizeError, match="which is of another kind; run it in fp32 or fp16"):
        quantize_bundle(released, pairs())
    half = onnx.load(tiny / "deblur.fp16.onnx")
    half.graph.node.remove(next(node for node in half.graph.node if node.op_type == "Conv"))
    onnx.save(half, tiny / "deblur.fp16.onnx")
    rewrite(tiny)
    quantize_bundle(Bundle.load(tiny), pairs(), max_loss=5, threads=1)  # INT8 asks for no FP16 graph
    graph = onnx.load(tiny / "deblur.onnx")
    for node in graph.graph.node:
        node.op_type = node.op_type.replace("Conv", "ConvTranspose")
    onnx.save(graph, tiny / "deblur.onnx")
    rewrite(tiny)
    words = r"expected Conv or MatMul with weights in the deblur graph of 'tiny', .* got none"
    with pytest.raises(QuantizeError, match=words):
        quantize_bundle(Bundle.load(tiny), pairs())


def test_the_command_simulates_pairs_and_prints_the_table(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "focus_setting", lambda focus: near_sample())
    assert main(["quantize", str(tiny), "--pairs", "1", "--max-loss", "3", "--threads", "1"]) == 0
    output = capsys.readouterr()
    assert "deblur constant_5 3x3" in output.out and "multiply-accumulates in 8 bits: " in output.out
    assert "motorcycle, 1 pair: " in output.out
    assert output.out.splitlines()[-1].startswith(f"{tiny}: INT8 graphs, ")
    assert "calibrating" in output.err
    assert set(Bundle.load(tiny).manifest.quantization["int8"]["check"]) == {"simulated", "motorcycle"}
    arguments = [str(SAMPLE / "left.png"), str(SAMPLE / "right.png"), "-o", str(tiny.parent / "out.png")]
    assert run_ldp(["deblur", *arguments, "--bundle", str(tiny), "--precision", "int8"]) == 0
    assert "int8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pairs", "0"], "expected at least 1 pair, got 0"),
        (["--data", "simulated"], "expected --data NAME=DIR, got 'simulated'"),
        (["--data", "nonsense=x"], "expected a data set, one of "),
        (["-o", __file__], "cannot be written"),
    ],
)
def test_options_that_do_not_fit(
    tiny: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(tiny)
    assert main(["quantize", str(tiny), *options]) == 2
    assert words in capsys.readouterr().err
    assert state(tiny) == before


def test_pairs_of_different_roles_differ() -> None:
    first, again, other = (simulated_pairs(1, 5, role)[0] for role in (0, 0, 1))
    np.testing.assert_array_equal(first.left, again.left)
    assert (first.target != other.target).any()


def test_layers_are_grouped_by_place_and_kind() -> None:
    assert place("encoders.2.1.conv4.weight") == "encoders.2"
    assert place("bpa.decoder.attention.qkv.weight") == "bpa.decoder"
    assert place("intro.weight") == "intro"
    assert place("encoder.visual.transformer.resblocks.11.mlp.c_fc.bias") == "resblocks.11"
    assert place("encoder.visual.proj") == "proj"

    def kind(op: str, dims: list[int], name: str = "x", **attributes: int) -> str:
        weight = TensorProto(dims=dims)
        return role(helper.make_node(op, ["a", "b"], ["c"], **attributes), weight, name)

    assert kind("MatMul", [4, 4]) == "matmul"
    assert kind("Conv", [8, 1, 3, 3], group=8) == "depthwise"
    assert kind("Conv", [8, 4, 1, 1], group=1) == "1x1"
    assert kind("Conv", [8, 8, 1, 1], "encoders.0.0.sca.conv.weight") == "sca"


@pytest.mark.parametrize(
    ("command", "precision", "words"),
    [
        ("engine", "int8", "expected fp16, got int8; engines in 8 bits are withdrawn, "),
        ("engine", "fp8", "expected fp16, got fp8; engines in 8 bits are withdrawn, "),
        ("quantize", "fp8", "expected int8, got fp8; FP8, which was for engines, is withdrawn, "),
    ],
)
def test_engines_in_8_bits_are_withdrawn(
    quantized: Path, command: str, precision: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(quantized)
    assert main([command, str(quantized), "--precision", precision]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert state(quantized) == before
