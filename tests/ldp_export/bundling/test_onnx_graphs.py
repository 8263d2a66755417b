import copy
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from benchmarks.engines.graph_report import EngineReport, Layer, count_nodes, needless_nodes, read_report
from ldp_export import model as model_module
from ldp_export.bundling import onnx_graphs as onnx_export
from ldp_export.bundling import parity
from ldp_export.bundling.engine import SizeRange, profiles
from ldp_export.bundling.onnx_graphs import (
    InPlaceAttention,
    QuotientGELU,
    SelfAttention,
    clip_graph,
    deblur_graph,
    export_bundle,
    save_graph,
)
from ldp_export.bundling.quantize import quantize_bundle
from ldp_export.bundling.quantize_graphs import QuantizeError, _layer_nodes
from ldp_export.bundling.quantize_pairs import PairSets
from ldp_export.cli import main
from ldp_export.clip import PROMPTS, WindowEncoder
from ldp_export.clip.encoder import DenseCLIP
from ldp_export.evaluation.reference import TorchDeblurrer
from ldp_export.model import ExportError, ExportModel
from ldp_export.network import CONFIGS, LDPNet
from ldp_export.network.bpa import BPABlock
from ldp_export.network.config import PRIORS, LDPConfig
from ldp_export.network.layers import WIDE, LayerNorm2d, NAFBlock, SimplifiedChannelAttention
from ldp_export.network.randomise import randomise, randomise_network
from ldp_runtime import Deblurrer
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import ShapeRange, deblur_shapes
from ldp_runtime.errors import LDPError
from ldp_runtime.images.quality import psnr
from ldp_runtime.stages.pixels import PaddedPair
from tests.ldp_export.conftest import WINDOW
from tests.ldp_export.tiny_checkpoint import CALIBRATED, save_trained
from tests.ldp_export.tiny_models import RESIDUAL, TINY_CONFIG
from tests.sample import near_sample

PATCH = 16  # of the tiny CLIP
NANO = Path("models/ldp-nano")


def open_graph(bundle: Path, name: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(bundle / name, options, providers=["CPUExecutionProvider"])


def element_types(path: Path) -> tuple[onnx.ModelProto, dict[str, int]]:
    """A graph and the element type of each of its tensors."""
    model = onnx.load(path)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    return model, types | {weight.name: weight.data_type for weight in model.graph.initializer}


def say(a: NDArray[np.float32], b: NDArray[np.float32]) -> str:
    error = np.abs(a - b)
    where = np.unravel_index(error.argmax(), error.shape)
    return f"mean {error.mean():.3g}, max {error.max():.3g} at {where}"


def test_the_bundle_loads_and_its_manifest_says_what_it_is(exported_bundle: Path) -> None:
    manifest = Bundle.load(exported_bundle).manifest
    assert manifest.name == "tiny-random"
    assert manifest.network == TINY_CONFIG.to_dict()
    assert (manifest.clip.patch, manifest.clip.window, manifest.clip.overlap) == (PATCH, WINDOW, 16)
    assert manifest.clip.weights == manifest.training["weights"] == manifest.parity["weights"] == "random"
    assert manifest.clip.architecture == "tiny-random-clip"
    assert manifest.padding.multiple == 16
    assert [prompt.text for prompt in manifest.prompts] == [prompt.text for prompt in PROMPTS]
    assert manifest.opset == onnx_export.OPSET
    assert {"torch", "onnx", "onnxruntime", "open_clip_torch", "python", "ldp"} <= manifest.tools.keys()
    assert set(manifest.files) == {
        "clip.onnx", "clip.fp16.onnx", "deblur.onnx", "deblur.fp16.onnx", "selftest.npz", "text_embeddings.npy",
    }  # fmt: skip
    gates = manifest.parity["gates"]
    assert {(gate["limit"], gate["is"]) for gate in gates} == {(1e-4, "at most"), (50.0, "at least")}
    assert len(gates) == 5
    assert all(gate["passed"] for gate in gates)
    assert "not applicable" in manifest.parity["target"]
    assert [p.name for p in exported_bundle.parent.iterdir()] == [exported_bundle.name]


def test_graphs_hold_no_trace_of_the_machine_and_nothing_needless(exported_bundle: Path) -> None:
    for path in exported_bundle.glob("*.onnx"):
        content = path.read_bytes()
        for trace in (b"site-packages", b"ldp_export", b".py", str(Path(onnx_export.__file__).parents[2]).encode()):
            assert trace not in content, f"{path.name} holds {trace!r}"
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", onnx_export.OPSET)]
        kinds = Counter(node.op_type for node in model.graph.node)
        assert not {"Identity", "Dropout", "Attention", "If", "Loop", "Einsum"} & kinds.keys()
        made_by = {name: node for node in model.graph.node for name in node.output}
        weights = {weight.name for weight in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type in ("Cast", "Transpose"):
                before = made_by.get(node.input[0])
                assert before is None or before.op_type != node.op_type, f"{path.name}: {node.op_type} twice"
                assert node.input[0] not in weights, f"{path.name}: {node.op_type} of the weight {node.input[0]}"


def test_weights_are_stored_once(exported_bundle: Path, exported_model: ExportModel) -> None:
    # CLIP's graph runs its weights on two inputs.
    visual = exported_model.clip.encoder.visual
    grid = (WINDOW // PATCH) ** 2
    positions = (3 * grid + 2 - visual.positional_embedding.shape[0]) * visual.positional_embedding.shape[1]
    numbers = sum(p.numel() for p in visual.parameters()) + positions
    assert 4 * numbers < (exported_bundle / "clip.onnx").stat().st_size < 4 * numbers + 60_000
    numbers = sum(p.numel() for p in exported_model.network.parameters())
    assert 4 * numbers < (exported_bundle / "deblur.onnx").stat().st_size < 4 * numbers + 150_000
    assert (exported_bundle / "deblur.fp16.onnx").stat().st_size < 2 * numbers + 200_000


@pytest.mark.parametrize("size", [(32, 32), (96, 160), (32, 288), (224, 80)])
def test_deblur_graph_takes_any_size(exported_bundle: Path, exported_model: ExportModel, size: tuple[int, int]) -> None:
    # At 1/16 these are maps of 2 to 18 positions, mostly no multiples of the attention window of 4.
    generator = torch.Generator().manual_seed(size[0])
    pair = torch.rand(1, 6, *size, generator=generator)
    for grid in ((size[0] // 16, size[1] // 16), (size[0] // 32, size[1] // 32), (5, 1)):
        logits = 4 * torch.randn(1, 1, *grid, generator=generator)
        with torch.inference_mode():
            expected = exported_model.network(pair, logits).numpy()
        feeds = {"pair": pair.numpy(), "blur_logits": logits.numpy()}
        (restored,) = open_graph(exported_bundle, "deblur.onnx").run(["restored"], feeds)
        assert restored.shape == (1, 3, *size)
        assert np.abs(restored - expected).max() <= 1e-4, say(restored, expected)
        residual = expected - (feeds["pair"][:, :3] + feeds["pair"][:, 3:]) / 2
        assert 0.03 < residual.std() < 0.5, "the network is nearly the identity: any graph would agree"

        (half,) = open_graph(exported_bundle, "deblur.fp16.onnx").run(["restored"], feeds)
        assert half.dtype == np.float32
        assert 10 * math.log10(1 / np.mean((half - expected) ** 2)) >= 50, say(half, expected)
        assert np.abs(half - expected).max() > 1e-5, "this is no FP16 graph"


def test_deblur_graph_uses_both_inputs(exported_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    pair = rng.random((1, 6, 64, 64), np.float32)
    run = open_graph(exported_bundle, "deblur.onnx")
    sharp, blurred = (
        run.run(None, {"pair": pair, "blur_logits": np.full((1, 1, 4, 4), z, np.float32)})[0] for z in (-10, 10)
    )
    assert np.abs(sharp - blurred).max() > 1e-3
    swapped = run.run(
        None, {"pair": pair[:, [3, 4, 5, 0, 1, 2]], "blur_logits": np.full((1, 1, 4, 4), -10, np.float32)}
    )[0]
    assert np.abs(sharp - swapped).max() > 1e-3


@pytest.mark.parametrize("batch", [1, 3])
def test_clip_graph_takes_any_batch(exported_bundle: Path, exported_model: ExportModel, batch: int) -> None:
    generator = torch.Generator().manual_seed(batch)
    stereo = torch.randn(batch, 3, WINDOW, 2 * WINDOW, generator=generator)
    center = torch.randn(batch, 3, WINDOW, WINDOW, generator=generator)
    encoder = WindowEncoder(exported_model.clip.encoder, WINDOW).eval()
    with torch.inference_mode():
        expected = [features.numpy() for features in encoder(stereo, center)]
    got = open_graph(exported_bundle, "clip.onnx").run(
        ["stereo_features", "center_features"], {"stereo": stereo.numpy(), "center": center.numpy()}
    )
    g = WINDOW // PATCH
    assert [array.shape for array in got] == [(batch, g, 2 * g, 16), (batch, g, g, 16)]
    for a, b in zip(got, expected, strict=True):
        assert np.abs(a - b).max() <= 1e-4, say(a, b)
    half = open_graph(exported_bundle, "clip.fp16.onnx").run(
        ["stereo_features", "center_features"],
        {"stereo": stereo.numpy().astype(np.float16), "center": center.numpy().astype(np.float16)},
    )
    for a, b in zip(half, expected, strict=True):
        assert a.dtype == np.float16
        assert 1e-6 < np.abs(a - b).max() < 0.05, say(a, b)


def test_inputs_and_outputs_are_those_of_the_contract(exported_bundle: Path) -> None:
    g, s, f32, f16 = WINDOW // PATCH, WINDOW, "tensor(float)", "tensor(float16)"
    clip = {
        "stereo": ["B", 3, s, 2 * s],
        "center": ["B", 3, s, s],
        "stereo_features": ["B", g, 2 * g, 16],
        "center_features": ["B", g, g, 16],
    }
    deblur = {"pair": [1, 6, "H", "W"], "blur_logits": [1, 1, "h", "w"], "restored": [1, 3, "H", "W"]}
    expected = {
        "clip.onnx": {name: (shape, f32) for name, shape in clip.items()},
        "clip.fp16.onnx": {name: (shape, f16) for name, shape in clip.items()},
        "deblur.onnx": {name: (shape, f32) for name, shape in deblur.items()},
        "deblur.fp16.onnx": {name: (shape, f32) for name, shape in deblur.items()},
    }
    for name, ends in expected.items():
        run = open_graph(exported_bundle, name)
        assert {end.name: (end.shape, end.type) for end in (*run.get_inputs(), *run.get_outputs())} == ends


@pytest.mark.parametrize("name", ["clip.fp16.onnx", "deblur.fp16.onnx"])
def test_fp16_graphs_are_half_but_for_their_islands(exported_bundle: Path, name: str) -> None:
    model, types = element_types(exported_bundle / name)
    heavy = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert len(heavy) > 10
    for node in heavy:
        assert {types[tensor] for tensor in node.input} == {TensorProto.FLOAT16}, f"{node.op_type} {node.name}"
    fp32 = ("ReduceMean", "AveragePool", "Softmax")
    islands = [node for node in model.graph.node if node.op_type in fp32]
    assert islands
    for node in islands:
        assert types[node.input[0]] == types[node.output[0]] == TensorProto.FLOAT, f"{node.op_type} {node.name}"
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":  # computes its statistics in the stash type, FP32 by default
            assert all(a.i == TensorProto.FLOAT for a in node.attribute if a.name == "stash_type")
    big = [w for w in model.graph.initializer if np.prod(w.dims) > 2000 and w.data_type == TensorProto.FLOAT]
    assert not big, f"FP32 weights: {[w.name for w in big]}"
    if name.startswith("deblur"):
        skip = next(node for node in model.graph.node if "restored" in node.output)
        assert skip.op_type == "Add"
        assert {types[tensor] for tensor in skip.input} == {TensorProto.FLOAT}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_runtime_restores_what_torch_restores(
    exported_bundle: Path, exported_model: ExportModel, backend: str
) -> None:
    left, right = np.random.default_rng(1).integers(0, 256, (2, 70, 101, 3)).astype(np.uint8)
    expected = TorchDeblurrer(exported_model, device="cpu")(left, right)
    result = Deblurrer.from_bundle(exported_bundle, backend=backend, precision="fp32", threads=1)(left, right)
    assert np.abs(result.blur_logits - expected.blur_logits).max() < 2e-3
    difference = np.abs(result.restored.astype(int) - expected.restored)
    assert difference.max() <= 1, f"mean {difference.mean():.3g}, max {difference.max()}"
    assert difference.mean() < 0.01
    half = Deblurrer.from_bundle(exported_bundle, backend=backend, precision="fp16", threads=1)(left, right)
    assert np.abs(half.restored.astype(int) - expected.restored).max() <= 3


def test_dp_aware_prompts_alone_need_no_center_view(
    exported_bundle: Path, exported_model: ExportModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = copy.deepcopy(exported_model.network)
    network.config = replace(network.config, ensemble="dp-aware")
    model = replace(exported_model, network=network)

    def ready(*_: object, half: bool, **__: object) -> onnx_ir.Model:
        return onnx_ir.load(exported_bundle / ("deblur.fp16.onnx" if half else "deblur.onnx"))

    monkeypatch.setattr(onnx_export, "deblur_graph", ready)
    monkeypatch.setattr(parity, "focus_setting", lambda focus: near_sample())
    manifest = export_bundle(model, tmp_path / "one", "one")
    assert manifest.ensemble == "dp-aware"
    for name in ("clip.onnx", "clip.fp16.onnx"):
        run = open_graph(tmp_path / "one", name)
        assert [value.name for value in (*run.get_inputs(), *run.get_outputs())] == ["stereo", "stereo_features"]
    left, right = np.random.default_rng(1).integers(0, 256, (2, 70, 101, 3)).astype(np.uint8)
    expected, both = (TorchDeblurrer(m, device="cpu")(left, right).blur_logits for m in (model, exported_model))
    result = Deblurrer.from_bundle(tmp_path / "one", backend="onnxruntime", precision="fp32", threads=1)(left, right)
    assert np.abs(result.blur_logits - expected).max() < 2e-3
    assert np.abs(expected - both).max() > 0.01, "the ensemble makes no difference here"


def test_attention_for_export_is_that_of_torch() -> None:
    torch.manual_seed(0)
    attention = randomise(torch.nn.MultiheadAttention(24, 3, batch_first=True), 1).eval()
    x = torch.randn(2, 7, 24)
    with torch.inference_mode():
        expected = attention(x, x, x, need_weights=False)[0]
        assert torch.allclose(SelfAttention(attention)(x, x, x)[0], expected, atol=1e-6)
        second = x.transpose(0, 1)
        in_place = InPlaceAttention(attention)(second, second, second)[0]
        assert torch.allclose(in_place.transpose(0, 1), expected, atol=1e-6)
    with pytest.raises(ExportError):
        SelfAttention(torch.nn.MultiheadAttention(24, 3))
    with pytest.raises(ExportError):
        SelfAttention(torch.nn.MultiheadAttention(24, 3, batch_first=True, kdim=8))


def test_the_quotient_is_quick_gelu_in_fp16_too() -> None:
    x = torch.linspace(-60, 60, 4001)
    expected = QuickGELU()(x)
    assert torch.allclose(QuotientGELU()(x), expected, atol=1e-6)
    assert torch.allclose(QuotientGELU()(x.half()).float(), expected, rtol=4e-3, atol=2e-3)
    exponential = torch.exp(1.702 * x.half())  # the control: the other way to write it overflows
    assert (x.half() * exponential / (1 + exponential)).isnan().any()


def planned(path: Path, shapes: dict[str, tuple[int, ...]]) -> EngineReport:
    """What TensorRT-RTX says of a graph's engine for one size; it warns of nothing."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed (pip install 'ldp[rtx]')")
    from ldp_export.bundling.tensorrt_builder import TensorRT

    profile = {name: ShapeRange(shape, shape, shape) for name, shape in shapes.items()}
    plan = TensorRT("rtx").build(path, profile, ["sm_89"], detailed=True)
    assert not plan.warnings
    return read_report(plan.messages)


def planned_clip(folder: Path) -> EngineReport:
    """Of a vision transformer of one layer, 128 channels wide, on stereo canvases."""
    visual = VisionTransformer(64, 16, 128, 1, 2, 4.0, output_dim=64, act_layer=QuickGELU)
    encoder = WindowEncoder(DenseCLIP(randomise(visual, 1).eval()), 64, ["stereo"])
    save_graph(clip_graph(encoder, half=True), folder / "clip.onnx")
    return planned(folder / "clip.onnx", {"stereo": (4, 3, 64, 128)})


def makers(report: EngineReport, reader: Layer) -> list[Layer]:
    """The layers that write what a layer reads."""
    names = {tensor.name for tensor in reader.reads}
    return [layer for layer in report.layers if names & {tensor.name for tensor in layer.writes}]


@pytest.mark.parametrize("quotient", [True, False])
def test_tensorrt_computes_quick_gelu_where_the_product_before_it_ends(
    quotient: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not quotient:  # the control
        monkeypatch.setattr(onnx_export, "QuotientGELU", QuickGELU)
    report = planned_clip(tmp_path)
    widest = [layer for layer in report.layers if any(tensor.shape[-1] == 512 for tensor in layer.writes)]
    assert len(widest) == (1 if quotient else 2)


class JoinedAttention(InPlaceAttention):
    """The control: Q, K and V by matrix products."""

    def forward(self, query: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, None]:
        length, _, width = query.shape
        q, k, v = (
            nn.functional.linear(query, part.weight[:, :, 0, 0], part.bias)
            .reshape(length, -1, width // self.heads)
            .transpose(0, 1)
            for part in self.parts
        )
        attention = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(1, 2), dim=2)
        return self.out_proj((attention @ v).transpose(0, 1).reshape(length, -1, width)), None


@pytest.mark.parametrize("joined", [False, True])
def test_tensorrt_reads_q_k_and_v_where_they_are_made(
    joined: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if joined:
        monkeypatch.setattr(onnx_export, "InPlaceAttention", JoinedAttention)
    report = planned_clip(tmp_path)
    (attention,) = (layer for layer in report.layers if "mha" in layer.name)
    copies = [layer.name for layer in makers(report, attention) if layer.type == "kgen"]
    assert bool(copies) == joined, copies


@pytest.mark.parametrize("width", [pytest.param(32, marks=pytest.mark.slow), WIDE])
def test_a_block_moves_25_maps(width: int, tmp_path: Path) -> None:
    moved = []
    for blocks in (1, 2):
        network = LDPNet(LDPConfig("test", width, encoder=(blocks,), middle=0, decoder=(0,), bpa=()))
        path = tmp_path / f"{blocks}.onnx"
        save_graph(deblur_graph(randomise_network(network, 3), 32, half=True, blur_map=False), path)
        report = planned(path, {"pair": (1, 6, 96, 160)})
        assert report.bytes is not None
        moved.append(report.bytes)
    assert 25 < (moved[1] - moved[0]) / (width * 96 * 160 * 2) < 25.3


def test_tensorrt_adds_a_skip_where_it_enlarges_and_cuts_windows_once(tmp_path: Path) -> None:
    network = LDPNet(LDPConfig("test", 64, encoder=(0,), middle=0, decoder=(0,), bpa=("decoder",), window=8))
    path = tmp_path / "deblur.onnx"
    save_graph(deblur_graph(randomise_network(network, 3), 32, half=True), path)
    report = planned(path, deblur_shapes(96, 160, 32))
    assert sum("DecoAdd" in layer.name for layer in report.layers) == 1
    (attention,) = (layer for layer in report.layers if "mha" in layer.name)
    (cut,) = makers(report, attention)
    maps = [layer for layer in makers(report, cut) if layer.writes[0].shape[1] == 64]
    assert [layer.type for layer in maps] == 3 * ["runtime_fusion"]


@pytest.mark.usefixtures("ready_graphs")
def test_a_checkpoint_becomes_a_bundle(tmp_path: Path, exported_model: ExportModel) -> None:
    folder, output = tmp_path / "checkpoint", tmp_path / "models" / "own"
    save_trained(folder, exported_model)
    output.mkdir(parents=True)
    (output / "diary.txt").write_text("dear diary")
    assert main(["onnx", str(folder), "-o", str(output)]) == 2, "a folder with something else in it"
    (output / "diary.txt").unlink()
    (output / "README.md").write_text("card")

    assert main(["onnx", str(folder), "-o", str(output)]) == 0
    manifest = Bundle.load(output).manifest
    assert manifest.name == "own"
    assert manifest.prompts == CALIBRATED
    assert manifest.training == {"data": "none"}
    assert manifest.blur_range == 12
    assert manifest.licences == {"weights": "Apache-2.0", "data": []}
    assert (manifest.clip.weights, manifest.clip.architecture) == ("clip.safetensors", "own-clip")
    assert manifest.parity["weights"] == "trained"
    assert manifest.parity["probe"] == "motorcycle, near focus, 70 x 101 px"
    assert manifest.parity["target"]["delta_db"] <= 0.01
    assert len(manifest.parity["gates"]) == 6

    assert main(["onnx", str(folder), "-o", str(output), "--name", "again"]) == 0
    assert Bundle.load(output).manifest.name == "again"
    assert (output / "README.md").read_text(encoding="utf-8") == "card"
    assert [path.name for path in output.parent.iterdir()] == ["own"]


@pytest.mark.usefixtures("ready_graphs")
def test_the_command_exports_random_weights(
    tmp_path: Path, exported_model: ExportModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def draw(*arguments: object, **options: object) -> ExportModel:
        asked.extend((arguments, options))
        return exported_model

    monkeypatch.setattr(model_module, "random_model", draw)
    arguments = ["onnx", "--config", "nano", "--clip", "clip.json", "--seed", "5", "--window", "64", "--overlap", "16"]
    assert main([*arguments, "-o", str(tmp_path / "own")]) == 0
    assert asked == [("nano", "clip.json", None), {"window": 64, "overlap": 16, "seed": 5}]
    assert Bundle.load(tmp_path / "own").manifest.name == "own"


@pytest.mark.usefixtures("ready_graphs")
def test_many_weights_go_into_a_file_beside_the_graph(
    exported_model: ExportModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "EXTERNAL_ABOVE", 1000)
    bundle = tmp_path / "bundle"
    manifest = export_bundle(exported_model, bundle, "nano")
    assert {"clip.onnx.data", "clip.fp16.onnx.data", "deblur.onnx.data", "deblur.fp16.onnx.data"} <= set(manifest.files)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 48, 3)).astype(np.uint8)
    for backend in ("onnxruntime", "openvino"):
        assert Deblurrer.from_bundle(bundle, backend=backend, threads=1)(image, image).restored.shape == image.shape
    (bundle / "deblur.onnx.data").write_bytes(b"")
    with pytest.raises(LDPError, match=r"deblur\.onnx\.data"):
        Bundle.load(bundle)


@pytest.mark.slow
@pytest.mark.parametrize("prior", [name for name in PRIORS if name != TINY_CONFIG.prior])
def test_a_variant_exports_like_the_default(prior: str, tmp_path: Path) -> None:
    net = randomise_network(LDPNet(replace(TINY_CONFIG, prior=prior)), seed=1)
    for half in (False, True):
        path = tmp_path / f"{half}.onnx"
        save_graph(deblur_graph(net, 16, half=half), path)
        session = open_graph(tmp_path, path.name)
        assert {end.name: end.shape for end in session.get_inputs()} == {
            "pair": [1, 6, "H", "W"],
            "blur_logits": [1, 1, "h", "w"],
        }
        for size in ((16, 16), (48, 80)):
            generator = torch.Generator().manual_seed(size[0])
            pair = torch.rand(1, 6, *size, generator=generator)
            logits = 3 * torch.randn(1, 1, size[0] // 8, size[1] // 8, generator=generator)
            with torch.inference_mode():
                expected = net(pair, logits).numpy()
            (restored,) = session.run(None, {"pair": pair.numpy(), "blur_logits": logits.numpy()})
            error = np.abs(restored - expected)
            if half:
                assert 10 * math.log10(1 / np.mean(error**2)) >= 50
                assert error.max() > 1e-6, "this is no FP16 graph"
            else:
                assert error.max() <= 1e-4, f"mean {error.mean():.3g}, max {error.max():.3g}"


@pytest.fixture(scope="module")
def blind_model() -> ExportModel:
    network = randomise_network(LDPNet(replace(TINY_CONFIG, prior="none", encoder=(0,), decoder=(0,))), 1)
    return ExportModel(network, None, (), None, False, {"weights": "random"})


@pytest.fixture(scope="module")
def blind_bundle(blind_model: ExportModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "blind"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "focus_setting", lambda focus: near_sample())
        export_bundle(blind_model, path, "blind")
    return path


def test_a_bundle_without_clip_holds_the_deblur_graph_alone(blind_bundle: Path) -> None:
    manifest = Bundle.load(blind_bundle).manifest
    assert manifest.clip is None and manifest.prompts == ()
    assert set(manifest.files) == {"deblur.onnx", "deblur.fp16.onnx", "selftest.npz"}
    assert [gate["name"] for gate in manifest.parity["gates"]] == [
        "deblur fp32 max abs", "deblur fp16 PSNR in dB", "deblur half PSNR in dB",
    ]  # fmt: skip
    for name in ("deblur.onnx", "deblur.fp16.onnx"):
        inputs = open_graph(blind_bundle, name).get_inputs()
        assert {end.name: end.shape for end in inputs} == {"pair": [1, 6, "H", "W"]}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bundle_without_clip_restores_what_torch_restores(
    blind_bundle: Path, blind_model: ExportModel, backend: str
) -> None:
    left, right = np.random.default_rng(1).integers(0, 256, (2, 70, 101, 3)).astype(np.uint8)
    expected = TorchDeblurrer(blind_model, device="cpu")(left, right)
    result = Deblurrer.from_bundle(blind_bundle, backend=backend, precision="fp32", threads=1)(left, right)
    assert result.blur_map is expected.blur_map is expected.blur_logits is None
    assert expected.timings.keys() == {"prepare", "deblur", "finish"}
    assert np.abs(result.restored.astype(int) - expected.restored).max() <= 1
    center = (left.astype(int) + right) // 2
    assert np.abs(expected.restored - center).mean() > 3, "the network is nearly the identity: any graph would agree"


def test_quantisation_refuses_and_engines_take_a_bundle_without_clip(blind_bundle: Path) -> None:
    bundle = Bundle.load(blind_bundle)
    with pytest.raises(QuantizeError, match="'blind', which is of another kind; run it in fp32 or fp16"):
        quantize_bundle(bundle, PairSets("none", [], [], {}))
    shapes = profiles(bundle.manifest, SizeRange.fixed(bundle.manifest.padding, (60, 90)))
    assert shapes == {"deblur": {"pair": ShapeRange(*[(1, 6, 64, 96)] * 3)}}


def test_clip_comes_whole_and_where_the_network_reads_a_blur_map(exported_model: ExportModel) -> None:
    with pytest.raises(ExportError, match="a network that reads a blur map, got none"):
        ExportModel(exported_model.network, None, (), None, False)
    with pytest.raises(ExportError, match="got some of them"):
        replace(exported_model, windows=None)
    with pytest.raises(ValueError, match="expected blur logits with the prior bpa, got none"):
        exported_model.network(torch.zeros(1, 6, 32, 32))


@pytest.fixture(scope="module")
def feeds() -> dict[str, NDArray[np.float32]]:
    generator = torch.Generator().manual_seed(0)
    pair, logits = torch.rand(1, 6, 32, 48, generator=generator), 4 * torch.randn(1, 1, 2, 3, generator=generator)
    return {"pair": pair.numpy(), "blur_logits": logits.numpy()}


def relative_error(model: ExportModel, feeds: dict[str, NDArray[np.float32]], restored: NDArray[Any]) -> float:
    """The RMS error of a restored image, as a share of the spread of what the network adds to the center view."""
    with torch.inference_mode():
        expected = model.network(*map(torch.from_numpy, feeds.values())).numpy()
    added = expected - (feeds["pair"][:, :3] + feeds["pair"][:, 3:]) / 2
    return float(np.sqrt(np.mean((restored.astype(np.float32) - expected) ** 2)) / added.std())


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


def test_large_residuals_pass_the_fp16_graph_in_half_arithmetic(
    exported_bundle: Path, exported_model: ExportModel, feeds: dict[str, NDArray[np.float32]]
) -> None:
    values = run_in_half(exported_bundle / "deblur.fp16.onnx", feeds)
    halves = {name: value for name, value in values.items() if value.dtype == np.float16}
    assert len(halves) > 50
    infinite = [name for name, value in values.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
    assert not infinite
    assert max(float(np.abs(value).max()) for value in halves.values()) > RESIDUAL
    assert values["restored"].dtype == np.float32
    assert relative_error(exported_model, feeds, values["restored"]) < 0.03


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


def test_the_naive_form_overflows_on_the_same_input(
    exported_bundle: Path, exported_model: ExportModel, feeds: dict[str, NDArray[np.float32]]
) -> None:
    """The negative control: normalisations that keep their sums of squares in FP16 lose the image."""
    model = naive_form(exported_bundle / "deblur.fp16.onnx")
    with np.errstate(all="ignore"):
        half = {name: array.astype(np.float16) for name, array in feeds.items()}
        restored, *sums = ReferenceEvaluator(model).run(None, half)
    assert {array.dtype for array in sums} == {np.dtype(np.float16)}
    assert sum(bool(np.isinf(array).any()) for array in sums) >= 4
    assert not relative_error(exported_model, feeds, restored) < 0.3, "the image should be lost; NaN is so too"


def number(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


def test_casts_are_those_of_the_islands_and_nothing_is_needless(
    exported_bundle: Path, exported_model: ExportModel
) -> None:
    counts, network = count_nodes(exported_bundle / "deblur.fp16.onnx"), exported_model.network
    attentions = number(network, BPABlock)
    # In and out of FP32: each normalisation, each local pooling, each softmax; the pair and the blur logits come in,
    # the output goes out, and the mask of keys outside the map is made in the network's type.
    islands = number(network, LayerNorm2d) + number(network, SimplifiedChannelAttention) + attentions
    assert counts["Cast"] <= 2 * islands + 3 + attentions
    # Stem and end shuffle pixels; an attention cuts three windows, places its kernels, splits and joins its heads.
    assert counts["Transpose"] <= 12 * attentions + 2
    assert not needless_nodes(exported_bundle / "deblur.fp16.onnx")


def test_the_graph_for_cpus_reduces_no_map_and_splits_every_gate(
    exported_bundle: Path, exported_model: ExportModel
) -> None:
    paths = [exported_bundle / name for name in ("deblur.onnx", "deblur.fp16.onnx")]
    counts, halves = map(count_nodes, paths)
    assert counts["ReduceMean"] == 0 < halves["ReduceMean"]
    blocks, attentions = (number(exported_model.network, kind) for kind in (NAFBlock, BPABlock))
    # For TensorRT the depthwise convolution before a block's first gate and what feeds it stay whole, but Q, K and V
    # are three.
    more = 2 * number(exported_model.network, LayerNorm2d) + 2 * blocks - 2 * attentions
    assert counts["Conv"] == halves["Conv"] + halves["ConvTranspose"] + more
    assert halves["Split"] + halves["Slice"] < counts["Conv"]
    assert not needless_nodes(paths[0])
    layers = _layer_nodes(onnx.load(paths[0]).graph)  # what is quantised
    assert sum(len(nodes) == 2 for nodes in layers) == 3 * blocks + attentions


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_tensorrt_fuses_attention_normalisation_and_pooling(fresh: bool, tmp_path: Path) -> None:
    """What the builder says of nano's engine: one layer per attention and normalisation, no FP32 copy of a map."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed (pip install 'ldp[rtx]')")
    from ldp_export.bundling.tensorrt_builder import TensorRT

    network, path = LDPNet(CONFIGS["nano"]), NANO / "deblur.fp16.onnx"
    if fresh:
        path = tmp_path / path.name
        save_graph(deblur_graph(randomise_network(network, 3), 32, half=True), path)
    profile = {name: ShapeRange(shape, shape, shape) for name, shape in deblur_shapes(256, 384, 16).items()}
    plan = TensorRT("rtx").build(path, profile, ["sm_86"], detailed=True)
    assert not plan.warnings
    report = read_report(plan.messages)
    assert 100 < len(report.layers) < plan.layers / 5
    assert report.attentions == number(network, BPABlock) == 1
    normalised = [layer for layer in report.layers if "MeanSubMulMean" in layer.name]
    assert len(normalised) == number(network, LayerNorm2d)
    if fresh:  # else it is the committed graph, whose form may be older
        # They write one number a position, and no normalised map.
        lean = [layer for layer in normalised if any(tensor.shape[1:2] == (1,) for tensor in layer.writes)]
        assert len(lean) == len(normalised)
        assert not [layer for layer in report.layers if layer.type == "avgpool"]
    pooled = [layer for layer in report.layers if "CastMean" in layer.name and layer not in normalised]
    assert len(pooled) == number(network, SimplifiedChannelAttention)
    assert report.bytes is not None
    # Full maps of the first scale are 256/2 x 384/2 x 32 FP16 numbers.
    assert 50 < report.bytes / (128 * 192 * 32 * 2) < 240
    assert report.activation_bytes is not None
    assert report.activation_bytes > 128 * 192 * 64 * 2


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
    pair = near_sample()
    left, right, target = (view[102:294, 200:488] for view in (pair.left, pair.right, pair.target))
    deblurrer = Deblurrer(bundle, backend="onnxruntime", precision="fp32")
    exact = deblurrer(left, right)
    source = PaddedPair(left, right, left.shape[:2]).region(0, 0, *left.shape[:2])
    feeds = {"pair": source[None], "blur_logits": exact.blur_logits[None, None]}
    images = [run_as_it_stands(graph, feeds)[0].transpose(1, 2, 0) for graph in (bundle.graph("deblur"), path)]
    full, rounded = (psnr(np.clip(image, 0, 1), target / np.float32(255), data_range=1) for image in images)
    assert 50 < psnr(images[1], images[0], data_range=1) < 80, "rounding has no effect, or too much"
    assert abs(rounded - full) < 0.02, f"{full:.4f} dB became {rounded:.4f}"
    assert full > psnr((left / 255 + right / 255) / 2, target / 255, data_range=1) + 2, "the network does nothing"


@pytest.mark.slow
@pytest.mark.export_large
@pytest.mark.parametrize("config", CONFIGS)
def test_configurations_with_the_papers_clip(config: str, tmp_path: Path) -> None:
    bundle = tmp_path / config
    assert main(["onnx", "--config", config, "--clip", "ViT-B-32-quickgelu", "-o", str(bundle)]) == 0
    manifest = Bundle.load(bundle).manifest
    assert manifest.parity["probe"] == "motorcycle, near focus, 256 x 384 px"
    assert all(gate["passed"] for gate in manifest.parity["gates"])
    assert manifest.clip.quick_gelu
    assert (manifest.clip.patch, manifest.clip.window, manifest.clip.embed_dim) == (32, 224, 512)
    assert onnx_ir.load(bundle / "clip.onnx").graph.inputs[0].shape == onnx_ir.Shape(["B", 3, 224, 448])
    assert (bundle / "clip.onnx").stat().st_size < 360e6, "weights are stored twice"
