"""The authors' released checkpoint: its names and shapes, its network, its blur map, its bundle."""

import dataclasses
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ldp_export.bundling.onnx_graphs import export_bundle
from ldp_export.checkpoint import CheckpointError, save_checkpoint
from ldp_export.cli import main
from ldp_export.clip import PROMPTS, LoadedClip, load_clip
from ldp_export.evaluation.reference import TorchDeblurrer
from ldp_export.importing.released import PROMPT, dense_release, patch_release, read_release
from ldp_export.importing.state import WeightsError
from ldp_export.model import ExportModel
from ldp_export.network import LDPNet
from ldp_export.network.randomise import randomise
from ldp_export.network.released import ReleasedConfig, ReleasedNet, released_state
from ldp_runtime import Deblurrer
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.manifest import BlurMapSpec, Prompt
from tests.ldp_export.released_code import released_map, similarities, views
from tests.ldp_export.tiny_models import TINY_CLIP, TINY_CONFIG, tiny_released


def block_shapes(prefix: str, c: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a NAFBlock as NAFNet's code has them."""
    shapes: dict[str, tuple[int, ...]] = {"beta": (1, c, 1, 1), "gamma": (1, c, 1, 1)}
    for norm in ("norm1", "norm2"):
        shapes |= {f"{norm}.weight": (c,), f"{norm}.bias": (c,)}
    layers = {
        "conv1": (2 * c, c, 1, 1), "conv2": (2 * c, 1, 3, 3), "conv3": (c, c, 1, 1), "conv4": (2 * c, c, 1, 1),
        "conv5": (c, c, 1, 1), "sca.1": (c, c, 1, 1),
    }  # fmt: skip
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def released_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released checkpoint, written out."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (32, 6, 3, 3),
        "skip_conv.weight": (32, 32, 1, 1),
        "output.weight": (3, 32, 3, 3),
        "ca.temperature": (1, 1, 1),
        "ca.qkv.weight": (96, 32, 1, 1),
        "ca.qkv_dwconv.weight": (96, 1, 3, 3),
        "ca.project_out.weight": (32, 32, 1, 1),
        "naf.intro.weight": (32, 32, 3, 3),
        "naf.intro.bias": (32,),
        "naf.ending.weight": (32, 32, 3, 3),
        "naf.ending.bias": (32,),
    }
    for level, c in enumerate((32, 64, 128, 256)):
        for block in range(2):
            shapes |= block_shapes(f"naf.encoders.{level}.{block}", c)
            shapes |= block_shapes(f"naf.decoders.{3 - level}.{block}", c)
        shapes[f"naf.downs.{level}.weight"] = (2 * c, c, 2, 2)
        shapes[f"naf.downs.{level}.bias"] = (2 * c,)
        shapes[f"naf.ups.{3 - level}.0.weight"] = (4 * c, 2 * c, 1, 1)
    for block in range(2):
        shapes |= block_shapes(f"naf.middle_blks.{block}", 512)
    return shapes


def draw_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """A state dict of random numbers in which every tensor differs, residual scales and norms near one half."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if name.endswith(("beta", "gamma", "norm1.weight", "norm2.weight", "temperature")):
            state[name] = 0.5 + 0.1 * values
        else:
            state[name] = values / max(1, int(np.prod(shape[1:]))) ** 0.5 * (0.1 if len(shape) == 1 else 1)
    return state


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return draw_state(released_shapes())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Tensor]) -> Path:
    path = tmp_path_factory.mktemp("release") / "model.pth"
    torch.save({"params": state}, path)
    return path


def test_the_network_has_7_62_million_parameters() -> None:
    with torch.device("meta"):
        network = ReleasedNet(ReleasedConfig())
    assert sum(parameter.numel() for parameter in network.parameters()) == 7_624_097
    assert released_state(network) == released_shapes()
    assert sum(int(np.prod(shape)) for shape in released_shapes().values()) == 7_624_097 + 96 * 9


def test_the_checkpoint_loads_into_the_places_that_its_names_say(checkpoint: Path, state: dict[str, Tensor]) -> None:
    network, origin = read_release(checkpoint)
    assert origin.kind == "released" and origin.files[0].name == "model.pth"
    assert not network.training
    own = network.state_dict()
    assert len(own) == len(state) - 1
    assert torch.equal(own["naf.encoders.1.0.sca.conv.weight"], state["naf.encoders.1.0.sca.1.weight"])
    assert torch.equal(own["naf.decoders.3.1.conv5.bias"], state["naf.decoders.3.1.conv5.bias"])
    assert {value.data_ptr() for value in own.values()}.isdisjoint(value.data_ptr() for value in state.values())
    for name, value in own.items():
        assert torch.equal(value, state[name.replace(".sca.conv.", ".sca.1.")]), name


def save(folder: Path, content: object) -> Path:
    torch.save(content, folder / "model.pth")
    return folder / "model.pth"


def test_missing_unknown_and_misshaped_names_are_listed(tmp_path: Path, state: dict[str, Tensor]) -> None:
    changed = {**state, "naf.intro.weight": torch.zeros(32, 32, 1, 1), "ca.temperature": torch.tensor([[[torch.nan]]])}
    del changed["skip_conv.weight"], changed["ca.qkv_dwconv.weight"]
    changed |= {f"extra.{i:02}.weight": torch.zeros(1) for i in range(11)}
    with pytest.raises(WeightsError) as caught:
        read_release(save(tmp_path, {"params": changed}))
    message = str(caught.value)
    assert "2 missing: ca.qkv_dwconv.weight, skip_conv.weight" in message
    assert "11 unknown: extra.00.weight, " in message
    assert "extra.04.weight and 6 more" in message
    assert "1 of another shape: naf.intro.weight (32, 32, 1, 1) in place of (32, 32, 3, 3)" in message
    assert "1 not of finite numbers: ca.temperature" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "alone or under one of params, state_dict, model, got state_dict"),
        ({}, "under one of params, state_dict, model, got nothing"),
        (torch.zeros(3), "under one of params, state_dict, model, got Tensor"),
        ({"params": {"a": 1}}, "expected tensors by name, alone or under one of params, .*, got params"),
    ],
)
def test_other_files_of_torch_are_errors(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        read_release(save(tmp_path, content))


class Evil:
    """Runs code when it is unpickled by anything that allows it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for write in (
        lambda: save(tmp_path, {"params": Evil()}),
        lambda: Path("model.pth").write_bytes(pickle.dumps(Evil())),
    ):
        write()
        with pytest.raises(WeightsError, match="expected a checkpoint of weights alone") as caught:
            read_release(tmp_path / "model.pth")
        assert "\n" not in str(caught.value)
        assert not Path("ran").exists()
    save(tmp_path, {"params": {}, "best": np.float64(1)})
    with pytest.raises(WeightsError) as caught:
        read_release(tmp_path / "model.pth")
    assert re.search(r"got one that also holds numpy\.[\w.]+, .*; give the model\.pth", str(caught.value))
    assert str(caught.value).isprintable()
    Path("model.pth").write_bytes(b"no pickle")
    with pytest.raises(WeightsError, match="expected a checkpoint of weights alone"):
        read_release(tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"got .*other\.pth, which is none"):
        read_release(tmp_path / "other.pth")


@pytest.fixture(scope="module")
def clip(tiny_clip_file: Path) -> LoadedClip:
    """A tiny CLIP with random weights."""
    loaded = load_clip(str(tiny_clip_file), seed=2)
    randomise(loaded.model, 2)
    return loaded


def calibrated(values: NDArray[np.float64]) -> Prompt:
    """The released prompt with A and B inside the range of the similarities, so that the map has all levels."""
    b, a = np.quantile(values, [0.2, 0.8])
    return Prompt(PROMPT.text, PROMPT.format, float(b), float(a - b))


H, W = 80, 160


def chain(model: ExportModel, blur_map: NDArray[np.float32], left: NDArray[np.uint8], right: NDArray[np.uint8]) -> Any:
    """The image that torch restores with this blur map, not rounded; (h, w, 3) in [0, 255]."""
    pair = torch.from_numpy(np.concatenate([left, right], axis=2).transpose(2, 0, 1).astype(np.float32) / 255)
    with torch.inference_mode():
        restored = model.network(pair[None], torch.from_numpy(blur_map)[None, None])[0].permute(1, 2, 0)
    return np.clip(restored.numpy() * 255, 0, 255)


@pytest.fixture(scope="module")
def patch_model(clip: LoadedClip) -> ExportModel:
    model = patch_release(tiny_released(), clip, calibrated(similarities(clip, *views(H, W), PROMPT.text)))
    return dataclasses.replace(model, trained=False)


def test_torch_does_what_the_released_code_does(patch_model: ExportModel, clip: LoadedClip) -> None:
    left, right = views(H, W)
    prompt = patch_model.prompts[0]
    values = similarities(clip, left, right, prompt.text)
    small = released_map(values, prompt.offset + prompt.temperature, prompt.offset)
    assert small.std() > 0.2, "all patches are alike: any code would agree"
    result = TorchDeblurrer(patch_model, device="cpu")(left, right)
    assert result.blur_logits.shape == (2, 4)
    blur_map = F.interpolate(torch.from_numpy(small)[None, None], size=(H, W), mode="bilinear")[0, 0]
    assert np.abs(result.blur_map - blur_map.numpy()).max() < 0.06  # Pillow rounds what CLIP sees to 8 bits
    expected = chain(patch_model, result.blur_map, left, right)
    assert expected.std() > 10
    assert np.abs(result.restored - expected).max() <= 0.51
    assert TorchDeblurrer(patch_model, device="cpu")(left[:53, :91], right[:53, :91]).restored.shape == (53, 91, 3)


@pytest.fixture(scope="module")
def patch_bundle(tmp_path_factory: pytest.TempPathFactory, patch_model: ExportModel) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "released"
    export_bundle(patch_model, path, "released")
    return path


@pytest.mark.slow
def test_the_bundle_says_what_it_is(patch_bundle: Path) -> None:
    manifest = Bundle.load(patch_bundle).manifest
    assert manifest.network["attention"] == "channel"
    assert manifest.blur_map == BlurMapSpec("patch", "map", 40)
    assert (manifest.clip.window, manifest.clip.patch, manifest.padding.multiple) == (32, 16, 16)
    assert [prompt.text for prompt in manifest.prompts] == ["A symmetric image at pixel level"]
    assert all(gate["passed"] for gate in manifest.parity["gates"])
    assert len(manifest.parity["gates"]) == 5


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_runtime_does_what_the_released_code_does(
    patch_bundle: Path, patch_model: ExportModel, clip: LoadedClip, backend: str
) -> None:
    left, right = views(H, W)
    prompt = patch_model.prompts[0]
    values = similarities(clip, left, right, prompt.text)
    small = released_map(values, prompt.offset + prompt.temperature, prompt.offset)
    assert small.std() > 0.2, "all patches are alike: any code would agree"
    with torch.inference_mode():
        blur_map = F.interpolate(torch.from_numpy(small)[None, None], size=(H, W), mode="bilinear")[0, 0]
    result = Deblurrer.from_bundle(patch_bundle, backend=backend, precision="fp32", threads=1)(left, right)
    assert result.blur_logits.shape == (2, 4)
    # Pillow rounds what CLIP sees to 8 bits.
    assert np.abs(result.blur_map - blur_map.numpy()).max() < 0.06
    expected = chain(patch_model, result.blur_map, left, right)
    assert expected.std() > 10
    difference = np.abs(result.restored - expected)
    assert difference.max() <= 0.51, f"mean {difference.mean():.3g}, max {difference.max()}"
    half = Deblurrer.from_bundle(patch_bundle, backend=backend, precision="fp16", threads=1)(left, right)
    assert np.abs(half.blur_map - result.blur_map).max() < 0.05
    assert np.abs(half.restored - expected).max() <= 3


@pytest.mark.slow
def test_any_size_and_axis_run(patch_bundle: Path) -> None:
    left, right = views(53, 91)
    deblurrer = Deblurrer.from_bundle(patch_bundle, backend="onnxruntime", precision="fp32", threads=1)
    result = deblurrer(left, right)
    assert result.restored.shape == (53, 91, 3)
    assert result.blur_map.shape == (53, 91)
    assert result.blur_logits.shape == (2, 3)
    turned = deblurrer(left.transpose(1, 0, 2), right.transpose(1, 0, 2), axis="vertical")
    np.testing.assert_array_equal(turned.restored, result.restored.transpose(1, 0, 2))
    np.testing.assert_array_equal(deblurrer.blur_map(left, right).blur_map, result.blur_map)


def dense_source(folder: Path, clip: LoadedClip) -> Any:
    """A checkpoint with the tiny CLIP and a calibration."""
    prompts = [Prompt(prompt.text, prompt.format, 0.5, 4.0) for prompt in PROMPTS]
    return save_checkpoint(
        folder,
        config=TINY_CONFIG,
        network=LDPNet(TINY_CONFIG).state_dict(),
        clip_config={**TINY_CLIP, "window": 64, "overlap": 16},
        clip=clip.model.state_dict(),
        prompts=prompts,
        training={"licences": {"weights": "Apache-2.0", "data": []}},
    )


@pytest.mark.slow
def test_the_dense_blur_map_feeds_the_same_network(tmp_path: Path, clip: LoadedClip) -> None:
    model = dataclasses.replace(dense_release(tiny_released(), dense_source(tmp_path / "source", clip)), trained=False)
    export_bundle(model, tmp_path / "dense", "dense")
    manifest = Bundle.load(tmp_path / "dense").manifest
    assert manifest.blur_map == BlurMapSpec("dense", "map", None)
    assert len(manifest.prompts) == 8
    left, right = views(H, W)
    result = Deblurrer.from_bundle(tmp_path / "dense", backend="onnxruntime", precision="fp32", threads=1)(left, right)
    assert result.blur_logits.shape == (H // 16, W // 16)
    assert np.ptp(result.blur_map) > 0.01
    expected = chain(model, result.blur_map, left, right)
    assert np.abs(result.restored - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--blur-map", "dense"], "expected --clip-from with --blur-map dense, got none"),
        (["--blur-map", "dense", "--clip-weights", "openai"], "got --clip or --clip-weights"),
        (["--clip-from", "folder"], "expected --clip-from with --blur-map dense alone"),
    ],
)
def test_options_that_do_not_fit(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", "released", "model.pth", "-o", str(tmp_path / "b"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_wrong_checkpoint_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, {"params": {"weight": torch.zeros(1)}})
    assert main(["import", "released", str(path), "-o", str(tmp_path / "bundle")]) == 2
    assert "1 unknown: weight" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_dense_wants_a_calibration(tmp_path: Path, clip: LoadedClip) -> None:
    source = dense_source(tmp_path / "source", clip)
    (source.path / "calibration.json").unlink()
    with pytest.raises(CheckpointError, match="expected the calibration"):
        dense_release(tiny_released(), source)


@pytest.mark.slow
def test_the_released_sizes_import_export_and_run(
    checkpoint: Path, tiny_clip_file: Path, tmp_path: Path, clip: LoadedClip, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(clip.model.state_dict(), tmp_path / "clip.safetensors")
    arguments = ["--clip", str(tiny_clip_file), "--clip-weights", str(tmp_path / "clip.safetensors")]
    assert main(["import", "released", str(checkpoint), "-o", str(tmp_path / "bundle"), *arguments]) == 0
    assert "deblur half PSNR in dB" in capsys.readouterr().out
    left, right = views(H, W)
    result = Deblurrer.from_bundle(tmp_path / "bundle", backend="openvino", precision="fp32", threads=1)(left, right)
    network, _ = read_release(checkpoint)
    expected = chain(patch_release(network, clip), result.blur_map, left, right)
    assert np.abs(result.restored - expected).max() <= 0.51
