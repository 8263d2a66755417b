import dataclasses
import importlib.util
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
from ldp_export.bundling.engine import SizeRange, build_engines
from ldp_export.bundling.quantize import QualityError, quantize_bundle
from ldp_export.bundling.quantize_graphs import QuantizeError, place, role
from ldp_export.bundling.quantize_pairs import LabelledPair, PairSets, simulated_pairs
from ldp_export.bundling.tensorrt_builder import TensorRT
from ldp_export.cli import main
from ldp_export.simulation import samples
from ldp_runtime.bundle.bundle import Bundle, read_manifest
from ldp_runtime.bundle.engines import deblur_shapes
from ldp_runtime.bundle.manifest import GRAPHS, QUANTIZED_PRECISIONS, BlurMapSpec
from ldp_runtime.cli import main as run_ldp
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import BackendError, BundleError
from ldp_runtime.images.quality import psnr
from ldp_runtime.registry import BACKENDS
from ldp_runtime.stages.geometry import Padding
from tests.ldp_runtime.tiny_bundle import EMBED_DIM, PATCH, WINDOW, rewrite
from tests.sample import SAMPLE, near_sample

HAS_RTX = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not HAS_RTX, reason="tensorrt_rtx is not installed (pip install 'ldp[rtx]')")


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


@pytest.fixture(scope="module")
def in_fp8(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle whose CLIP ends with a matrix product, which is in FP8, and all else in INT8."""
    folder = shutil.copytree(pristine, tmp_path_factory.mktemp("bundles") / "tiny")
    for precision, dtype in (("", np.float32), (".fp16", np.float16)):
        path = folder / f"clip{precision}.onnx"
        model = onnx.load(path)
        weight = np.random.default_rng(0).standard_normal((EMBED_DIM, EMBED_DIM)).astype(dtype)
        model.graph.initializer.append(numpy_helper.from_array(weight, "projection.weight"))
        for node in [node for node in model.graph.node if node.op_type == "Transpose"]:
            name = node.output[0]
            node.output[0] = f"{name}_before"
            model.graph.node.append(helper.make_node("MatMul", [node.output[0], "projection.weight"], [name]))
        onnx.save(model, path)
    rewrite(folder)
    quantize_bundle(Bundle.load(folder), pairs(), max_loss=5, threads=1)
    quantize_bundle(Bundle.load(folder), pairs(), precision="fp8", max_loss=5, threads=1)
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


def quantised_layers(
    model: onnx.ModelProto, op: str = "Conv"
) -> list[tuple[onnx.NodeProto, list[TensorProto], list[TensorProto]]]:
    """Both layers of a tiny graph: node; kernel, scale and zero point of its weight; the latter two of its input."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type == op]
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


def test_clips_products_take_fp8_whose_largest_number_is_the_tensors(in_fp8: Path) -> None:
    model = onnx.load(Bundle.load(in_fp8).graph("clip", "fp8"))
    for _, (kernel, scale, zero), (activation, _) in quantised_layers(model, "MatMul"):
        assert (kernel.data_type, zero.data_type) == (TensorProto.FLOAT8E4M3FN,) * 2
        assert (scale.data_type, scale.dims) == (TensorProto.FLOAT16, [])
        assert 416 <= np.abs(numpy_helper.to_array(kernel).astype(np.float32)).max() <= 448
        assert activation.data_type == TensorProto.FLOAT16
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert [weights[n.input[1]] for n in model.graph.node if n.op_type == "Conv"] == [TensorProto.FLOAT16] * 2


def test_fp8_computes_about_what_float_does(in_fp8: Path) -> None:
    bundle, rng = Bundle.load(in_fp8), np.random.default_rng(0)
    feeds = {
        name: rng.standard_normal((2, 3, WINDOW, width)).astype(np.float16)
        for name, width in (("stereo", 2 * WINDOW), ("center", WINDOW))
    }
    ort = BACKENDS["onnxruntime"]
    exact, rounded = (ort.open(bundle.graph("clip", p), "fp16").run(feeds) for p in ("fp16", "fp8"))
    for name, features in exact.items():
        error = np.std(rounded[name].astype(np.float32) - features) / np.std(features.astype(np.float32))
        assert 0.005 < error < 0.1, f"{name}: {error:.4f} of the standard deviation"
    for backend in ("openvino", "onnxruntime"):
        with pytest.raises(BackendError, match="fp8"):
            restore(in_fp8, backend, "fp8")


def test_a_bundle_has_both_and_says_how_each_was_made(in_fp8: Path, quantized: Path) -> None:
    manifest, before = Bundle.load(in_fp8).manifest, read_manifest(quantized)
    assert manifest.files.keys() == before.files.keys() | {"clip.fp8.onnx"}
    record = manifest.quantization["fp8"]
    assert "E4M3" in record["scheme"]
    assert [(row["group"], row["precision"]) for row in record["groups"]] == [("clip projection matmul", "fp8")]
    assert record["macs_share"] == {"clip": 1.0}
    assert 0 < abs(record["check"]["noise"]["delta_db"]) < 5
    assert len(manifest.quantization["int8"]["groups"]) == len(before.quantization["int8"]["groups"]) + 1
    assert set(quantize.FORMATS) == set(QUANTIZED_PRECISIONS)


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
        with pytest.raises(
            BundleError, match=r"expected a int8 .* graph .*; .* make it with ldp-export quantize --precision int8"
        ):
            restore(tiny, backend, "int8")
    if HAS_RTX:
        with pytest.raises(BundleError, match=r"ldp-export quantize --precision fp8"):
            build_engines_of(tiny, "fp8")


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
    with pytest.raises(QuantizeError, match=r"expected MatMul with weights in the clip graph of 'tiny', .* got none"):
        quantize_bundle(Bundle.load(tiny), pairs(), precision="fp8")


def test_graphs_that_do_not_belong_together_have_no_fp8(in_fp8: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(in_fp8, tmp_path / "tiny")
    half = onnx.load(folder / "clip.fp16.onnx")
    next(node for node in half.graph.node if node.op_type == "MatMul").op_type = "Mul"
    onnx.save(half, folder / "clip.fp16.onnx")
    rewrite(folder)
    with pytest.raises(QuantizeError, match=r"the same layers in the FP32 and the FP16 clip graph .* got 2 and 1"):
        quantize_bundle(Bundle.load(folder), pairs(), precision="fp8")


def test_the_command_simulates_pairs_and_prints_the_table(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "focus_setting", lambda focus: near_sample())
    assert main(["quantize", str(tiny), "--pairs", "1", "--max-loss", "3", "--threads", "1"]) == 0
    output = capsys.readouterr()
    assert "deblur constant_5 3x3" in output.out and "multiply-accumulates in 8 bits: " in output.out
    assert "motorcycle, 1 pairs: " in output.out
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


def build_engines_of(folder: Path, precision: str) -> list[Any]:
    sizes = SizeRange.fixed(Padding(32), (64, 96))
    return build_engines(Bundle.load(folder), sizes, architectures=["sm_89"], precision=precision)


@needs_rtx
def test_engines_in_fp8_are_clips_alone(in_fp8: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(in_fp8, tmp_path / "tiny")
    built = {precision: build_engines_of(folder, precision) for precision in ("fp16", "fp8")}
    bundle = Bundle.load(folder)
    assert built["fp8"][1] == built["fp16"][1]  # the deblur engine is the same
    entries = sorted((entry.kind, entry.precision) for entry in bundle.manifest.engines)
    assert entries == [("clip", "fp16"), ("clip", "fp8"), ("deblur", "fp16")]
    asked: dict[str, Any] = {"flavour": "rtx", "version": built["fp8"][0].version, "arch": "sm_89"}
    for precision, (clip, deblur) in built.items():
        assert bundle.find_engine("deblur", precision=precision, shapes=deblur_shapes(64, 96, PATCH), **asked) == deblur
        shapes = {name: ends.opt for name, ends in clip.profile.items()}
        assert bundle.find_engine("clip", precision=precision, shapes=shapes, **asked) == clip
    # another FP8 graph: its engine goes, the others stay
    quantize_bundle(bundle, pairs(), precision="fp8", max_loss=1e-9, threads=1)
    assert {entry.precision for entry in read_manifest(folder).engines} == {"fp16"}
    with pytest.raises(BackendError, match=r"clip in fp8 .*; got no engine of its graph; .* --precision fp8"):
        Bundle.load(folder).find_engine("clip", precision="fp8", shapes=shapes, **asked)
    build_engines_of(folder, "fp16")
    assert len(read_manifest(folder).engines) == 2
    assert len(list((folder / "engines").iterdir())) == 2


def test_int8_engines_are_withdrawn(quantized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(quantized)
    assert main(["engine", str(quantized), "--precision", "int8"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "expected fp16 or fp8, got int8" in error
    assert "moves more bytes than one in FP16" in error
    assert "use fp16, or on a CPU --backend openvino --precision int8" in error
    assert state(quantized) == before


@needs_rtx
def test_fp8_engines_are_for_ada_and_later(in_fp8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(in_fp8, tmp_path / "tiny")
    assert [entry.targets for entry in build_engines_of(folder, "fp8")] == [("sm_89",)] * 2
    before = state(folder)
    assert main(["engine", str(folder), "--precision", "fp8", "--shape", "64x96", "--arch", "sm_86,sm_89"]) == 2
    assert "builds fp8 engines for here (sm_89, " in (error := capsys.readouterr().err)
    assert "got sm_86" in error
    assert state(folder) == before
    assert TensorRT("rtx").targets(None, "fp8") == [("sm_89", "sm_120")]
