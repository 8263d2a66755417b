from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from ldp_export.blur_map import blur_logits, center_view, stereo_canvas
from ldp_export.bundling import onnx_graphs as onnx_export
from ldp_export.bundling import parity
from ldp_export.bundling.onnx_graphs import ParityError, SelfAttention, export_bundle
from ldp_export.checkpoint import Checkpoint, choose_windows, save_checkpoint
from ldp_export.cli import main
from ldp_export.clip import PROMPTS, WindowEncoder, embed_texts, load_clip
from ldp_export.model import ExportError, ExportModel, model_from_checkpoint, random_model
from ldp_export.network import CONFIGS, LDPNet
from ldp_export.network.randomise import randomise, randomise_network
from ldp_export.simulation.samples import focus_setting
from ldp_export.simulation.simulate import SimulatedPair
from ldp_runtime import Deblurrer
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.manifest import Prompt
from ldp_runtime.errors import LDPError
from ldp_runtime.stages.geometry import WindowGrid, pad_reflect
from tests.ldp_export.tiny_models import TINY_CLIP, TINY_CONFIG

SEED, WINDOW, PATCH = 3, 64, 16  # those of the shared bundle
CALIBRATED = tuple(Prompt(prompt.text, prompt.format, 2.0, -3.0) for prompt in PROMPTS)


@pytest.fixture(scope="module")
def nano(tiny_clip_file: Path) -> ExportModel:
    """The model that the shared bundle was exported from."""
    return random_model("nano", str(tiny_clip_file), window=WINDOW, overlap=16, seed=SEED)


@pytest.fixture
def ready_graphs(nano_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take the shared bundle's graphs, whatever the model: making them anew is most of an export's time.

    The sample is cut, which makes the rest quick.
    """

    def load(kind: str, half: bool) -> onnx_ir.Model:
        return onnx_ir.load(nano_bundle / (f"{kind}.fp16.onnx" if half else f"{kind}.onnx"))

    def cut(focus: str) -> SimulatedPair:
        pair = focus_setting(focus)
        return SimulatedPair(*(array[200:270, 300:401] for array in (pair.left, pair.right, pair.target, pair.coc)))

    monkeypatch.setattr(onnx_export, "clip_graph", lambda encoder, window, half: load("clip", half))
    monkeypatch.setattr(onnx_export, "deblur_graph", lambda network, multiple, half: load("deblur", half))
    monkeypatch.setattr(parity, "focus_setting", cut)


def save_nano(folder: Path, nano: ExportModel, network: LDPNet, windows: dict[str, int]) -> Checkpoint:
    """A checkpoint with the CLIP of the shared bundle."""
    return save_checkpoint(
        folder,
        config=CONFIGS["nano"],
        network=network.state_dict(),
        clip_config={**TINY_CLIP, **windows},
        clip=nano.clip.model.state_dict(),
        prompts=CALIBRATED,
        training={"data": "none", "licences": {"weights": "Apache-2.0", "data": []}},
    )


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


def test_the_bundle_loads_and_its_manifest_says_what_it_is(nano_bundle: Path) -> None:
    manifest = Bundle.load(nano_bundle).manifest
    assert manifest.name == "nano-random"
    assert manifest.network == CONFIGS["nano"].to_dict()
    assert (manifest.clip.patch, manifest.clip.window, manifest.clip.overlap) == (PATCH, WINDOW, 16)
    assert manifest.clip.weights == manifest.training["weights"] == manifest.parity["weights"] == "random"
    assert manifest.clip.architecture == "nano-random-clip"
    assert manifest.padding.multiple == 32
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
    assert [p.name for p in nano_bundle.parent.iterdir()] == [nano_bundle.name]


def test_graphs_hold_no_trace_of_the_machine_and_nothing_needless(nano_bundle: Path) -> None:
    for path in nano_bundle.glob("*.onnx"):
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


def test_weights_are_stored_once(nano_bundle: Path, nano: ExportModel) -> None:
    # CLIP's graph runs its weights on two inputs.
    visual = nano.clip.encoder.visual
    grid = (WINDOW // PATCH) ** 2
    positions = (3 * grid + 2 - visual.positional_embedding.shape[0]) * visual.positional_embedding.shape[1]
    numbers = sum(p.numel() for p in visual.parameters()) + positions
    assert 4 * numbers < (nano_bundle / "clip.onnx").stat().st_size < 4 * numbers + 60_000
    numbers = sum(p.numel() for p in nano.network.parameters())
    assert 4 * numbers < (nano_bundle / "deblur.onnx").stat().st_size < 4 * numbers + 150_000
    assert (nano_bundle / "deblur.fp16.onnx").stat().st_size < 2 * numbers + 200_000


@pytest.mark.parametrize("size", [(32, 32), (96, 160), (160, 64), (32, 288), (224, 96)])
def test_deblur_graph_takes_any_size(nano_bundle: Path, nano: ExportModel, size: tuple[int, int]) -> None:
    # At 1/8 these are maps of 4 to 36 positions, mostly no multiples of the attention window of 8.
    generator = torch.Generator().manual_seed(size[0])
    pair = torch.rand(1, 6, *size, generator=generator)
    for grid in ((size[0] // 16, size[1] // 16), (size[0] // 32, size[1] // 32), (5, 1)):
        logits = 4 * torch.randn(1, 1, *grid, generator=generator)
        with torch.inference_mode():
            expected = nano.network(pair, logits).numpy()
        feeds = {"pair": pair.numpy(), "blur_logits": logits.numpy()}
        (restored,) = open_graph(nano_bundle, "deblur.onnx").run(["restored"], feeds)
        assert restored.shape == (1, 3, *size)
        assert np.abs(restored - expected).max() <= 1e-4, say(restored, expected)
        residual = expected - (feeds["pair"][:, :3] + feeds["pair"][:, 3:]) / 2
        assert 0.03 < residual.std() < 0.5, "the network is nearly the identity: any graph would agree"

        (half,) = open_graph(nano_bundle, "deblur.fp16.onnx").run(["restored"], feeds)
        assert half.dtype == np.float32
        assert 10 * math.log10(1 / np.mean((half - expected) ** 2)) >= 50, say(half, expected)
        assert np.abs(half - expected).max() > 1e-5, "this is no FP16 graph"


def test_deblur_graph_uses_both_inputs(nano_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    pair = rng.random((1, 6, 64, 64), np.float32)
    run = open_graph(nano_bundle, "deblur.onnx")
    sharp, blurred = (
        run.run(None, {"pair": pair, "blur_logits": np.full((1, 1, 4, 4), z, np.float32)})[0] for z in (-10, 10)
    )
    assert np.abs(sharp - blurred).max() > 1e-3
    swapped = run.run(
        None, {"pair": pair[:, [3, 4, 5, 0, 1, 2]], "blur_logits": np.full((1, 1, 4, 4), -10, np.float32)}
    )[0]
    assert np.abs(sharp - swapped).max() > 1e-3


@pytest.mark.parametrize("batch", [1, 3])
def test_clip_graph_takes_any_batch(nano_bundle: Path, nano: ExportModel, batch: int) -> None:
    generator = torch.Generator().manual_seed(batch)
    stereo = torch.randn(batch, 3, WINDOW, 2 * WINDOW, generator=generator)
    center = torch.randn(batch, 3, WINDOW, WINDOW, generator=generator)
    encoder = WindowEncoder(nano.clip.encoder, WINDOW).eval()
    with torch.inference_mode():
        expected = [features.numpy() for features in encoder(stereo, center)]
    got = open_graph(nano_bundle, "clip.onnx").run(
        ["stereo_features", "center_features"], {"stereo": stereo.numpy(), "center": center.numpy()}
    )
    g = WINDOW // PATCH
    assert [array.shape for array in got] == [(batch, g, 2 * g, 16), (batch, g, g, 16)]
    for a, b in zip(got, expected, strict=True):
        assert np.abs(a - b).max() <= 1e-4, say(a, b)
    half = open_graph(nano_bundle, "clip.fp16.onnx").run(
        ["stereo_features", "center_features"],
        {"stereo": stereo.numpy().astype(np.float16), "center": center.numpy().astype(np.float16)},
    )
    for a, b in zip(half, expected, strict=True):
        assert a.dtype == np.float16
        assert 1e-6 < np.abs(a - b).max() < 0.05, say(a, b)


def test_inputs_and_outputs_are_those_of_the_contract(nano_bundle: Path) -> None:
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
        run = open_graph(nano_bundle, name)
        assert {end.name: (end.shape, end.type) for end in (*run.get_inputs(), *run.get_outputs())} == ends


@pytest.mark.parametrize("name", ["clip.fp16.onnx", "deblur.fp16.onnx"])
def test_fp16_graphs_are_half_but_for_their_islands(nano_bundle: Path, name: str) -> None:
    model, types = element_types(nano_bundle / name)
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
def test_the_runtime_restores_what_torch_restores(nano_bundle: Path, nano: ExportModel, backend: str) -> None:
    rng = np.random.default_rng(1)
    h, w = 70, 101
    left, right = (rng.integers(0, 256, (h, w, 3)).astype(np.uint8) for _ in range(2))
    planes = np.concatenate([left, right], axis=2).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    pair = torch.from_numpy(pad_reflect(planes, (96, 128)))
    mean, std = (torch.tensor(v).repeat(2)[:, None, None] for v in (nano.clip.mean, nano.clip.std))
    grid = WindowGrid.cover(96, 128, window=WINDOW, overlap=16, patch=PATCH)
    source = (pair - mean) / std
    regions = torch.stack([source[:, y * PATCH :, x * PATCH :][:, :WINDOW, :WINDOW] for y, x in grid.origins()])
    with torch.inference_mode():
        features = WindowEncoder(nano.clip.encoder, WINDOW)(
            stereo_canvas(regions[:, :3], regions[:, 3:]), center_view(regions[:, :3], regions[:, 3:])
        )
        z = blur_logits(
            *features,
            embed_texts(nano.clip, [prompt.text for prompt in nano.prompts]),
            [prompt.format == "dp-aware" for prompt in nano.prompts],
            torch.zeros(8),
            torch.ones(8),
        )
        logits = torch.from_numpy(grid.blend(z[:, 0].numpy()))[None, None]
        restored = nano.network(pair[None], logits)[0, :, :h, :w].permute(1, 2, 0)
    expected = np.rint(np.clip(restored.numpy(), 0, 1) * 255)
    result = Deblurrer.from_bundle(nano_bundle, backend=backend, precision="fp32", threads=1)(left, right)
    assert np.abs(result.blur_logits - logits[0, 0].numpy()).max() < 2e-3
    difference = np.abs(result.restored - expected)
    assert difference.max() <= 1, f"mean {difference.mean():.3g}, max {difference.max()}"
    assert difference.mean() < 0.01
    half = Deblurrer.from_bundle(nano_bundle, backend=backend, precision="fp16", threads=1)(left, right)
    assert np.abs(half.restored - expected).max() <= 3


def test_attention_for_export_is_that_of_torch() -> None:
    torch.manual_seed(0)
    attention = randomise(torch.nn.MultiheadAttention(24, 3, batch_first=True), 1).eval()
    x = torch.randn(2, 7, 24)
    with torch.inference_mode():
        expected = attention(x, x, x, need_weights=False)[0]
        assert torch.allclose(SelfAttention(attention)(x, x, x)[0], expected, atol=1e-6)
    with pytest.raises(ExportError):
        SelfAttention(torch.nn.MultiheadAttention(24, 3))
    with pytest.raises(ExportError):
        SelfAttention(torch.nn.MultiheadAttention(24, 3, batch_first=True, kdim=8))


def test_randomise_network_is_seeded_and_far_from_the_identity() -> None:
    first, again, other = (randomise_network(LDPNet(TINY_CONFIG), seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.intro.weight, other.intro.weight)
    assert all(parameter.abs().max() > 0 for parameter in first.parameters())
    pair, logits = torch.rand(1, 6, 48, 64), torch.randn(1, 1, 3, 4)
    with torch.inference_mode():
        residual = first(pair, logits) - center_view(pair[:, :3], pair[:, 3:])
        fresh = LDPNet(TINY_CONFIG).eval()
        for block in fresh.modules():
            for name in ("beta", "gamma"):
                assert getattr(block, name, torch.zeros(1)).abs().max() == 0, "a fresh network has lost its zeros"
    assert 0.05 < residual.std() < 0.2


@pytest.mark.usefixtures("ready_graphs")
def test_a_checkpoint_becomes_a_bundle(tmp_path: Path, nano: ExportModel) -> None:
    folder, output = tmp_path / "checkpoint", tmp_path / "models" / "own"
    save_nano(folder, nano, nano.network, {"window": WINDOW})
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
    assert manifest.licences == {"weights": "Apache-2.0", "data": []}
    assert (manifest.clip.weights, manifest.clip.architecture) == ("clip.safetensors", "own-clip")
    assert manifest.parity["weights"] == "trained"
    assert manifest.parity["probe"] == "motorcycle, near focus, 70 x 101 px"
    assert manifest.parity["target"]["delta_db"] <= 0.01
    assert len(manifest.parity["gates"]) == 6

    assert main(["onnx", str(folder), "-o", str(output), "--name", "again"]) == 0
    assert Bundle.load(output).manifest.name == "again"
    assert (output / "README.md").read_text() == "card"
    assert [path.name for path in output.parent.iterdir()] == ["own"]


@pytest.mark.usefixtures("ready_graphs")
def test_graphs_of_other_weights_fail_the_gates(
    tmp_path: Path, nano: ExportModel, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "checkpoint", tmp_path / "models" / "own"
    save_nano(folder, nano, randomise_network(LDPNet(CONFIGS["nano"]), 9), {"window": WINDOW})
    assert main(["onnx", str(folder), "-o", str(output)]) == 1
    error = capsys.readouterr().err
    assert "failed the parity check: deblur fp32 max abs: expected at most 0.0001, got" in error
    assert "difference in PSNR to the target" in error
    assert "nothing was written" in error
    assert list(output.parent.iterdir()) == []


@pytest.mark.usefixtures("ready_graphs")
def test_nan_fails_a_gate(nano: ExportModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "psnr", lambda *arguments, **options: math.nan)
    with pytest.raises(ParityError, match=r"deblur fp16 PSNR in dB: expected at least 50\.0, got None"):
        export_bundle(nano, tmp_path / "bundle", "nano")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("ready_graphs")
def test_many_weights_go_into_a_file_beside_the_graph(
    nano: ExportModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "EXTERNAL_ABOVE", 1000)
    bundle = tmp_path / "bundle"
    manifest = export_bundle(nano, bundle, "nano")
    assert {"clip.onnx.data", "clip.fp16.onnx.data", "deblur.onnx.data", "deblur.fp16.onnx.data"} <= set(manifest.files)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 48, 3)).astype(np.uint8)
    for backend in ("onnxruntime", "openvino"):
        assert Deblurrer.from_bundle(bundle, backend=backend, threads=1)(image, image).restored.shape == image.shape
    (bundle / "deblur.onnx.data").write_bytes(b"")
    with pytest.raises(LDPError, match=r"deblur\.onnx\.data"):
        Bundle.load(bundle)


def test_what_cannot_be_exported(tiny_clip_file: Path) -> None:
    with pytest.raises(ExportError, match="nano, small, large"):
        random_model("huge", str(tiny_clip_file))
    with pytest.raises(LDPError, match="multiple of CLIP's patch"):
        random_model("nano", str(tiny_clip_file), window=100)
    with pytest.raises(LDPError, match="unknown CLIP architecture"):
        random_model("nano", "no-such-clip")


def test_padding_suits_network_and_clip(tiny_clip_file: Path) -> None:
    assert TINY_CONFIG.multiple == 16
    clip = load_clip(str(tiny_clip_file))
    model = ExportModel(LDPNet(TINY_CONFIG), clip, (), choose_windows(16), trained=False)
    assert model.multiple == 16
    nano = ExportModel(LDPNet(CONFIGS["nano"]), clip, (), choose_windows(16), trained=False)
    assert nano.multiple == 32


def test_windows_of_a_checkpoint_can_be_replaced(tmp_path: Path, nano: ExportModel) -> None:
    checkpoint = save_nano(tmp_path / "checkpoint", nano, nano.network, {"window": 128, "overlap": 64})

    def chosen(window: int | None = None, overlap: int | None = None) -> tuple[int, int]:
        windows = model_from_checkpoint(checkpoint, window, overlap).windows
        return windows.window, windows.overlap

    assert chosen() == (128, 64)
    assert chosen(overlap=16) == (128, 16)
    assert chosen(window=64) == (64, 16)
    assert chosen(window=64, overlap=0) == (64, 0)


@pytest.mark.slow
@pytest.mark.export_large
@pytest.mark.parametrize("config", ["small", "large"])
def test_small_and_large_with_the_papers_clip(config: str, tmp_path: Path) -> None:
    bundle = tmp_path / config
    assert main(["onnx", "--config", config, "--clip", "ViT-B-32-quickgelu", "-o", str(bundle)]) == 0
    manifest = Bundle.load(bundle).manifest
    assert manifest.parity["probe"] == "motorcycle, near focus, 256 x 384 px"
    assert all(gate["passed"] for gate in manifest.parity["gates"])
    assert manifest.clip.quick_gelu
    assert (manifest.clip.patch, manifest.clip.window, manifest.clip.embed_dim) == (32, 448, 512)
    assert onnx_ir.load(bundle / "clip.onnx").graph.inputs[0].shape == onnx_ir.Shape(["B", 3, 448, 896])
    assert (bundle / "clip.onnx").stat().st_size < 360e6, "weights are stored twice"
