import json
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import nn

from ldp_export.clip import ClipError, LoadedClip, load_clip
from tests.ldp_export.clip.small_clip import TINY, write_config
from tests.ldp_export.tensors import noise


@torch.no_grad()
def test_quick_gelu_is_recorded_and_used(tmp_path: Path) -> None:
    plain, quick = load_clip(write_config(tmp_path)), load_clip(write_config(tmp_path, quick_gelu=True))
    assert (plain.quick_gelu, quick.quick_gelu) == (False, True)
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


def test_missing_weights_file(config: str) -> None:
    with pytest.raises(ClipError, match=r"openai is neither .* \(known: none\)"):
        load_clip(config, "openai")
    with pytest.raises(ClipError) as caught:
        load_clip("ViT-B-32-quickgelu", "nowhere/weights.safetensors")
    assert str(caught.value).startswith(
        "nowhere/weights.safetensors is neither a weights file nor a pretrained tag of ViT-B-32-quickgelu "
        "(known: openai, "
    )


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
