from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import Tensor, nn

from ldp_export.clip import OPPOSITES, PROMPTS, ClipError, DenseCLIP, LoadedClip, WindowEncoder, embed_texts, load_clip
from ldp_export.network.randomise import randomise
from ldp_runtime.errors import LDPError

PATCH = 8
TINY: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "patch_size": PATCH, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def write_config(folder: Path, **changes: Any) -> str:
    path = folder / "tiny-clip.json"
    path.write_text(json.dumps({**TINY, **changes}))
    return str(path)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_config(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(config: str) -> LoadedClip:
    loaded = load_clip(config)
    randomise(loaded.model)
    with torch.no_grad():  # embeddings of places that matter, so that a wrong resize shows
        loaded.model.visual.positional_embedding.copy_(noise(17, 32, seed=1))
    return loaded


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("the test suite does not download")

    monkeypatch.setattr(open_clip, "create_model", refuse)


# --- dense features -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_dense_features_are_open_clips_own_tokens_normalised_and_projected(clip: LoadedClip) -> None:
    visual, image = clip.model.visual, noise(2, 3, 32, 32)
    features = clip.encoder(image)
    assert features.shape == (2, 4, 4, 12)

    inner = visual.forward_intermediates(image, indices=1, output_fmt="NLC", output_extra_tokens=True)
    last, class_token = inner["image_intermediates"][-1], inner["image_intermediates_prefix"][-1][:, 0]
    # These tokens are the ones that open_clip pools: its image feature is their class token, projected.
    torch.testing.assert_close(visual.ln_post(class_token) @ visual.proj, visual(image))
    expected = (visual.ln_post(last) @ visual.proj).reshape(2, 4, 4, 12)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert float((features[:, 0, 0] - visual(image)).abs().max()) > 0.1  # not the class token itself

    row_major = clip.encoder(torch.cat([image[..., :24], noise(2, 3, 32, 8, seed=3)], dim=3)) - features
    # Attention carries a change everywhere, but most of it stays in the column of patches that changed.
    assert row_major[:, :, 3].abs().mean() > 1.5 * row_major[:, :, :3].abs().mean()


@pytest.mark.parametrize("grid", [(4, 8), (2, 2), (3, 7), (6, 12)])
@torch.no_grad()
def test_other_grids_run_open_clips_blocks_with_resized_positions(clip: LoadedClip, grid: tuple[int, int]) -> None:
    image = noise(1, 3, grid[0] * PATCH, grid[1] * PATCH)
    visual = copy.deepcopy(clip.model.visual)
    table = visual.positional_embedding.double().numpy()
    resized = numpy_bicubic(table[1:].reshape(4, 4, -1), grid).reshape(grid[0] * grid[1], -1)
    visual.positional_embedding = nn.Parameter(torch.from_numpy(np.concatenate([table[:1], resized])).float())
    tokens = visual.forward_intermediates(image, indices=1, output_fmt="NLC", normalize_intermediates=True)
    expected = (tokens["image_intermediates"][-1] @ visual.proj).reshape(1, *grid, 12)
    torch.testing.assert_close(clip.encoder(image), expected, atol=1e-4, rtol=1e-4)


def numpy_bicubic(x: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Keys' cubic with a = -0.75, half-pixel centres, edges repeated, no antialias; ``(h, w, c)`` to ``size``."""

    def cubic(t: float) -> float:
        t, a = abs(t), -0.75
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    for axis in (0, 1):
        x = np.moveaxis(x, axis, 0)
        out = np.zeros((size[axis], *x.shape[1:]))
        for i in range(size[axis]):
            centre = (i + 0.5) * x.shape[0] / size[axis] - 0.5
            first = math.floor(centre) - 1
            for tap in range(first, first + 4):
                out[i] += cubic(centre - tap) * x[min(max(tap, 0), x.shape[0] - 1)]
        x = np.moveaxis(out, 0, axis)
    return x


@pytest.mark.parametrize("grid", [(8, 16), (8, 8), (2, 4), (5, 3), (1, 1)])
@torch.no_grad()
def test_positions_are_resized_bicubically_without_antialias(clip: LoadedClip, grid: tuple[int, int]) -> None:
    table = clip.model.visual.positional_embedding.double().numpy()
    positional = clip.encoder.positional_embedding(grid)
    assert positional.shape == (1, 1 + grid[0] * grid[1], 32)
    np.testing.assert_array_equal(positional[0, 0].numpy(), table[0].astype(np.float32))
    expected = numpy_bicubic(table[1:].reshape(4, 4, -1), grid).reshape(grid[0] * grid[1], -1)
    np.testing.assert_allclose(positional[0, 1:].numpy(), expected, atol=1e-5)


def test_positions_of_the_trained_grid_are_the_table(clip: LoadedClip) -> None:
    assert torch.equal(clip.encoder.positional_embedding((4, 4))[0], clip.model.visual.positional_embedding)


@torch.no_grad()
def test_window_encoder_is_the_dense_encoder_on_both_inputs(clip: LoadedClip) -> None:
    windows = WindowEncoder(clip.encoder, 24)
    stereo, center = noise(3, 3, 24, 48), noise(3, 3, 24, 24, seed=1)
    of_stereo, of_center = windows(stereo, center)
    assert of_stereo.shape == (3, 3, 6, 12)
    assert of_center.shape == (3, 3, 3, 12)
    torch.testing.assert_close(of_stereo, clip.encoder(stereo))
    torch.testing.assert_close(of_center, clip.encoder(center))
    # Both grids' positions are constants of the graph: buffers, not computed again.
    assert {name for name, _ in windows.named_buffers()} >= {"stereo_positional", "center_positional"}
    windows.stereo_positional.zero_()
    assert float((windows(stereo, center)[0] - of_stereo).abs().max()) > 0.01


def test_patch(clip: LoadedClip) -> None:
    assert clip.encoder.patch == PATCH


def test_gradients_flow_through_the_encoder_to_the_image(clip: LoadedClip) -> None:
    image = noise(1, 3, 16, 32).requires_grad_()
    clip.encoder(image).square().mean().backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()
    assert image.grad.any()


def test_the_dense_encoder_refuses_towers_without_patch_tokens() -> None:
    with pytest.raises(TypeError, match="plain vision transformer, got Linear"):
        DenseCLIP(nn.Linear(1, 1))  # type: ignore[arg-type]


# --- QuickGELU ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_quick_gelu_is_recorded_and_used(tmp_path: Path) -> None:
    plain, quick = load_clip(write_config(tmp_path)), load_clip(write_config(tmp_path, quick_gelu=True))
    assert (plain.quick_gelu, quick.quick_gelu) == (False, True)
    x = noise(100)
    torch.testing.assert_close(QuickGELU()(x), x * torch.sigmoid(1.702 * x))
    for loaded, activation in ((plain, nn.GELU), (quick, QuickGELU)):
        for tower in (loaded.model.visual, loaded.model):
            assert isinstance(tower.transformer.resblocks[0].mlp.gelu, activation)
    # The same weights with the other activation: no error, another answer. Hence the record in the manifest.
    quick.model.load_state_dict(plain.model.state_dict())
    image = noise(1, 3, 32, 32)
    assert float((plain.encoder(image) - quick.encoder(image)).abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("architecture", "tag"), [("ViT-B-32", "openai"), ("ViT-B-16", "openai"), ("ViT-B-32", "metaclip_400m")]
)
def test_weights_that_need_quick_gelu_are_refused_without_it(architecture: str, tag: str) -> None:
    with pytest.raises(ClipError) as caught:
        load_clip(architecture, tag)
    assert str(caught.value) == (
        f"the {tag} weights need QuickGELU, which {architecture} lacks; use {architecture}-quickgelu instead"
    )
    assert open_clip.get_model_config(f"{architecture}-quickgelu")["quick_gelu"] is True


# --- loading ------------------------------------------------------------------------------------------------


def test_errors_are_for_users() -> None:
    assert issubclass(ClipError, LDPError)


def test_unknown_architecture() -> None:
    with pytest.raises(ClipError, match=r"unknown CLIP architecture ViT-Q-9.*ViT-B-32-quickgelu"):
        load_clip("ViT-Q-9")


@pytest.mark.parametrize("architecture", ["RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32"])
def test_towers_that_are_no_plain_vision_transformer(architecture: str) -> None:
    with pytest.raises(ClipError, match=f"{architecture} has no plain vision transformer; use a ViT"):
        load_clip(architecture)


@pytest.mark.parametrize("architecture", ["roberta-ViT-B-32", "ViT-L-14-CLIPA", "coca_base"])
def test_text_towers_that_are_not_clips_own(architecture: str) -> None:
    with pytest.raises(ClipError, match=f"{architecture} has not CLIP's own text transformer; use a ViT"):
        load_clip(architecture)


def test_missing_weights_file() -> None:
    with pytest.raises(ClipError) as caught:
        load_clip("ViT-B-32-quickgelu", "nowhere/weights.safetensors")
    assert str(caught.value).startswith(
        "nowhere/weights.safetensors is neither a weights file nor a pretrained tag of ViT-B-32-quickgelu "
        "(known: openai, "
    )


def test_missing_weights_file_of_a_config(config: str) -> None:
    with pytest.raises(ClipError, match=r"openai is neither .* \(known: none\)"):
        load_clip(config, "openai")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read the CLIP config .*broken.json: Expecting property name"),
        ("[1]", "must hold embed_dim, vision_cfg and text_cfg"),
        ('{"embed_dim": 3}', "must hold embed_dim, vision_cfg and text_cfg"),
        (json.dumps({**TINY, "text_cfg": {"hat": 1}}), "cannot build the CLIP model .*broken.json: .*'hat'"),
    ],
)
def test_broken_configs(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ClipError, match=message):
        load_clip(str(path))


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match=r"cannot read the CLIP config .*nowhere\.json"):
        load_clip(str(tmp_path / "nowhere.json"))


@pytest.mark.parametrize("broken", ["shape", "missing", "unknown", "bytes", "empty"])
def test_weights_that_do_not_fit(clip: LoadedClip, config: str, tmp_path: Path, broken: str) -> None:
    state = {name: value.clone() for name, value in clip.model.state_dict().items()}
    path = tmp_path / "weights.safetensors"
    if broken == "shape":
        state["visual.proj"] = torch.zeros(32, 13)
    elif broken == "missing":
        del state["visual.proj"]
    elif broken == "unknown":
        state["visual.hat"] = torch.zeros(1)
    save_file(state, path)
    if broken == "bytes":
        path.write_bytes(path.read_bytes()[:1000])
    elif broken == "empty":
        path.write_bytes(b"")
    with pytest.raises(ClipError) as caught:
        load_clip(config, str(path))
    message = str(caught.value)
    assert message.startswith(f"{path} does not hold weights of {config}: ")
    assert "\n" not in message
    assert {"shape": "size mismatch for visual.proj", "missing": "visual.proj", "unknown": "visual.hat"}.get(
        broken, ""
    ) in message


@torch.no_grad()
def test_weights_make_the_round_trip_through_safetensors(clip: LoadedClip, config: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    save_file(clip.model.state_dict(), path)
    again = load_clip(config, str(path))
    assert again.weights == "tiny.safetensors"
    assert again.architecture == "tiny-clip"
    for (name, value), (other, same) in zip(
        clip.model.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(value, same)
    image = noise(1, 3, 32, 64)
    assert torch.equal(again.encoder(image), clip.encoder(image))
    assert not again.model.training


def test_random_weights_depend_on_the_seed_alone(config: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = load_clip(config), load_clip(config), load_clip(config, seed=1)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers go on as they were
    assert first.weights == "random"
    assert torch.equal(first.model.visual.proj, second.model.visual.proj)
    assert not torch.equal(first.model.visual.proj, other.model.visual.proj)


@pytest.mark.parametrize(
    ("architecture", "tag", "mean"),
    [
        ("ViT-B-32-quickgelu", "openai", open_clip.OPENAI_DATASET_MEAN),
        ("ViT-L-14", "laion2b_s32b_b82k", (0.5, 0.5, 0.5)),
    ],
)
def test_pretrained_tags_bring_their_own_preprocessing(
    monkeypatch: pytest.MonkeyPatch, architecture: str, tag: str, mean: tuple[float, float, float]
) -> None:
    asked: list[tuple[str, str]] = []

    def create_model(name: str, pretrained: str) -> nn.Module:
        asked.append((name, pretrained))
        return open_clip.CLIP(**TINY, quick_gelu="quickgelu" in name)

    monkeypatch.setattr(open_clip, "create_model", create_model)
    loaded = load_clip(architecture, tag)
    assert asked == [(architecture, tag)]
    assert (loaded.architecture, loaded.weights) == (architecture, tag)
    assert loaded.mean == mean
    assert loaded.quick_gelu == ("quickgelu" in architecture)


def test_a_failed_download_says_the_mend() -> None:
    with pytest.raises(ClipError) as caught:
        load_clip("ViT-B-32-quickgelu", "openai")
    assert str(caught.value) == (
        "cannot download the openai weights of ViT-B-32-quickgelu: the test suite does not download; "
        "fetch them elsewhere and pass the file"
    )


# --- prompts and text ---------------------------------------------------------------------------------------


def test_prompts_are_table_4() -> None:
    assert [(prompt.text, prompt.format) for prompt in PROMPTS] == [
        ("A blurry image.", "blur-aware"),
        ("An obscured image.", "blur-aware"),
        ("An out of focus image.", "blur-aware"),
        ("An image lacking sharpness.", "blur-aware"),
        ("A symmetrical image.", "dp-aware"),
        ("A horizontally symmetrical image.", "dp-aware"),
        ("A left-right symmetrical image.", "dp-aware"),
        ("A symmetrical image at the pixel level.", "dp-aware"),
    ]


def test_every_prompt_has_an_opposite_of_its_format() -> None:
    assert [prompt.format for prompt in OPPOSITES] == [prompt.format for prompt in PROMPTS]
    assert len({prompt.text for prompt in (*PROMPTS, *OPPOSITES)}) == 16


@torch.no_grad()
def test_text_embeddings_are_open_clips_at_unit_length(clip: LoadedClip) -> None:
    texts = [prompt.text for prompt in (*PROMPTS, *OPPOSITES)]
    embeddings = embed_texts(clip, texts)
    assert embeddings.shape == (16, 12)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(16))
    expected = clip.model.encode_text(open_clip.SimpleTokenizer(context_length=24)(texts), normalize=True)
    torch.testing.assert_close(embeddings, expected)
    assert float((embeddings @ embeddings.T - torch.eye(16)).triu(1).max()) < 0.9999  # all differ


def test_text_embeddings_are_differentiable_in_the_text_tower(clip: LoadedClip) -> None:
    clip.model.zero_grad()
    embed_texts(clip, ["A blurry image.", "A sharp image."])[:, 0].sum().backward()
    assert clip.model.text_projection.grad.any()
